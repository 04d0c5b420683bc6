"""The Ray cluster: joined or started for a sweep, and what its nodes hold."""

import logging
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ray
import yaml
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_jobs.engine.cluster.runtime_env import code_to_ship
from tune_jobs.engine.cluster.slots import Node, Resources, count_slots
from tune_jobs.engine.core.settings import SettingsError

__all__ = [
    "Autoscaler",
    "Capacity",
    "NodeType",
    "check_shared",
    "read_autoscaler",
    "read_capacity",
    "running_ray",
    "wait_for_workers",
]

# Read by the driver when Ray and Tune start; a value that the user has set stays.
DRIVER_ENV = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's live table; the engine prints a line a trial instead
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the summary gives the log of each failed trial
    # Else a trial moves into a folder of its own, and a user's relative paths lead nowhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and TensorBoard would say everything thrice
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of trials that fail while the sweep ends
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `interruptible` knows better how to end
}

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 300.0
NODE_TYPE_LABEL = "ray.io/node-group"  # set by the autoscaler
HEAD_RESOURCE = "node:__internal_head__"
MAX_COUNTED_NODES = 1_000  # a group without a limit: enough to know that there is no limit


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
        most: How many there may be of all types together; None: no limit.
        num_own: Machines of the user's own that are to join; what they hold is not known before.
    """

    node_types: tuple[NodeType, ...] = ()
    most: int | None = None
    num_own: int = 0


@dataclass(frozen=True)
class Capacity:
    """What a cluster holds, and what it could.

    Attributes:
        alive: CPUs and GPUs of each node that lives, by Ray's id of it.
        names: What people call each of these.
        startable: What the autoscaler could start besides: each node's CPUs and GPUs, and the name
            of its type.
    """

    alive: Mapping[str, Node]
    names: Mapping[str, str]
    startable: tuple[tuple[str, Node], ...] = ()

    @property
    def nodes(self) -> list[Node]:
        """All of them."""
        return [*self.alive.values(), *(node for _, node in self.startable)]


@contextmanager
def running_ray(address: str | None, job: Path | None = None) -> Iterator[None]:
    """Join a cluster or start Ray here; what was started ends, what was running goes on.

    Args:
        address: A cluster's; None: the one this machine belongs to, else Ray starts here.
        job: The folder of the job's file, which a cluster's nodes are sent; None: the current one.

    Raises:
        SettingsError: No cluster answers there, or the job's folder cannot be sent.
    """
    _check_address(address or os.environ.get("RAY_ADDRESS"))
    for variable, value in DRIVER_ENV.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the summary says it
    if ray.is_initialized():  # by the user, say in a notebook: theirs to end
        _check_code_is_sent()
        yield
        return
    try:
        joins = canonicalize_bootstrap_address(address) is not None
        # The dashboard of a Ray that lives as long as one sweep would only cost time.
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=code_to_ship(job) if joins else None,
        )
    except (RuntimeEnvSetupError, OSError, RayError, ValueError, RuntimeError) as error:
        ray.shutdown()
        if isinstance(error, RuntimeEnvSetupError | PermissionError):
            raise SettingsError(
                f"the code beside the job cannot be sent to the cluster: {error}; "
                "move what is no code out of its folder, or use `ray job submit --working-dir`."
            ) from error
        _refuse_address(address, error)
    try:
        yield
    finally:
        ray.shutdown()


def read_autoscaler() -> Autoscaler:
    """What the cluster's autoscaler may start.

    Ray has a place where it may be told. `ray up` does not: it leaves the cluster file on the head,
    for the autoscaler's process, and there it is read.
    """
    config = ray._private.state.state.get_cluster_config()
    if config is not None:
        groups = config.node_group_configs
        types = (NodeType(group.name, dict(group.resources), group.max_count) for group in groups)
        return Autoscaler(tuple(types))
    is_head = {node["NodeID"]: HEAD_RESOURCE in node["Resources"] for node in _living_nodes()}
    if not any(is_head.values()):
        return Autoscaler()
    if is_head.get(ray.get_runtime_context().get_node_id()):
        return _autoscaler_on_head()
    task = ray.remote(num_cpus=0, resources={HEAD_RESOURCE: 0.001})(_autoscaler_on_head)
    try:
        autoscaler: Autoscaler = ray.get(task.remote(), timeout=PROBE_TIMEOUT_S)
    except RayError:
        return Autoscaler()  # what lives counts
    return autoscaler


def read_capacity(autoscaler: Autoscaler) -> Capacity:
    """The nodes that live, and those that the autoscaler could start besides."""
    living = _living_nodes()
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


def wait_for_workers(autoscaler: Autoscaler) -> None:
    """Wait for the first of the user's own machines: what they hold is known when they join.

    `ray up` returns before they do. Those that come later give their slots then.
    """
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    is_told = False
    while autoscaler.num_own and time.monotonic() < deadline:
        if any(HEAD_RESOURCE not in node["Resources"] for node in _living_nodes()):
            return
        if not is_told:
            print(f"0 of {autoscaler.num_own} workers have joined; waiting for one", flush=True)
            is_told = True
        time.sleep(1)


def check_shared(path: str, resources: Resources) -> None:
    """Check that every node that lives and holds trials sees a folder, and may write to it.

    Ray itself notices at the first checkpoint of a trial on another node.

    Raises:
        SettingsError: One does not.
    """

    def probe() -> str | None:  # inside: so it goes to the node by value
        try:
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            return str(error.strerror)
        return None

    here = ray.get_runtime_context().get_node_id()
    answers = []
    for node in _living_nodes():
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


def _check_code_is_sent() -> None:
    """Check that a Ray that the user has joined brings our code, and theirs, to other machines."""
    context = ray.get_runtime_context()
    if {"working_dir", "py_modules"} & context.runtime_env.keys():
        return
    addresses = {node["NodeManagerAddress"] for node in _living_nodes()}
    if len(addresses) > 1:
        raise SettingsError(
            f"Ray was started with no code to send to its {len(addresses)} machines; leave "
            'ray.init() to the sweep, or give it runtime_env={"working_dir": "."}.'
        )


def _check_address(address: str | None) -> None:
    """Knock first: Ray itself tries for minutes to reach a cluster that is not there."""
    if address is None or address in ("auto", "local"):
        return
    if address.startswith("ray://"):
        raise SettingsError(
            f"address must not be a Ray Client's, got {address}: the sweep would run on another "
            "machine than its files; run the job on the cluster with `ray job submit`."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise SettingsError(
            f"address, or RAY_ADDRESS, must be HOST:PORT, 'auto' or 'local', got {address!r}."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        _refuse_address(address, error)


def _refuse_address(address: str | None, error: Exception) -> NoReturn:
    where = f"at {address}" if address else "on this machine"
    trouble = "answers" if isinstance(error, OSError | OverflowError) else "can be joined"
    raise SettingsError(
        f"no Ray cluster {trouble} {where}: {error}; check --address and RAY_ADDRESS."
    ) from error


def _name_of(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _autoscaler_on_head() -> Autoscaler:
    """To be called on the head."""
    file = _autoscalers_file(ray.get_runtime_context().gcs_address)
    if file is None:
        return Autoscaler()
    config = yaml.safe_load(file.read_text())
    if config["provider"]["type"] == "local":
        return Autoscaler(num_own=len(config["provider"].get("worker_ips", [])))
    most = config["max_workers"]
    types = (
        NodeType(name, node_type["resources"], node_type.get("max_workers", most))
        for name, node_type in config["available_node_types"].items()
        if name != config["head_node_type"]
    )
    return Autoscaler(tuple(types), most)


def _autoscalers_file(gcs_address: str) -> Path | None:
    """The cluster file that this cluster's autoscaler, a process of this machine, goes by."""
    option = "--autoscaling-config="
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            arguments = process.read_text(errors="replace").split("\0")
            if f"--gcs-address={gcs_address}" in arguments:
                for argument in arguments:
                    if argument.startswith(option):
                        return Path(argument.removeprefix(option)).expanduser()
    return None
