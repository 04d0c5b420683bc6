"""The private names of Ray and Lightning that a trial's process needs.

Each has a canary in `tests/test_internals.py`, which fails on an upgrade before a sweep does.
"""

from typing import Any

from ray.train._internal.session import get_session

__all__ = ["end_training_thread", "name_version", "version_of"]


def end_training_thread(timeout_s: float) -> bool:
    """Wait for the thread of a function trainable after Ray asked it to stop.

    Returns:
        Whether it has ended.
    """
    session = get_session()
    session.finish(timeout=timeout_s)
    return not (session.training_started and session.training_thread.is_alive())


def version_of(logger: Any) -> Any:
    """The version that a file logger was given; its public `version` would choose one."""
    return logger._version


def name_version(logger: Any, version: str) -> None:
    """Give a file logger its version; public only as an argument of its constructor."""
    logger._version = version
