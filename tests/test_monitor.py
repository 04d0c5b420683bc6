"""What is said of the cluster while a sweep runs."""

from typing import Any

import pytest

import tune_jobs.engine.cluster.monitor
from tune_jobs.engine.cluster.connection import Capacity
from tune_jobs.engine.cluster.monitor import ClusterWatch
from tune_jobs.engine.cluster.slots import Resources, plan_resources
from tune_jobs.engine.core.settings import Settings

HEAD = {"node:__internal_head__": 1.0}
NODE = {"CPU": 4.0, "GPU": 1.0}
SMALL = {"CPU": 1.0}


class Trial:
    def __init__(self, is_finished: bool = False) -> None:
        self.is_finished = lambda: is_finished


class Cluster:
    """A cluster whose nodes come and go."""

    def __init__(self, most: int, *names: str) -> None:
        self.most, self.names = most, set(names)

    def read(self) -> Capacity:
        missing = self.most - len(self.names)
        startable = (("cpu_only", SMALL), *[("gpu_spot", NODE)] * missing)
        alive = {"1": HEAD, **{f"id of {name}": NODE for name in sorted(self.names)}}
        names = {node: node.removeprefix("id of ") for node in alive}
        return Capacity(alive, names, startable)


def watch(cluster: Cluster, most: int | None = None) -> ClusterWatch:
    settings = Settings(gpus_per_trial=0.5, max_concurrent=most)
    return ClusterWatch(plan_resources(settings, cluster.read().nodes), most, cluster.read)


def look(watch: ClusterWatch, monkeypatch: pytest.MonkeyPatch, *trials: Any) -> None:
    monkeypatch.setattr(tune_jobs.engine.cluster.monitor, "PERIOD_S", 0)
    watch.on_step_begin(0, list(trials))


def test_nothing_up_yet_is_said_with_the_type_that_is_started() -> None:
    waits_for = watch(Cluster(4)).describe_wait(20)
    assert waits_for == "0 of 4 GPUs; the autoscaler is starting gpu_spot"


def test_nothing_is_waited_for_where_all_trials_can_run() -> None:
    assert watch(Cluster(4, "a")).describe_wait(2) is None
    assert watch(Cluster(4, "a"), most=2).describe_wait(20) is None
    assert watch(Cluster(4, "a")).describe_wait(3) is not None


def test_cpus_are_counted_where_trials_take_no_gpu() -> None:
    capacity = Capacity({"1": HEAD}, {"1": "head"}, (("small", SMALL),) * 3)
    waits_for = ClusterWatch(Resources(1, 0, 3), None, lambda: capacity).describe_wait(3)
    assert waits_for == "0 of 3 CPUs; the autoscaler is starting small"


def test_nodes_that_come_and_go_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(2)
    watched = watch(cluster)
    cluster.names |= {"a"}
    look(watched, monkeypatch, Trial(), Trial(), Trial())
    cluster.names |= {"b"}
    look(watched, monkeypatch, Trial(), Trial(), Trial())
    cluster.names -= {"a"}
    look(watched, monkeypatch, Trial(), Trial(is_finished=True))
    look(watched, monkeypatch, Trial())
    assert capsys.readouterr().out.splitlines() == [
        "Node a has come: 1 of 2 GPUs; the autoscaler is starting gpu_spot",
        "Node b has come: 2 of 2 GPUs",
        "Node a is gone: 1 of 2 GPUs",
    ]


def test_node_that_was_not_planned_with_gives_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(0, "a")
    watched, limited = watch(cluster), watch(cluster, most=3)
    assert watched.slots == 2
    cluster.names |= {"b"}
    for each in (watched, limited):
        look(each, monkeypatch)
    assert (watched.slots, limited.slots) == (4, 3)
    cluster.names -= {"a", "b"}
    look(watched, monkeypatch)
    assert watched.slots == 2  # what was planned: Tune waits for its nodes


def test_cluster_is_not_asked_at_every_step() -> None:
    class Asked(Cluster):
        count = 0

        def read(self) -> Capacity:
            self.count += 1
            return super().read()

    cluster = Asked(2, "a")
    watched = ClusterWatch(Resources(1, 0.5, 4), None, cluster.read)
    for _ in range(100):
        watched.on_step_begin(0, [])
    assert cluster.count == 2
