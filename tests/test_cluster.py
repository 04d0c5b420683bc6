"""The cluster: what it holds, and what answers where."""

import socket
from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from tune_jobs.engine.cluster import cluster_nodes, running_ray
from tune_jobs.engine.resources import plan_resources
from tune_jobs.engine.settings import Settings, SettingsError

HEAD = {"CPU": 4.0, "node:__internal_head__": 1.0}


def set_cluster(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], *groups: NodeGroupConfig
) -> None:
    listed = [{"Alive": True, "Resources": node} for node in nodes]
    config = ClusterConfig(node_group_configs=groups) if groups else None
    monkeypatch.setattr(ray, "nodes", lambda: [*listed, {"Alive": False, "Resources": {"CPU": 9}}])
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)


def test_nodes_that_live_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cluster(monkeypatch, [HEAD, {"CPU": 8.0}])
    assert cluster_nodes() == [HEAD, {"CPU": 8.0}]


def test_nodes_that_could_be_started_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    group = NodeGroupConfig(name="gpu", resources={"CPU": 8, "GPU": 1}, max_count=3)
    set_cluster(monkeypatch, [{"CPU": 8.0, "GPU": 1.0}, HEAD], group)
    assert cluster_nodes() == [HEAD, *[{"CPU": 8, "GPU": 1}] * 3]


def test_gpus_that_could_be_started_make_auto_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    group = NodeGroupConfig(name="gpu", resources={"CPU": 8, "GPU": 1}, max_count=-1)
    set_cluster(monkeypatch, [HEAD], group)
    resources = plan_resources(Settings(), cluster_nodes())
    assert resources.gpus == 0.25
    assert resources.slots == 4_000


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "must not be a Ray Client's, got ray://head:10001"),
        ("head", "must be HOST:PORT, 'auto' or 'local', got 'head'"),
        ("head:", "must be HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999"),
    ],
)
def test_address_that_cannot_be_is_refused(address: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message), running_ray(address):
        pass


def test_address_where_nothing_answers_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(**kwargs: Any) -> None:
        raise AssertionError("Ray would try for minutes")

    monkeypatch.setattr(ray, "init", must_not_run)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and never listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SettingsError, match="check --address"), running_ray(address):
            pass
