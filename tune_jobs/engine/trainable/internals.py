"""The private names of Ray and Lightning that a trial's process needs.

Each has a canary in `tests/test_internals.py`, which fails on an upgrade before a sweep does.
"""

from typing import Any

from ray.train._internal.session import _TrainSession, get_session

__all__ = [
    "TrialSession",
    "end_training_thread",
    "has_own_resources",
    "name_version",
    "note_restored",
    "version_of",
]

RESTORED = "tune_jobs_restored"


class TrialSession(_TrainSession):
    """Ray's session of a trial: what `tune.report` and `tune.get_checkpoint` talk to.

    Attributes:
        was_asked: Whether the trial's code has asked for the checkpoint to resume from.
    """

    was_asked = False

    @classmethod
    def take_over(cls) -> "TrialSession":
        """Make the session of this process one of this class. Ray makes it before the trial runs,
        and keeps it for the next one."""
        session = get_session()
        session.__class__ = cls
        taken: TrialSession = session
        return taken

    @property
    def loaded_checkpoint(self) -> Any:
        self.was_asked = True
        return self.__dict__["loaded_checkpoint"]

    @loaded_checkpoint.setter
    def loaded_checkpoint(self, checkpoint: Any) -> None:
        self.__dict__["loaded_checkpoint"] = checkpoint

    @property
    def restored_result(self) -> dict[str, Any]:
        """The result that was reported with the checkpoint to resume from; empty: none is."""
        return self.get_state(RESTORED) or {}


def note_restored(result: dict[str, Any]) -> None:
    """Note the result with whose checkpoint a trial resumes; before its code runs."""
    get_session().set_state(RESTORED, result)


def end_training_thread(timeout_s: float) -> bool:
    """Wait for the thread of a function trainable after Ray asked it to stop.

    Returns:
        Whether it has ended.
    """
    session = get_session()
    session.finish(timeout=timeout_s)
    return not (session.training_started and session.training_thread.is_alive())


def has_own_resources(function: Any) -> bool:
    """Whether a function was given resources with `tune.with_resources`."""
    return getattr(function, "_resources", None) is not None


def version_of(logger: Any) -> Any:
    """The version that a file logger was given; its public `version` would choose one."""
    return logger._version


def name_version(logger: Any, version: str) -> None:
    """Give a file logger its version; public only as an argument of its constructor."""
    logger._version = version
