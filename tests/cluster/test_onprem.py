"""`cluster-onprem.yaml` on three hosts: sweeps survive the loss of workers, head and network."""

import csv
import itertools
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import REPO, SHARED, Host, Lab, wait_for
from ray_cluster import (
    CLONE,
    SMALL_STORE,
    SWEEPS,
    RayCluster,
    fill_in,
    finish,
    is_trained,
    notes,
    steady,
)

from tune_jobs.engine import load_study

pytestmark = pytest.mark.timeout(600)  # with the hosts and `ray up`

DATA_DIR = Path(os.environ.get("TUNE_JOBS_DATA_DIR", REPO.parent / "shared" / "data"))
HOSTS = {"head": "10.77.0.10", "w1": "10.77.0.11", "w2": "10.77.0.12"}
DOCS = (REPO / "docs" / "clusters.md").read_text()
NUM_TRIALS, NUM_EPOCHS = 6, 12
SWAPPED = {
    "YOUR-HEAD": HOSTS["head"],
    "[YOUR-WORKER, YOUR-WORKER]": f"[{HOSTS['w1']}, {HOSTS['w2']}]",
    "YOUR-USER": "root",
    "~/.ssh/id_ed25519": "~/.ssh/lab.pem",
    "/YOUR-MOUNT": SHARED,
    "$HOME/data": f"{SHARED}/data",
    "ray start --head": f"ray start --head {SMALL_STORE}",
    # Logical GPUs: Ray counts them, and no trial computes on them.
    "ray start --address": f"ray start {SMALL_STORE} --num-cpus=2 --num-gpus=1 --address",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    lab = Lab(tmp_path_factory.mktemp("lab"), HOSTS, with_code=["head"])
    with lab.opened():
        if DATA_DIR.is_dir():
            shutil.copytree(DATA_DIR, lab.share / "data")
        cluster = RayCluster(lab, fill_in("cluster-onprem.yaml", SWAPPED))
        cluster.up()
        # At once, before a worker has joined: without workers no trial can run.
        options = f"--storage-path {SWEEPS} --name early --num-trials 2"
        cluster.early = finish(cluster.submit(f"python tune_jobs/garden.py {options}"))
        yield cluster


@pytest.fixture(autouse=True)
def _all_nodes(cluster: RayCluster) -> None:
    """Bring every host back, whatever the previous test did."""
    for host in cluster.lab.hosts.values():
        if not host.is_on:
            host.power_on()
        host.heal()
    cluster.wait_for_nodes(*HOSTS, timeout_s=200)


def test_onprem_resources_of_file(cluster: RayCluster) -> None:
    gpus = {name: resources.get("GPU", 0) for name, resources in cluster.nodes().items()}
    assert gpus == {"head": 0, "w1": 1, "w2": 1}
    assert "CPU" not in cluster.nodes()["head"]


def test_onprem_job_waits_for_worker(cluster: RayCluster) -> None:
    assert "Trials: 2 finished" in cluster.early


def test_onprem_ports_need_token(cluster: RayCluster) -> None:
    """The documented ports, and no others, listen, and answer as documented."""
    shutil.copy(REPO / "tests" / "cluster" / "knock.py", cluster.lab.share)
    job = cluster.submit("sleep 20")  # so that a worker's process listens too
    wait_for(lambda: in_range(listening(cluster.head)[0]), 20, "a port of a process")
    documented = documented_ports()
    of_processes = set()
    for name, host in cluster.lab.hosts.items():
        to_others, to_itself = listening(host)
        ranged = in_range(to_others)
        node = "head" if name == "head" else "worker"
        expected_ports = {port for port, (nodes, _) in documented.items() if node in nodes}
        assert {*to_others - ranged, *to_itself} == expected_ports, name
        knock = f"python {SHARED}/knock.py {host.ip} {' '.join(map(str, to_others - {22}))}"
        for port, answer in json.loads(cluster.driver.run(knock)).items():
            # A process may have ended in between.
            expected = {"UNAUTHENTICATED", "UNAVAILABLE"}
            if int(port) not in ranged:
                expected = {documented[int(port)][1]}
            else:
                of_processes.add(answer)
            assert answer in expected, f"{name}:{port}"
    assert "UNAUTHENTICATED" in of_processes
    finish(job)


def test_onprem_dashboard_needs_token(cluster: RayCluster) -> None:
    shutil.copy(REPO / "tests" / "cluster" / "knock.py", cluster.lab.share)
    knock = f"python {SHARED}/knock.py"
    assert json.loads(cluster.head.run(f"{knock} 127.0.0.1 8265")) == {"8265": "401"}
    for host in (cluster.driver, cluster.lab["w1"]):
        answer = json.loads(host.run(f"{knock} {cluster.head.ip} 8265"))
        assert answer == {"8265": "unreachable"}
    env = {"RAY_AUTH_MODE": "disabled"}
    refused = cluster.driver.run("ray job list 2>&1", check=False, **env)
    assert "401" in refused or "Unauthorized" in refused or "uthentication" in refused


def test_onprem_job_uses_both_workers(cluster: RayCluster) -> None:
    options = "--name mnist --gpus-per-trial 0.5 --num-trials 8 --max-epochs 2"
    output = finish(cluster.submit(f"python tune_jobs/mnist.py {options}"))
    assert "8 trials, 4 at a time, each on 1 CPU and 0.5 of a GPU" in output
    assert f"Results: {SWEEPS}/mnist" in output
    rows = read_rows(cluster.lab, "mnist")
    assert len(rows) == 8
    assert {row["node"] for row in rows} == {"w1", "w2"}
    assert (cluster.lab.share / "sweeps" / "mnist" / "best.ckpt").exists()


def test_onprem_job_folder_is_sent(cluster: RayCluster) -> None:
    job = (REPO / "tests" / "cluster" / "steady.py").read_text()
    job = job.replace("def make_data", "from beside import make_data\n\n\ndef never")
    cluster.head.run("mkdir -p ~/jobs")
    for name, text in {"own.py": job, "beside.py": BESIDE}.items():
        (cluster.lab.share / name).write_text(text)
        cluster.head.run(f"mv {SHARED}/{name} ~/jobs/")
    notes = f"STEADY_NOTES={SHARED}/own.txt STEADY_EPOCH_S=0"
    options = "--name own --num-trials 4 --max-epochs 2 --gpus-per-trial 0.5"
    cluster.on_head(f"cd /tmp && {notes} python ~/jobs/own.py {options}")
    # The first process may run all of them, they are so short.
    assert {row["node"] for row in read_rows(cluster.lab, "own")} <= {"w1", "w2"}

    cluster.on_head(f"cd {CLONE} && python tune_jobs/garden.py --name clone --num-trials 4")
    assert {row["node"] for row in read_rows(cluster.lab, "clone")} <= {"w1", "w2"}


def test_onprem_unshared_storage_refused(cluster: RayCluster) -> None:
    job = f"cd {CLONE} && python tune_jobs/mnist.py --storage-path"
    output = cluster.on_head(f"{job} /var/sweeps 2>&1; echo code $?", check=False)
    assert re.search(r"storage_path /var/sweeps/\S+ cannot be used on node w\d \(10", output)
    assert "code 2" in output
    output = cluster.driver.run(
        f"cd {CLONE} && ray job submit --working-dir . -- python tune_jobs/mnist.py "
        "--storage-path results; true"
    )
    assert "is in the copy of the working directory, which Ray deletes" in output


def test_onprem_worker_power_loss(cluster: RayCluster) -> None:
    job = cluster.submit(sweep("off"))
    wait_for(lambda: is_trained(cluster.lab, "off", "w2", 3), 90, "trials on w2")
    cluster.lab["w2"].power_off()
    lost = [x for x, hosts in hosts_of_trials(cluster.lab, "off").items() if "w2" in hosts]
    output = finish(job)
    assert f"Node w2 ({HOSTS['w2']}) has left: 1 of 2 GPUs" in output
    check_nothing_lost(cluster.lab, "off")
    hosts = hosts_of_trials(cluster.lab, "off")
    assert [hosts[x] for x in lost] == [{"w1", "w2"}] * len(lost)
    cluster.lab["w2"].power_on()
    cluster.wait_for_nodes(*HOSTS, timeout_s=200)


def test_onprem_network_partition(cluster: RayCluster) -> None:
    # Not w2: when a host returns with its old address, gRPC reconnects slowly.
    job = cluster.submit(sweep("cut"))
    wait_for(lambda: is_trained(cluster.lab, "cut", "w1", 3), 90, "trials on w1")
    cluster.lab["w1"].cut()
    try:
        time.sleep(60)
    finally:
        cluster.lab["w1"].heal()
    output = finish(job)
    assert f"Node w1 ({HOSTS['w1']}) has left" in output
    check_nothing_lost(cluster.lab, "cut")


def test_onprem_head_replaced(cluster: RayCluster) -> None:
    """The new head knows nothing; the sweep resumes from the shared folder, on a worker."""
    command = sweep("head")
    cluster.submit(command)
    wait_for(lambda: any(epoch >= 3 for _, _, epoch in notes(cluster.lab, "head")), 180, "trials")
    cluster.head.power_off()
    cluster.close_tunnel()
    cluster.head.replace()
    cluster.head.power_on()
    cluster.down()  # otherwise `ray up` believes that the machine is set up
    cluster.up()
    cluster.wait_for_nodes(*HOSTS)
    output = finish(cluster.submit(f"{command} --resume", on=cluster.lab["w1"]))
    assert "Resuming sweep head:" in output
    check_nothing_lost(cluster.lab, "head")


def sweep(name: str) -> str:
    return f"{steady(name, NUM_TRIALS, NUM_EPOCHS)} --gpus-per-trial 0.5"


def documented_ports() -> dict[int, tuple[str, str]]:
    """Port -> the nodes that listen on it, and the answer without a token."""
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \| [^|]+ \| `?(\w+)`?", DOCS, re.MULTILINE)
    return {
        int(port): (nodes, answer) for ports, nodes, answer in rows for port in ports.split(", ")
    }


def listening(host: Host) -> tuple[set[int], set[int]]:
    """The ports that other hosts can reach, and those that only the host itself can."""
    addresses = [line.split()[3] for line in host.run("ss -ltnH").splitlines()]
    pairs = {(address, int(port)) for address, _, port in (a.rpartition(":") for a in addresses)}
    others = {port for address, port in pairs if "127.0.0.1" not in address}
    return others, {port for _, port in pairs} - others


def in_range(ports: set[int]) -> set[int]:
    """The ports of workers and drivers, which the cluster file keeps in a range."""
    return {port for port in ports if 10100 <= port <= 10999}


BESIDE = """
import pytorch_lightning as pl
import torch


def make_data(config, data):
    return pl.LightningDataModule.from_datasets([torch.zeros(1)], [torch.zeros(1)])
"""


def hosts_of_trials(lab: Lab, name: str) -> dict[str, set[str]]:
    lines = sorted(notes(lab, name), key=lambda line: line[1])
    groups = itertools.groupby(lines, key=lambda line: line[1])
    return {x: {host for host, _, _ in group} for x, group in groups}


def check_nothing_lost(lab: Lab, name: str) -> None:
    """Check that every trial has its whole curve, and counts once."""
    study = load_study(lab.share / "sweeps" / name)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * NUM_TRIALS
    assert [row["state"] for row in read_rows(lab, name)] == ["COMPLETE"] * NUM_TRIALS
    curves = [
        [round(value - trial.params["x"], 4) for value in trial.intermediate_values.values()]
        for trial in study.trials
    ]
    assert all(list(t.intermediate_values) == [*range(1, NUM_EPOCHS + 1)] for t in study.trials)
    assert curves == [curves[0]] * NUM_TRIALS
    # Only epochs that were not recorded when power or network failed were trained again.
    again = Counter((x, epoch) for _, x, epoch in notes(lab, name))
    repeated = Counter(x for (x, _), count in again.items() for _ in range(count - 1))
    assert max(repeated.values(), default=0) <= 2


def read_rows(lab: Lab, name: str) -> list[dict[str, str]]:
    with (lab.share / "sweeps" / name / "trials.csv").open() as file:
        return list(csv.DictReader(file))
