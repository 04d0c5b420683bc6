"""When the whole sweep ends: a budget spent, a score that is good enough, nothing but failures."""

import time
from typing import Any

from ray.tune import Callback, Stopper

from tune_jobs.engine.reasons import Reason, failure_of
from tune_jobs.engine.scheduler import EpochScheduler
from tune_jobs.engine.trial import MetricNotLoggedError

__all__ = ["MAX_FAILURES_WITHOUT_SUCCESS", "SweepStopper"]

# So many failures and no success: the fault is the code's, not the configs'.
MAX_FAILURES_WITHOUT_SUCCESS = 5


class SweepStopper(Stopper):
    """Ends a sweep, and knows why.

    Args:
        scheduler: Tells whether a score that is good enough has been reached.
        time_budget_s: Seconds from now; None: no limit.

    Attributes:
        watcher: The Tune callback that counts failures; goes into the same run.
    """

    def __init__(self, scheduler: EpochScheduler, time_budget_s: float | None) -> None:
        self._scheduler = scheduler
        self._deadline = time.monotonic() + time_budget_s if time_budget_s else None
        self.watcher = FailureWatcher()

    @property
    def reason(self) -> Reason | None:
        """Why the sweep has to end, as told to the trials it cuts short; None: it goes on."""
        if self._scheduler.reached:
            return Reason.OTHER_GOOD_ENOUGH
        if self.watcher.is_hopeless:
            return Reason.FAILURES
        if self._deadline is not None and time.monotonic() > self._deadline:
            return Reason.TIME_BUDGET
        return None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.reason is not None


class FailureWatcher(Callback):
    """Counts trials that failed until one succeeds."""

    def __init__(self) -> None:
        self._num_failures = 0
        self._num_successes = 0
        self._metric_missing = False

    @property
    def is_hopeless(self) -> bool:
        """A metric that is never logged is missing in every trial: one failure tells it."""
        too_many = self._num_failures >= MAX_FAILURES_WITHOUT_SUCCESS
        return self._num_successes == 0 and (self._metric_missing or too_many)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._num_successes += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._num_failures += 1
        self._metric_missing |= isinstance(failure_of(trial), MetricNotLoggedError)
