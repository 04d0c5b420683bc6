"""The Ray cluster of a sweep, joined or started: `running_ray`."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import ray
from ray.exceptions import RayError, RuntimeEnvSetupError

from tune_jobs.engine.cluster.capacity import living_nodes
from tune_jobs.engine.cluster.internals import would_join
from tune_jobs.engine.cluster.runtime_env import code_to_ship
from tune_jobs.engine.core.errors import SettingsError

__all__ = ["running_ray"]

# Read by the driver when Ray and Tune start; a value that the user has set stays.
DRIVER_ENV = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's live table; the engine prints a line per trial instead
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the summary names the log of each failed trial
    # Otherwise a trial moves into a folder of its own, and a user's relative paths are wrong.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and TensorBoard would repeat all results
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of trials that fail while the sweep ends
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `interruptible` handles Ctrl-C
}

RAYS_OWN_ENV = ("RAY_AUTH_MODE", "PYTHONBREAKPOINT")  # set by `ray.init`

CONNECT_TIMEOUT_S = 5.0


@contextmanager
def running_ray(address: str | None, code: Path | None = None) -> Iterator[bool]:
    """Join a cluster, or start Ray on this machine and stop it again.

    The caller's environment, the levels of Ray's loggers and the handler of SIGTERM are restored
    afterwards.

    Args:
        address: A cluster's; None: the cluster this machine belongs to, else Ray starts here.
        code: The folder of the job's file, which is sent to a cluster's nodes; None: the current
            folder.

    Yields:
        Whether the cluster existed before.

    Raises:
        SettingsError: No cluster answers there, or the job's folder cannot be sent.
    """
    _check_address(address or os.environ.get("RAY_ADDRESS"))
    with _environment(), _logger_level("ray"), _logger_level("ray.tune", logging.CRITICAL):
        if ray.is_initialized():  # by the user, in a notebook for example; the user will end it
            _check_code_is_sent()
            yield True
            return
        with _sigterm_handler():
            joins = _init(address, code)
            try:
                yield joins
            finally:
                ray.shutdown()


def _init(address: str | None, code: Path | None) -> bool:
    try:
        joins = would_join(address)
        # A dashboard would cost time for a Ray that lives no longer than a sweep.
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=code_to_ship(code) if joins else None,
        )
    except (RuntimeEnvSetupError, OSError, RayError, ValueError, RuntimeError) as error:
        ray.shutdown()
        if isinstance(error, RuntimeEnvSetupError | PermissionError):
            raise SettingsError(
                f"the code beside the job cannot be sent to the cluster: {error}; "
                "move files that are no code out of its folder, or use "
                "`ray job submit --working-dir`."
            ) from error
        _refuse_address(address, error)
    return joins


@contextmanager
def _environment() -> Iterator[None]:
    """Set what `DRIVER_ENV` says, and at the end restore that and what Ray itself sets."""
    before = {name: os.environ.get(name) for name in (*DRIVER_ENV, *RAYS_OWN_ENV)}
    for name, value in DRIVER_ENV.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, known in before.items():
            if known is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = known


@contextmanager
def _logger_level(name: str, during: int | None = None) -> Iterator[None]:
    """Restore a logger's level, which Ray or this project changes while Ray runs."""
    logger = logging.getLogger(name)
    level = logger.level
    if during is not None:
        logger.setLevel(during)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which `ray.init` replaces in the main thread."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and handler is not None:  # None: it is not one of Python's
            signal.signal(signal.SIGTERM, handler)


def _check_code_is_sent() -> None:
    """Check that a Ray that the user has started sends our code, and theirs, to other machines."""
    context = ray.get_runtime_context()
    if {"working_dir", "py_modules"} & context.runtime_env.keys():
        return
    addresses = {node["NodeManagerAddress"] for node in living_nodes()}
    if len(addresses) > 1:
        raise SettingsError(
            f"Ray was started with no code to send to its {len(addresses)} machines; leave "
            'ray.init() to the sweep, or give it runtime_env={"working_dir": "."}.'
        )


def _check_address(address: str | None) -> None:
    """Try the port first: Ray itself tries for minutes to reach a cluster that does not exist."""
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
