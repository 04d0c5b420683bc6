"""When the whole sweep ends: a budget spent, a score that is good enough, nothing but failures."""

import time
from typing import Any

from ray.tune import Callback, Stopper

from tune_jobs.engine.scheduler import EpochScheduler

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
    def reason(self) -> str | None:
        """Why the sweep has to end; None: it goes on."""
        if self._scheduler.reached:
            return "stop_at"
        if self.watcher.hopeless:
            return "failures"
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "time budget"
        return None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.reason is not None


class FailureWatcher(Callback):
    """Counts trials that failed until one succeeds."""

    def __init__(self) -> None:
        self._failures = 0
        self._successes = 0
        self._metric_missing = False

    @property
    def hopeless(self) -> bool:
        """A metric that is never logged is missing in every trial: one failure tells it."""
        few = MAX_FAILURES_WITHOUT_SUCCESS
        return self._metric_missing or (self._successes == 0 and self._failures >= few)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._successes += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failures += 1
        error = trial.get_error()
        self._metric_missing |= "MetricNotLoggedError" in str(error)
