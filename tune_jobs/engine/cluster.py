"""The Ray cluster: joined or started for a sweep, and what its nodes hold."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import ray

from tune_jobs.engine.resources import Node
from tune_jobs.engine.settings import SettingsError

__all__ = ["cluster_nodes", "running_ray"]

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
MAX_COUNTED_NODES = 1_000  # a group without a limit: enough to know that there is no limit


@contextmanager
def running_ray(address: str | None) -> Iterator[None]:
    """Join a cluster or start Ray here; what was started ends, what was running goes on.

    Args:
        address: A cluster's; None: the one this machine belongs to, else Ray starts here.

    Raises:
        SettingsError: No cluster answers there.
    """
    _check_address(address)
    for variable, value in DRIVER_ENV.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the summary says it
    if ray.is_initialized():  # by the user, say in a notebook: theirs to end
        yield
        return
    try:
        # The dashboard of a Ray that lives as long as one sweep would only cost time.
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        _refuse_address(address, error)
    try:
        yield
    finally:
        ray.shutdown()


def cluster_nodes() -> list[Node]:
    """CPUs and GPUs of the nodes that live, and of those that the autoscaler could start."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    startable: list[Node] = []
    config = ray._private.state.state.get_cluster_config()  # None without an autoscaler
    for group in getattr(config, "node_group_configs", ()):
        unlimited = group.max_count < 0
        startable += [dict(group.resources)] * (MAX_COUNTED_NODES if unlimited else group.max_count)
    if not startable:
        return alive
    # Nodes that live were started from these groups, the head apart: count each once.
    heads = [node for node in alive if "node:__internal_head__" in node]
    return [*heads, *startable]


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
    if not host or not port.isdigit():
        raise SettingsError(f"address must be HOST:PORT, 'auto' or 'local', got {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        _refuse_address(address, error)


def _refuse_address(address: str | None, error: Exception) -> NoReturn:
    raise SettingsError(
        f"no Ray cluster answers at {address}: {error}; check --address."
    ) from error
