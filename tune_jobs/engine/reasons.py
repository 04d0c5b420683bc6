"""Why a trial ended, as `trials.csv` and the study say it: `Reason`, or what it died of."""

from enum import StrEnum
from pathlib import Path
from typing import Any

from ray import cloudpickle

__all__ = ["Reason", "failure_of"]


class Reason(StrEnum):
    """Why a trial ended; one that failed has the name of its exception instead."""

    BY_ITSELF = "ended by itself"
    LAST_EPOCH = "last epoch"
    GOOD_ENOUGH = "stop_at"
    OTHER_GOOD_ENOUGH = "another reached stop_at"
    ASHA = "asha"
    NAN = "nan"
    TIME_BUDGET = "time budget"
    FAILURES = "failures"
    INTERRUPTED = "interrupted"
    SILENT = "reported nothing"

    @property
    def is_early(self) -> bool:
        """Whether the trial was stopped before it had shown what it is worth."""
        ended = (Reason.BY_ITSELF, Reason.LAST_EPOCH, Reason.GOOD_ENOUGH, Reason.SILENT)
        return self not in ended


def failure_of(trial: Any) -> BaseException | None:
    """The exception that a Tune trial died of; None where it cannot be had.

    Read where the driver has just written it: `Trial.get_pickled_error` reads the storage, to which
    it is copied later.
    """
    if trial.pickled_error_file is None:
        return None
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # the exception's class may be one that only the trial could import
        return None
    cause: BaseException = getattr(error, "cause", None) or error
    return cause
