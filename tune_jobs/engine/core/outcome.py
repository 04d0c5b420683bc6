"""Why trials end: `Reason` of those that were stopped, `Failure` of those that died."""

import errno
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

__all__ = ["Blame", "CheckpointError", "Endings", "Failure", "Reason", "failure_of"]


class Reason(StrEnum):
    """Why a trial ended; one that failed has the name of its exception instead."""

    BY_ITSELF = "ended by itself"
    LAST_EPOCH = "last epoch"
    GOOD_ENOUGH = "stop_at"
    OTHER_GOOD_ENOUGH = "another reached stop_at"
    ASHA = "asha"
    NAN = "nan"
    OUT_OF_MEMORY = "oom"
    TIME_BUDGET = "time budget"
    FAILURES = "failures"
    INTERRUPTED = "interrupted"
    STORAGE = "storage"
    LOCK_LOST = "another driver"
    SILENT = "reported nothing"

    @property
    def is_early(self) -> bool:
        """Whether the trial was stopped before it had shown what it is worth."""
        ended = (Reason.BY_ITSELF, Reason.LAST_EPOCH, Reason.GOOD_ENOUGH)
        return self not in ended

    @property
    def is_resumable(self) -> bool:
        """Whether what ended the sweep leaves its trials to be gone on with."""
        return self not in (Reason.OTHER_GOOD_ENOUGH, Reason.LOCK_LOST)


class CheckpointError(OSError):
    """A checkpoint cannot be written, or one that is to be gone on from cannot be read."""


class Blame(Enum):
    """Whose fault a failure is, which decides what becomes of the trial."""

    TRIAL = auto()  # it would happen again: the trial has failed
    CLUSTER = auto()  # its process or its machine died: it goes on from its last checkpoint
    STORAGE = auto()  # it would happen to the next one too: the sweep ends, the trial is resumable


@dataclass(frozen=True)
class Failure:
    """What a trial died of.

    `FailureConfig(max_failures)` counts all of it alike; this is the one place that tells apart.

    Attributes:
        reason: "oom", or the name of the exception.
        blame: Whose fault it is.
        message: One line.
        text: The exception with its traceback.
        error: The exception; None where it cannot be had.
    """

    reason: str
    blame: Blame
    message: str
    text: str = ""
    error: BaseException | None = None


@dataclass
class Endings:
    """Why trials were ended, by Tune's id; those that ended by themselves are in neither.

    Attributes:
        reasons: Of those that were stopped.
        failures: Of those that failed.
    """

    reasons: dict[str, Reason] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "running low on memory",  # Ray's own guard of a node
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# The disk is full, over its quota, read-only, or gone.
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


def failure_of(trial: Any) -> Failure:
    """What a Tune trial died of.

    Read where the driver has just written it: `Trial.get_pickled_error` reads the storage, to which
    it is copied later.
    """
    error, text = _load_error(trial)
    if error is None:
        return Failure("error", Blame.TRIAL, "an error that only the trial could name", text)
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    if _is_out_of_memory(error):
        message = f"{message.rstrip('.')}. {_more_memory(trial)}"
        return Failure(Reason.OUT_OF_MEMORY, Blame.TRIAL, message, text, error)
    return Failure(type(error).__name__, _blame(error), message, text, error)


def _load_error(trial: Any) -> tuple[BaseException | None, str]:
    if trial.pickled_error_file is None:
        return None, ""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # the exception's class may be one that only the trial could import
        return None, Path(trial.error_file).read_text()
    return getattr(error, "cause", None) or error, str(error)


def _blame(error: BaseException) -> Blame:
    if isinstance(error, (RayActorError, WorkerCrashedError, NodeDiedError)):
        return Blame.CLUSTER
    if isinstance(error, CheckpointError):
        return Blame.STORAGE
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
        return Blame.STORAGE
    return Blame.TRIAL


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, OutOfMemoryError)):
        return True
    # By name: torch's own is a RuntimeError, and this process need not have imported torch.
    if any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__):
        return True
    text = str(error)
    return any(known in text for known in OUT_OF_MEMORY_TEXTS) or (
        "CUDA" in text and "out of memory" in text
    )


def _more_memory(trial: Any) -> str:
    """The larger share to try. A share of a GPU is a share of its memory; CPUs stand for memory
    in that fewer trials run side by side."""
    held = trial.placement_group_factory.required_resources
    gpus, cpus = held.get("GPU", 0), held.get("CPU", 0)
    if gpus and gpus < 1:
        return f"It had {gpus:g} of a GPU; try --gpus-per-trial {min(1.0, 2 * gpus):g}."
    if gpus:
        return "It had a whole GPU; search smaller models or batches."
    return f"It had {cpus:g} CPU; try --cpus-per-trial {2 * cpus:g}, so that fewer run at once."
