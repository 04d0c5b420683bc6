"""The exceptions of the engine."""

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune_jobs.engine.core.outcome import Outcome

__all__ = [
    "CheckpointError",
    "MetricNotLoggedError",
    "RecordError",
    "ScoreError",
    "SettingsError",
    "SweepFailedError",
    "TrialFailedError",
    "is_of_storage",
]


class SettingsError(Exception):
    """Invalid or unsatisfiable settings.

    The message states the rule, the values given, and how to fix them. It is no ValueError: tyro
    would put it into a box, broken into lines.
    """


class SweepFailedError(RuntimeError):
    """The sweep has no result; the message says why, with a failed trial's traceback if one did it.

    Attributes:
        path: The sweep's folder or URL.
        ended: Why the sweep ended.
    """

    def __init__(self, message: str, path: str, ended: "Outcome") -> None:
        super().__init__(message, path, ended)  # all of them, so that it can be pickled
        self.path = path
        self.ended = ended

    def __str__(self) -> str:
        return str(self.args[0])


class RecordError(OSError):
    """The record cannot be written."""


class CheckpointError(OSError):
    """A checkpoint cannot be written, or a checkpoint to resume from cannot be read."""


# The disk is full, over its quota, read-only, or gone.
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


def is_of_storage(error: BaseException) -> bool:
    """Whether the storage failed: the next trial would fail too."""
    if isinstance(error, CheckpointError):
        return True
    return isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS


class MetricNotLoggedError(KeyError):
    """The model never logs the metric that trials are judged by."""

    def __str__(self) -> str:
        return str(self.args[0])


class ScoreError(TypeError):
    """A function gives something that is no score, or no score at all."""


class TrialFailedError(Exception):
    """The user's code in a trial raised; carries what was raised from the trial to the driver.

    Not the exception itself: Ray lets some pass as the end of a trial (StopIteration, SystemExit),
    and others cannot be pickled, or not be unpickled in the driver.

    Attributes:
        kind: An `Outcome.kind`.
        message: One line.
        traceback: The user's frames, of all exceptions in the chain.
    """

    def __init__(self, kind: str, message: str, traceback: str) -> None:
        super().__init__(kind, message, traceback)  # all of them, so that it can be pickled
        self.kind = kind
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return self.message
