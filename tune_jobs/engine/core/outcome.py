"""Why a trial or a sweep ended: `Outcome`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any

from optuna.trial import FrozenTrial, TrialState

__all__ = ["OUTCOME_ATTR", "Cause", "Kind", "Outcome", "has_failed", "outcome_of"]

# The system attribute in which an Optuna trial holds its outcome.
OUTCOME_ATTR = "tune_jobs:end"


class Kind(StrEnum):
    """Why a trial or a sweep ended. Any other failure has the name of its exception."""

    BY_ITSELF = "ended by itself"
    LAST_EPOCH = "last epoch"
    GOOD_ENOUGH = "stop_at"
    ASHA = "asha"
    SCHEDULER = "scheduler"
    NAN = "nan"
    PRUNED = "pruned"
    BY_HAND = "ended by hand"
    OUT_OF_MEMORY = "oom"
    SILENT = "reported nothing"
    NEVER_BEGAN = "never began"
    ALL_DONE = "all trials done"
    EXHAUSTED = "space exhausted"
    OTHER_GOOD_ENOUGH = "another reached stop_at"
    TIME_BUDGET = "time budget"
    FAILURES = "failures"
    INTERRUPTED = "interrupted"
    STORAGE = "storage"
    LOCK_LOST = "another driver"


class Cause(Enum):
    """What brought the end about."""

    FINISHED = auto()  # the trial was trained to its end
    JUDGED = auto()  # it was stopped early, as it would not win
    SWEEP = auto()  # the whole sweep ended
    TRIAL = auto()  # its code or its config; it would fail again
    CLUSTER = auto()  # its process or machine died; it resumes from its last checkpoint
    STORAGE = auto()  # the next trial would fail too; the sweep ends, the trial can be resumed


_CAUSES = {
    Kind.BY_ITSELF: Cause.FINISHED,
    Kind.LAST_EPOCH: Cause.FINISHED,
    Kind.GOOD_ENOUGH: Cause.FINISHED,
    Kind.ASHA: Cause.JUDGED,
    Kind.SCHEDULER: Cause.JUDGED,
    Kind.NAN: Cause.JUDGED,
    Kind.PRUNED: Cause.JUDGED,
    Kind.BY_HAND: Cause.JUDGED,
    Kind.OUT_OF_MEMORY: Cause.TRIAL,
    Kind.SILENT: Cause.TRIAL,
    Kind.NEVER_BEGAN: Cause.SWEEP,
    Kind.ALL_DONE: Cause.SWEEP,
    Kind.EXHAUSTED: Cause.SWEEP,
    Kind.OTHER_GOOD_ENOUGH: Cause.SWEEP,
    Kind.TIME_BUDGET: Cause.SWEEP,
    Kind.FAILURES: Cause.SWEEP,
    Kind.INTERRUPTED: Cause.SWEEP,
    Kind.STORAGE: Cause.SWEEP,
    Kind.LOCK_LOST: Cause.SWEEP,
}
_FAILURES = (Cause.TRIAL, Cause.CLUSTER, Cause.STORAGE)
_FINAL = (Kind.NEVER_BEGAN, Kind.ALL_DONE, Kind.EXHAUSTED, Kind.OTHER_GOOD_ENOUGH, Kind.LOCK_LOST)


@dataclass(frozen=True)
class Outcome:
    """Why a trial or a sweep ended.

    A trial's outcome is recorded as `to_entry()` and read with `from_entry()`. A failure that ended
    a trial for good comes back as the trial's own, whatever its cause was.

    Attributes:
        kind: A `Kind`, or the name of the exception's class.
        cause: What brought it about.
        message: One line; empty where the kind says all.
        traceback: The exception with its traceback; empty where there was none.
    """

    kind: str
    cause: Cause
    message: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, kind: Kind, message: str = "") -> "Outcome":
        """The outcome of a kind that needs no exception to explain it."""
        return cls(kind, _CAUSES[kind], message)

    @property
    def is_complete(self) -> bool:
        """Whether the trial was trained to its end."""
        return self.cause == Cause.FINISHED

    @property
    def is_failure(self) -> bool:
        return self.cause in _FAILURES

    @property
    def is_crash(self) -> bool:
        """Whether samplers are shown the trial as the worst: it failed or diverged."""
        return self.is_failure or self.kind == Kind.NAN

    @property
    def is_resumable(self) -> bool:
        """Of a sweep: whether it leaves trials that can be resumed or started."""
        return self.kind not in _FINAL

    @property
    def state(self) -> TrialState:
        """The state of the Optuna trial."""
        if self.is_failure:
            return TrialState.FAIL
        return TrialState.COMPLETE if self.is_complete else TrialState.PRUNED

    def to_entry(self) -> dict[str, str]:
        """The outcome as JSON."""
        entry = {"reason": str(self.kind)}
        if self.message:
            entry["message"] = self.message
        if self.is_failure:
            entry |= {"message": self.message, "text": self.traceback}
        return entry

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "Outcome":
        """The outcome of a trial from its JSON."""
        if "text" in entry:
            return cls(entry["reason"], Cause.TRIAL, entry["message"], entry["text"])
        return cls.of(Kind(entry["reason"]), entry.get("message", ""))


def outcome_of(trial: FrozenTrial) -> Outcome | None:
    """Why a recorded trial ended; None: it has not ended, or no driver has started it.

    One that a driver has started and not ended was told its state by the user.
    """
    entry = trial.system_attrs.get(OUTCOME_ATTR)
    if entry is not None:
        return Outcome.from_entry(entry)
    if "trial_id" not in trial.user_attrs or not trial.state.is_finished():
        return None
    if trial.state == TrialState.FAIL:
        return Outcome(Kind.BY_HAND, Cause.TRIAL, str(Kind.BY_HAND))
    return Outcome.of(Kind.BY_HAND)


def has_failed(trial: FrozenTrial) -> bool:
    """Whether a recorded trial ended in a failure; it may be PRUNED in a record of 0.1.0.dev."""
    outcome = outcome_of(trial)
    return outcome is not None and outcome.is_failure
