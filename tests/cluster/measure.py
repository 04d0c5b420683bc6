"""Times of a cluster in the lab: `python tests/cluster/measure.py`, as root.

The time from `ray up` until all nodes are alive, with the packages already installed; and the
trials a minute of two workers against one, with trials that sleep. Run it alone: all hosts share
the cores of this machine.
"""

import json
import tempfile
import time
from pathlib import Path

from lab import Lab
from ray_cluster import RayCluster, fill_in, finish
from test_onprem import HOSTS, SWAPPED

NUM_TRIALS = 60


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), HOSTS, with_code=["head"])
        with lab.opened():
            cluster = RayCluster(lab, fill_in("cluster-onprem.yaml", SWAPPED))
            start = time.monotonic()
            cluster.up()
            cluster.wait_for_nodes(*HOSTS)
            print(f"ray up to all nodes alive: {time.monotonic() - start:.1f} s", flush=True)
            two = trials_a_minute(cluster, "two")
            lab["w2"].power_off()
            cluster.wait_for_nodes("head", "w1")
            one = trials_a_minute(cluster, "one")
            print(f"two workers: {two / one:.2f} times the trials a minute of one")


def trials_a_minute(cluster: RayCluster, name: str) -> float:
    options = f"--name {name} --num-trials {NUM_TRIALS}"
    finish(cluster.submit(f"python tests/cluster/sleeper.py {options}"), timeout_s=600)
    best = json.loads((cluster.lab.share / "sweeps" / name / "best.json").read_text())
    rate = 60 * NUM_TRIALS / best["seconds"]
    print(f"{name}: {rate:.1f} trials a minute, {best['seconds']:.1f} s in all", flush=True)
    return float(rate)


if __name__ == "__main__":
    main()
