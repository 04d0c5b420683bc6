"""What the monitor of a cluster notifies of, and the slots that it counts."""

from collections.abc import Callable
from typing import Any

import pytest

from tune_jobs.engine.cluster import monitor as monitor_module
from tune_jobs.engine.cluster.capacity import Capacity
from tune_jobs.engine.cluster.monitor import ClusterMonitor
from tune_jobs.engine.cluster.slots import Resources, plan_resources
from tune_jobs.engine.core.settings import Settings

HEAD = {"node:__internal_head__": 1.0}
NODE = {"CPU": 4.0, "GPU": 1.0}
SMALL = {"CPU": 1.0}


class Trial:
    def __init__(self, is_finished: bool = False) -> None:
        self.is_finished = lambda: is_finished


class Cluster:
    """A cluster whose nodes join and leave."""

    def __init__(self, most: int, *names: str) -> None:
        self.most, self.names = most, set(names)

    def read(self) -> Capacity:
        missing = self.most - len(self.names)
        startable = (("cpu_only", SMALL), *[("gpu_spot", NODE)] * missing)
        alive = {"1": HEAD, **{f"id of {name}": NODE for name in sorted(self.names)}}
        names = {node: node.removeprefix("id of ") for node in alive}
        return Capacity(alive, names, startable)


def monitor_of(
    cluster: Cluster, most: int | None = None, notify: Callable[[str], None] = lambda text: None
) -> ClusterMonitor:
    settings = Settings(gpus_per_trial=0.5, max_concurrent=most)
    resources = plan_resources(settings, cluster.read().nodes)
    return ClusterMonitor(resources, most, cluster.read, notify)


def step(monitor: ClusterMonitor, monkeypatch: pytest.MonkeyPatch, *trials: Any) -> None:
    monkeypatch.setattr(monitor_module, "PERIOD_S", 0)
    monitor.on_step_begin(0, list(trials))


def test_monitor_names_starting_type() -> None:
    """No node has joined yet."""
    waits_for = monitor_of(Cluster(4)).describe_wait(20)
    assert waits_for == "0 of 4 GPUs; the autoscaler is starting gpu_spot"


def test_monitor_waits_for_nothing() -> None:
    """Nothing is waited for only where all remaining trials have a slot."""
    assert monitor_of(Cluster(4, "a")).describe_wait(2) is None
    assert monitor_of(Cluster(4, "a"), most=2).describe_wait(20) is None
    assert monitor_of(Cluster(4, "a")).describe_wait(3) is not None


def test_monitor_counts_cpus() -> None:
    """Trials without a GPU wait for CPUs."""
    capacity = Capacity({"1": HEAD}, {"1": "head"}, (("small", SMALL),) * 3)
    waits_for = ClusterMonitor(Resources(1, 0, 3), None, lambda: capacity).describe_wait(3)
    assert waits_for == "0 of 3 CPUs; the autoscaler is starting small"


def test_monitor_notifies_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(2)
    notices: list[str] = []
    monitor = monitor_of(cluster, notify=notices.append)
    cluster.names |= {"a"}
    step(monitor, monkeypatch, Trial(), Trial(), Trial())
    cluster.names |= {"b"}
    step(monitor, monkeypatch, Trial(), Trial(), Trial())
    cluster.names -= {"a"}
    step(monitor, monkeypatch, Trial(), Trial(is_finished=True))
    step(monitor, monkeypatch, Trial())
    assert notices == [
        "Node a has joined: 1 of 2 GPUs; the autoscaler is starting gpu_spot",
        "Node b has joined: 2 of 2 GPUs",
        "Node a has left: 1 of 2 GPUs",
    ]


def test_monitor_tells_wait() -> None:
    notices: list[str] = []
    monitor_of(Cluster(4, "a"), notify=notices.append).tell_wait(2)
    assert not notices
    monitor_of(Cluster(4), notify=notices.append).tell_wait(20)
    assert notices == ["0 of 4 GPUs; the autoscaler is starting gpu_spot"]


def test_monitor_adds_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that joins after the sweep was planned adds slots, up to the limit."""
    cluster = Cluster(0, "a")
    monitor, limited = monitor_of(cluster), monitor_of(cluster, most=3)
    assert monitor.slots == 2
    cluster.names |= {"b"}
    for each in (monitor, limited):
        step(each, monkeypatch)
    assert (monitor.slots, limited.slots) == (4, 3)
    cluster.names -= {"a", "b"}
    step(monitor, monkeypatch)
    assert monitor.slots == 2  # the plan: Tune waits for its nodes


def test_monitor_reads_cluster_rarely() -> None:
    class Asked(Cluster):
        count = 0

        def read(self) -> Capacity:
            self.count += 1
            return super().read()

    cluster = Asked(2, "a")
    monitor = ClusterMonitor(Resources(1, 0.5, 4), None, cluster.read)
    for _ in range(100):
        monitor.on_step_begin(0, [])
    assert cluster.count == 2
