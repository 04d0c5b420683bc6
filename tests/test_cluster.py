"""The cluster: what it holds, how it is joined, and which addresses are refused."""

import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.exceptions import GetTimeoutError, RuntimeEnvSetupError

from tune_jobs.engine.cluster import capacity as capacity_module
from tune_jobs.engine.cluster import connection
from tune_jobs.engine.cluster.capacity import (
    Autoscaler,
    NodeType,
    read_autoscaler,
    read_capacity,
    wait_for_workers,
)
from tune_jobs.engine.cluster.connection import running_ray
from tune_jobs.engine.cluster.runtime_env import code_to_ship
from tune_jobs.engine.cluster.slots import plan_resources
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.settings import Settings

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
    """Set the living nodes, each with its type if the autoscaler has started it."""
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


def test_capacity_counts_living_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, (None, HEAD), (None, {"CPU": 8.0}))
    capacity = read_capacity(Autoscaler())
    assert capacity.alive == {"0": HEAD, "1": {"CPU": 8.0}}
    assert capacity.names == {"0": "host (10.0.0.1)", "1": "host (10.0.0.1)"}  # of one host
    assert capacity.nodes == [HEAD, {"CPU": 8.0}]


def test_capacity_counts_startable_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has started is not counted as startable, too."""
    set_nodes(monkeypatch, ("gpu", GPU_NODE), ("head", HEAD))
    capacity = read_capacity(Autoscaler((GPU_TYPE,)))
    assert capacity.startable == (("gpu", GPU_NODE),) * 2
    assert capacity.nodes == [GPU_NODE, HEAD, *[GPU_NODE] * 2]


def test_capacity_limited_by_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more nodes are counted than the cluster may have."""
    set_nodes(monkeypatch, ("gpu", GPU_NODE), ("head", HEAD))
    other = NodeType("cpu", {"CPU": 2}, 3)
    capacity = read_capacity(Autoscaler((GPU_TYPE, other), most=4))
    assert [name for name, _ in capacity.startable] == ["gpu", "gpu", "cpu"]


def test_capacity_adds_own_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that the user has started come on top of the autoscaler's."""
    set_nodes(monkeypatch, ("head", HEAD), (None, {"CPU": 64.0}), *[("gpu", GPU_NODE)] * 3)
    capacity = read_capacity(Autoscaler((GPU_TYPE,), most=3))
    assert capacity.nodes == [HEAD, {"CPU": 64.0}, *[GPU_NODE] * 3]


def test_auto_share_startable_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A type without a limit counts as 1,000 nodes."""
    set_nodes(monkeypatch, ("head", HEAD))
    capacity = read_capacity(Autoscaler((NodeType("gpu", GPU_NODE, -1),)))
    resources = plan_resources(Settings(), capacity.nodes)
    assert resources.gpus == 0.25
    assert resources.slots == 4_000


def test_autoscaler_types_from_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    group = NodeGroupConfig(name="gpu", resources={"CPU": 8, "GPU": 1}, max_count=3)
    config = ClusterConfig(node_group_configs=[group])
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)
    assert read_autoscaler() == Autoscaler((GPU_TYPE,))


@pytest.fixture
def bootstrap_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `ray up` leaves the cluster file; this process is a driver on that cluster's head."""
    set_nodes(monkeypatch, ("head", HEAD))
    context = SimpleNamespace(get_node_id=lambda: "0")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: None)
    file = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(capacity_module, "BOOTSTRAP_FILE", str(file))
    return file


def test_bootstrap_file_node_types(bootstrap_file: Path) -> None:
    """The types of `ray up` are in the file that it leaves on the head."""
    assert read_autoscaler() == Autoscaler()
    bootstrap_file.write_text(RAY_UPS_FILE)
    assert read_autoscaler() == Autoscaler(
        (NodeType("gpu", {"CPU": 8, "GPU": 1}, 3), NodeType("cpu", {"CPU": 2}, 5)), most=5
    )


def test_bootstrap_file_in_home(bootstrap_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bootstrap_file.parent))
    monkeypatch.setattr(capacity_module, "BOOTSTRAP_FILE", f"~/{bootstrap_file.name}")
    bootstrap_file.write_text(RAY_UPS_FILE)
    assert read_autoscaler().most == 5


@pytest.mark.parametrize("text", ["", "provider: aws", "[1, 2]", "a: {", "provider: {type: gcp}"])
def test_bootstrap_file_of_others(text: str, bootstrap_file: Path) -> None:
    """A file that `ray up` did not write says nothing: the living nodes count."""
    bootstrap_file.write_text(text)
    assert read_autoscaler() == Autoscaler()


def test_bootstrap_file_without_head(bootstrap_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read on the cluster's head alone: without one, the living nodes count."""
    bootstrap_file.write_text(RAY_UPS_FILE)
    set_nodes(monkeypatch, (None, {"CPU": 4.0}))
    assert read_autoscaler() == Autoscaler()


class Task:
    """A remote function of Ray that runs here, as on the head."""

    def __init__(self, function: Any, **options: Any) -> None:
        self.remote = function
        self.options = options


@pytest.mark.parametrize("answers", [True, False])
def test_bootstrap_file_read_from_worker(
    answers: bool, bootstrap_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver on another node asks the head; if it does not answer, the living nodes count."""
    bootstrap_file.write_text(RAY_UPS_FILE)
    set_nodes(monkeypatch, ("head", HEAD), (None, {"CPU": 4.0}))
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "1")
    )
    asked: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda function: Task(function)

    def get(autoscaler: Any, timeout: float) -> Any:
        if not answers:
            raise GetTimeoutError("no answer")
        return autoscaler

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", get)
    assert read_autoscaler().most == (5 if answers else None)
    assert asked == [{"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}]


def test_own_machines_waited_for(bootstrap_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray up` returns before the user's own machines have joined."""
    bootstrap_file.write_text("provider: {type: local, head_ip: a, worker_ips: [b, c]}")
    autoscaler = read_autoscaler()
    assert autoscaler == Autoscaler(num_own=2)
    join = partial(set_nodes, monkeypatch, ("head", HEAD), (None, {"CPU": 4.0}))
    monkeypatch.setattr(capacity_module.time, "sleep", lambda seconds: join())
    notices: list[str] = []
    wait_for_workers(autoscaler, notices.append)
    wait_for_workers(autoscaler, notices.append)
    assert notices == ["0 of 2 workers have joined; waiting for one"]


def test_join_sends_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code is sent to a cluster that is joined, not to a Ray that starts here."""
    started: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options["runtime_env"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(connection, "would_join", lambda address: address is not None)
    with running_ray(None, tmp_path) as joined:
        assert not joined
    with (
        socket.create_server(("127.0.0.1", 0)) as cluster,
        running_ray(f"127.0.0.1:{cluster.getsockname()[1]}", tmp_path) as joined,
    ):
        assert joined
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
def test_join_failure_message(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def init(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SettingsError, match=message), running_ray(None):
        pass


def test_user_ray_without_code_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that the user has started on several machines must send the code itself."""
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
def test_address_of_environment_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
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
def test_address_invalid_refused(address: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message), running_ray(address):
        pass


def test_address_without_answer_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once: Ray itself would try for minutes."""

    def must_not_run(**kwargs: Any) -> None:
        raise AssertionError("Ray would try for minutes")

    monkeypatch.setattr(ray, "init", must_not_run)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(SettingsError, match="check --address"), running_ray(address):
            pass
