"""The exceptions of the engine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tune_jobs.engine.core.outcome import Outcome

__all__ = [
    "CheckpointError",
    "MetricNotLoggedError",
    "RecordError",
    "SettingsError",
    "SweepFailedError",
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
        ended: What ended the sweep early; None: it ran to its end, or no trial has started.
    """

    def __init__(self, message: str, path: str, ended: "Outcome | None") -> None:
        super().__init__(message, path, ended)  # all of them, so that it can be pickled
        self.path = path
        self.ended = ended

    def __str__(self) -> str:
        return str(self.args[0])


class RecordError(OSError):
    """The record cannot be written."""


class CheckpointError(OSError):
    """A checkpoint cannot be written, or a checkpoint to resume from cannot be read."""


class MetricNotLoggedError(KeyError):
    """The model never logs the metric that trials are judged by."""

    def __str__(self) -> str:
        return str(self.args[0])
