"""Measure how busy a sweep keeps the slots of many nodes.

    python -m benchmarks.scale
    python -m benchmarks.scale --num-nodes 32 --num-trials 800

The nodes are simulated on this machine, with one logical GPU each, and trials sleep. Two things
limit how busy the slots are: the driver, one process that handles every report; and here, where all
nodes share the cores of one machine, the start of the trials' processes.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from ray import tune
from ray.cluster_utils import Cluster

from tune_jobs.engine import Settings, run_sweep


@dataclass(frozen=True)
class Args:
    """Measure how busy slots are between the first and the last start of a trial."""

    num_nodes: int = 16
    """Nodes, each with one logical GPU."""
    share: float = 1.0
    """Share of a GPU that a trial holds."""
    num_trials: int = 400
    """Trials of the sweep."""
    trial_s: float = 5.0
    """Seconds that a trial sleeps."""
    num_reports: int = 10
    """Reports of each trial."""


@dataclass(frozen=True)
class Run:
    """When one trial started and ended, in seconds."""

    start: float
    end: float


def sweep(args: Args, folder: Path) -> list[Run]:
    """Run the sweep.

    Returns:
        When each trial ran, in the order of their starts.
    """
    notes = folder / "notes"
    notes.mkdir()

    def sleep(config: dict[str, Any]) -> float:
        start = time.time()
        for _ in range(args.num_reports):
            time.sleep(args.trial_s / args.num_reports)
            tune.report({"score": config["x"]})
        (notes / f"{start}.json").write_text(json.dumps([start, time.time()]))
        return float(config["x"])

    # A small object store for each node: here all of them share the memory of one machine.
    store = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    per_node = max(1, int(1 / args.share + 1e-9))
    for _ in range(args.num_nodes):
        cluster.add_node(num_cpus=per_node, num_gpus=1, **store)
    try:
        run_sweep(
            Settings(
                num_trials=args.num_trials,
                gpus_per_trial=args.share,
                storage_path=str(folder),
                address=cluster.address,
            ),
            space={"x": tune.uniform(0, 1)},
            metric="score",
            mode="max",
            objective=sleep,
            progress=None,
        )
    finally:
        cluster.shutdown()
    runs = [Run(*json.loads(file.read_text())) for file in notes.iterdir()]
    return sorted(runs, key=lambda run: run.start)


def main(args: Args) -> None:
    before = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        runs = sweep(args, Path(folder))
    driver = (time.process_time() - before) / len(runs)
    slots = args.num_nodes * int(1 / args.share + 1e-9)
    first, last = runs[0].start, runs[-1].start
    busy = sum(max(0.0, min(run.end, last) - run.start) for run in runs)
    full = runs[min(slots, len(runs)) - 1].start
    steady = sum(max(0.0, min(r.end, last) - max(r.start, full)) for r in runs if r.end > full)
    print(f"{len(runs)} trials on {slots} slots, {last - first:.1f} s from first to last start")
    print(f"slots busy: {busy / slots / (last - first):.1%}")
    print(f"all slots in use after {full - first:.1f} s")
    if last > full:
        print(f"slots busy from then on: {steady / slots / (last - full):.1%}")
    print(f"driver: {1_000 * driver:.0f} ms of CPU time a trial")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
