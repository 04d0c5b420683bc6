"""What the engine adds to a result that a trial reports to Tune."""

from collections.abc import Mapping
from typing import Any

__all__ = [
    "CANNOT_RESUME",
    "ENDS_ITSELF",
    "EPOCH",
    "PRUNED",
    "RETURNED",
    "epoch_of",
]

# The epoch of a function's report; the user's own `epoch` may be anything.
EPOCH = "tune_jobs_epoch"
# Set if this is what the function returned: the trial's result, and no epoch.
RETURNED = "tune_jobs_returned"
# Why a trial that pauses at this report could not be resumed; absent: it could.
CANNOT_RESUME = "tune_jobs_cannot_resume"
# Set, to the text, in the one result by which a trial says that its code raised TrialPruned.
PRUNED = "tune_jobs_pruned"
# Set in the last result of a trial that one of its own callbacks ends, such as EarlyStopping.
ENDS_ITSELF = "ends_itself"


def epoch_of(result: Mapping[str, Any]) -> int:
    """The epoch of a result in which the metric was reported.

    A Lightning trial reports its own epoch. Records of 0.1.0's development have nothing else for
    functions than the number of the report.
    """
    return int(result.get(EPOCH, result.get("epoch", result.get("training_iteration", 0))))
