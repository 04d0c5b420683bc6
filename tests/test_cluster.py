"""The cluster: what it holds, and what answers where."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.exceptions import RuntimeEnvSetupError

from tune_jobs.engine.cluster import connection as cluster_module
from tune_jobs.engine.cluster.connection import (
    Autoscaler,
    NodeType,
    read_autoscaler,
    read_capacity,
    running_ray,
    wait_for_workers,
)
from tune_jobs.engine.cluster.runtime_env import code_to_ship
from tune_jobs.engine.cluster.slots import plan_resources
from tune_jobs.engine.core.settings import Settings, SettingsError

HEAD = {"CPU": 4.0, "node:__internal_head__": 1.0}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0}
GPU_TYPE = NodeType("gpu", GPU_NODE, 3)
RAY_UPS_FILE = """
provider: {type: aws}
max_workers: 5
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {}}
  gpu: {resources: {CPU: 8, GPU: 1}, max_workers: 3, node_config: {}}
  cpu: {resources: {CPU: 2}, node_config: {}}
"""


def set_nodes(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[str | None, dict[str, float]]) -> None:
    """Nodes, each with the type that the autoscaler has started it as."""
    listed = [
        {
            "Alive": True,
            "Resources": resources,
            "Labels": {} if node_type is None else {"ray.io/node-group": node_type},
            "NodeID": f"{number}",
            "NodeManagerHostname": "host",
            "NodeManagerAddress": "10.0.0.1",
        }
        for number, (node_type, resources) in enumerate(nodes)
    ]
    dead = {"Alive": False, "Resources": {"CPU": 9}, "Labels": {"ray.io/node-group": "gpu"}}
    monkeypatch.setattr(ray, "nodes", lambda: [*listed, dead])


def test_nodes_that_live_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, (None, HEAD), (None, {"CPU": 8.0}))
    capacity = read_capacity(Autoscaler())
    assert capacity.alive == {"0": HEAD, "1": {"CPU": 8.0}}
    assert capacity.names == {"0": "host (10.0.0.1)", "1": "host (10.0.0.1)"}  # of one machine
    assert capacity.nodes == [HEAD, {"CPU": 8.0}]


def test_nodes_that_could_be_started_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, ("gpu", GPU_NODE), ("head", HEAD))
    capacity = read_capacity(Autoscaler((GPU_TYPE,)))
    assert capacity.startable == (("gpu", GPU_NODE),) * 2
    assert capacity.nodes == [GPU_NODE, HEAD, *[GPU_NODE] * 2]


def test_no_more_nodes_are_counted_than_the_cluster_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_nodes(monkeypatch, ("gpu", GPU_NODE), ("head", HEAD))
    other = NodeType("cpu", {"CPU": 2}, 3)
    capacity = read_capacity(Autoscaler((GPU_TYPE, other), most=4))
    assert [name for name, _ in capacity.startable] == ["gpu", "gpu", "cpu"]


def test_nodes_of_ones_own_come_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, ("head", HEAD), (None, {"CPU": 64.0}), *[("gpu", GPU_NODE)] * 3)
    capacity = read_capacity(Autoscaler((GPU_TYPE,), most=3))
    assert capacity.nodes == [HEAD, {"CPU": 64.0}, *[GPU_NODE] * 3]


def test_gpus_that_could_be_started_make_auto_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, ("head", HEAD))
    capacity = read_capacity(Autoscaler((NodeType("gpu", GPU_NODE, -1),)))
    resources = plan_resources(Settings(), capacity.nodes)
    assert resources.gpus == 0.25
    assert resources.slots == 4_000


def test_node_types_are_those_that_ray_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    group = NodeGroupConfig(name="gpu", resources={"CPU": 8, "GPU": 1}, max_count=3)
    config = ClusterConfig(node_group_configs=[group])
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)
    assert read_autoscaler() == Autoscaler((GPU_TYPE,))


@contextmanager
def autoscaler_process(file: Path, gcs_address: str) -> Iterator[None]:
    """A process with the arguments of Ray's."""
    options = [f"--gcs-address={gcs_address}", f"--autoscaling-config={file}"]
    command = [sys.executable, "-c", "print(flush=True); input()", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(b"\n")


@pytest.fixture
def on_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as a driver on the head of a cluster at 10.0.0.1:6379."""
    set_nodes(monkeypatch, ("head", HEAD))
    context = SimpleNamespace(gcs_address="10.0.0.1:6379", get_node_id=lambda: "0")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: None)


@pytest.mark.usefixtures("on_head")
def test_node_types_of_ray_up_are_in_the_file_of_its_autoscaler(tmp_path: Path) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(RAY_UPS_FILE)
    assert read_autoscaler() == Autoscaler()
    with autoscaler_process(file, "10.0.0.2:6379"):  # another cluster's
        assert read_autoscaler() == Autoscaler()
    with autoscaler_process(file, "10.0.0.1:6379"):
        assert read_autoscaler() == Autoscaler(
            (NodeType("gpu", {"CPU": 8, "GPU": 1}, 3), NodeType("cpu", {"CPU": 2}, 5)), most=5
        )


@pytest.mark.usefixtures("on_head")
def test_workers_of_ones_own_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text("provider: {type: local, head_ip: a, worker_ips: [b, c]}")
    with autoscaler_process(file, "10.0.0.1:6379"):
        autoscaler = read_autoscaler()
    assert autoscaler == Autoscaler(num_own=2)
    join = partial(set_nodes, monkeypatch, ("head", HEAD), (None, {"CPU": 4.0}))
    monkeypatch.setattr(cluster_module.time, "sleep", lambda seconds: join())
    wait_for_workers(autoscaler)
    wait_for_workers(autoscaler)
    assert capsys.readouterr().out == "0 of 2 workers have joined; waiting for one\n"


def test_code_is_sent_to_a_cluster_that_is_joined_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options["runtime_env"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster_module, "canonicalize_bootstrap_address", lambda address: address)
    with running_ray(None, tmp_path):
        pass
    with (
        socket.create_server(("127.0.0.1", 0)) as cluster,
        running_ray(f"127.0.0.1:{cluster.getsockname()[1]}", tmp_path),
    ):
        pass
    assert started == [None, code_to_ship(tmp_path)]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeEnvSetupError("too large"), r"code beside the job cannot be sent[^;]*\ntoo large"),
        (PermissionError("secret"), "code beside the job cannot be sent to the cluster: secret"),
        (RuntimeError("Version mismatch"), "can be joined on this machine: Version mismatch"),
        (ConnectionError("gone"), "no Ray cluster answers on this machine: gone; check"),
    ],
)
def test_why_a_cluster_is_not_joined_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def init(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SettingsError, match=message), running_ray(None):
        pass


def test_ray_of_the_user_without_code_for_its_machines_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"Alive": True, "NodeManagerAddress": f"10.0.0.{number}"} for number in (1, 2)]
    context = SimpleNamespace(runtime_env={})
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    with pytest.raises(SettingsError, match="no code to send to its 2 machines"):
        running_ray(None).__enter__()
    context.runtime_env["working_dir"] = "gcs://x.zip"
    with running_ray(None):
        pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head"])
def test_address_of_the_environment_is_checked_as_well(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match="RAY_ADDRESS, must be HOST:PORT"), running_ray(None):
        pass


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
