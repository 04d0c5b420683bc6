"""What the nodes of a cluster hold: those that are alive, and those that may start."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_jobs.engine.cluster.internals import HEAD_RESOURCE, autoscaler_config
from tune_jobs.engine.cluster.slots import Node, Resources, count_slots
from tune_jobs.engine.core.errors import SettingsError

__all__ = [
    "Autoscaler",
    "Capacity",
    "NodeType",
    "check_shared",
    "read_autoscaler",
    "read_capacity",
    "wait_for_workers",
]

PROBE_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 300.0
NODE_TYPE_LABEL = "ray.io/node-group"  # set by the autoscaler
MAX_COUNTED_NODES = 1_000  # of a group without a limit: so many are as good as any number
BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"  # where `ray up` leaves the cluster file on the head


@dataclass(frozen=True)
class NodeType:
    """A type of nodes that the autoscaler may start.

    Attributes:
        name: Its name in the cluster file.
        node: The CPUs and GPUs of each.
        most: How many there may be; below 0: any number.
    """

    name: str
    node: Node
    most: int


@dataclass(frozen=True)
class Autoscaler:
    """What may start nodes.

    Attributes:
        node_types: The types that it may start.
        most: How many nodes there may be of all types together; None: no limit.
        num_own: Machines of the user's own that are to join; what they hold is not known before.
    """

    node_types: tuple[NodeType, ...] = ()
    most: int | None = None
    num_own: int = 0


@dataclass(frozen=True)
class Capacity:
    """What a cluster holds, and what it could hold.

    Attributes:
        alive: CPUs and GPUs of each node that is alive, by Ray's id of it.
        names: The name and address of each of these.
        startable: What the autoscaler could start besides: of each node the name of its type, and
            its CPUs and GPUs.
    """

    alive: Mapping[str, Node]
    names: Mapping[str, str]
    startable: tuple[tuple[str, Node], ...] = ()

    @property
    def nodes(self) -> list[Node]:
        """All of them."""
        return [*self.alive.values(), *(node for _, node in self.startable)]


def read_autoscaler() -> Autoscaler:
    """What the autoscaler of the cluster that this driver has joined may start.

    Ray has a place for this. `ray up` does not use it, but leaves the cluster file on the head.
    """
    config = autoscaler_config()
    if config is not None:
        groups = config.node_group_configs
        types = (NodeType(group.name, dict(group.resources), group.max_count) for group in groups)
        return Autoscaler(tuple(types))
    is_head = {node["NodeID"]: HEAD_RESOURCE in node["Resources"] for node in living_nodes()}
    if not any(is_head.values()):
        return Autoscaler()
    if is_head.get(ray.get_runtime_context().get_node_id()):
        return _autoscaler_on_head()
    task = ray.remote(num_cpus=0, resources={HEAD_RESOURCE: 0.001})(_autoscaler_on_head)
    try:
        autoscaler: Autoscaler = ray.get(task.remote(), timeout=PROBE_TIMEOUT_S)
    except RayError:
        return Autoscaler()  # the nodes that are alive count
    return autoscaler


def read_capacity(autoscaler: Autoscaler) -> Capacity:
    """The nodes that are alive, and the nodes that the autoscaler could start besides."""
    living = living_nodes()
    counts = Counter(node["Labels"].get(NODE_TYPE_LABEL) for node in living)
    startable: list[tuple[str, Node]] = []
    for node_type in autoscaler.node_types:
        most = MAX_COUNTED_NODES if node_type.most < 0 else node_type.most
        startable += [(node_type.name, node_type.node)] * (most - counts[node_type.name])
    if autoscaler.most is not None:
        started = sum(counts[node_type.name] for node_type in autoscaler.node_types)
        startable = startable[: max(0, autoscaler.most - started)]
    return Capacity(
        alive={node["NodeID"]: node["Resources"] for node in living},
        names={node["NodeID"]: _name_of(node) for node in living},
        startable=tuple(startable),
    )


def wait_for_workers(
    autoscaler: Autoscaler, notify: Callable[[str], None] = lambda text: None
) -> None:
    """Wait for the first of the user's own machines: what they hold is known when they join.

    `ray up` returns before they do. The slots of machines that join later count from then on.
    """
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    has_notified = False
    while autoscaler.num_own and time.monotonic() < deadline:
        if any(HEAD_RESOURCE not in node["Resources"] for node in living_nodes()):
            return
        if not has_notified:
            notify(f"0 of {autoscaler.num_own} workers have joined; waiting for one")
            has_notified = True
        time.sleep(1)


def check_shared(path: str, resources: Resources) -> None:
    """Check that every living node that holds trials sees a folder, and may write to it.

    Ray itself notices at the first checkpoint of a trial on another node.

    Raises:
        SettingsError: A node does not.
    """

    def probe() -> str | None:  # a local function, so that it goes to the node by value
        try:
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            return str(error.strerror)
        return None

    here = ray.get_runtime_context().get_node_id()
    answers = []
    for node in living_nodes():
        if node["NodeID"] != here and count_slots([node["Resources"]], resources):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, scheduling_strategy=there)(probe)
            answers.append((_name_of(node), task.remote()))
    for name, answer in answers:
        try:
            trouble = ray.get(answer, timeout=PROBE_TIMEOUT_S)
        except RayError:
            continue  # a node that does not answer says nothing about the folder; its trials will
        if trouble:
            raise SettingsError(
                f"storage_path {path} cannot be used on node {name} ({trouble}); name a folder "
                "that all nodes mount, or a URL, with --storage-path or TUNE_JOBS_STORAGE_PATH."
            )


def living_nodes() -> list[dict[str, Any]]:
    """Ray's descriptions of the nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def _name_of(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _autoscaler_on_head() -> Autoscaler:
    """What the cluster file on the head says; to be called there."""
    import yaml  # here: few sweeps need it, and Ray brings it

    try:
        return _autoscaler_of(yaml.safe_load(Path(BOOTSTRAP_FILE).expanduser().read_text()))
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return Autoscaler()  # `ray up` did not write it: the nodes that are alive count


def _autoscaler_of(config: Mapping[str, Any]) -> Autoscaler:
    """What a cluster file says, in which `ray up` has filled in its defaults."""
    if config["provider"]["type"] == "local":
        return Autoscaler(num_own=len(config["provider"].get("worker_ips", [])))
    most = config["max_workers"]
    types = (
        NodeType(name, node_type["resources"], node_type.get("max_workers", most))
        for name, node_type in config["available_node_types"].items()
        if name != config["head_node_type"]
    )
    return Autoscaler(tuple(types), most)
