"""Ends a sweep early, for limits, failures and interruptions: `SweepStopper`."""

import contextlib
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ray
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback, Stopper

from tune_jobs.engine.core.errors import MetricNotLoggedError
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, has_failed, outcome_of
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.search.failures import outcome_of_failed
from tune_jobs.engine.store.record import Record

__all__ = ["MAX_FAILURES_WITHOUT_SUCCESS", "SweepStopper", "interruptible"]

# So many failures and no success: the code is at fault, not the configs.
MAX_FAILURES_WITHOUT_SUCCESS = 5
# For trials that are about to report. Tune itself waits 10 s for an epoch that may take an hour.
KILL_AFTER_S = 3.0


class SweepStopper(Transient, Stopper):
    """Ends a sweep early, and knows why.

    Args:
        scheduler: Tells whether a score that is good enough has been reached.
        record: The record of the sweep; the sweep ends if it cannot be written.
        lost: Set once another driver has taken over the sweep.
        settings: Uses `time_budget_s`, which begins now.

    Attributes:
        watcher: The Tune callback that sees trials fail; must be given to the same run.
    """

    def __init__(
        self,
        scheduler: EpochScheduler,
        record: Record,
        lost: threading.Event,
        settings: Settings,
    ) -> None:
        self._scheduler = scheduler
        self._lost = lost
        self._record = record
        self._deadline = time.monotonic() + (settings.time_budget_s or math.inf)
        self._is_interrupted = False
        self._is_ending = False
        self._decided: Outcome | None = None
        self._failures = _Failures(record)
        self.watcher = FailureWatcher(record)

    @property
    def outcome(self) -> Outcome | None:
        """Why the sweep has to end early; None: it continues.

        The first reason stands, unless nothing more can be recorded: that has a message, in a
        sentence, and is what the user has to know.
        """
        if self._decided is None:
            self._decided = self._find_outcome()
        return self.trouble or self._decided

    @property
    def trouble(self) -> Outcome | None:
        """Why nothing more can be recorded; None: it can."""
        if self._lost.is_set():
            message = "another driver has taken over the sweep; this one ends and changes nothing."
            return Outcome.of(Kind.LOCK_LOST, message)
        trouble = self._record.trouble or self.watcher.storage_failure
        return None if trouble is None else Outcome.of(Kind.STORAGE, f"{trouble}.")

    @property
    def decided(self) -> Outcome | None:
        """Why the sweep was ended early; None: it was not."""
        return self.trouble or self._decided

    @property
    def holds_back(self) -> bool:
        """Whether no new trial may start: all that ended have failed, and what runs has not come
        further than those."""
        return self._failures.is_hopeless and not self._failures.any_ahead()

    def interrupt(self) -> None:
        """End the sweep; called by a signal."""
        self._is_interrupted = True

    def fail(self, outcome: Outcome) -> None:
        """End the sweep because of an error that is no trial's."""
        self._decided = self._decided or outcome

    def on_trial_end(self, trial: FrozenTrial) -> None:
        """Take in that a trial has ended, and is recorded."""
        self._failures.count(trial)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.outcome is None:
            return False
        if not self._is_ending:
            self._is_ending = True
            self.watcher.kill_later(KILL_AFTER_S)
        return True

    def _find_outcome(self) -> Outcome | None:
        if self._is_interrupted:
            return Outcome.of(Kind.INTERRUPTED)
        if self._scheduler.has_reached:
            return Outcome.of(Kind.OTHER_GOOD_ENOUGH)
        if self._failures.is_hopeless and not self._record.running():
            return Outcome.of(Kind.FAILURES)
        if time.monotonic() > self._deadline:
            return Outcome.of(Kind.TIME_BUDGET)
        return None


class _Failures:
    """Counts failed trials until one succeeds.

    A trial succeeds if it is trained to its end: one that was stopped or has diverged is no
    success, and no failure either.

    Args:
        record: The record of the sweep; failures of earlier drivers do not count, since the user
            may have mended what failed.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._num_failures = 0
        self._furthest = 0  # the last epoch of any failed trial
        self._metric_missing = False
        self._any_complete = any(t.state == TrialState.COMPLETE for t in record.started())

    @property
    def is_hopeless(self) -> bool:
        """Whether the code is at fault, not the configs. A metric that is never logged is missing
        in every trial: one failure is enough."""
        too_many = self._num_failures >= MAX_FAILURES_WITHOUT_SUCCESS
        return not self._any_complete and (self._metric_missing or too_many)

    def count(self, trial: FrozenTrial) -> None:
        self._any_complete |= trial.state == TrialState.COMPLETE
        outcome = outcome_of(trial)
        if outcome is None or not outcome.is_failure:
            return
        self._num_failures += 1
        self._furthest = max([self._furthest, *trial.intermediate_values])
        self._metric_missing |= outcome.kind == MetricNotLoggedError.__name__

    def any_ahead(self) -> bool:
        """Whether a trial that has not ended has come further than all that failed."""
        curves = (trial.intermediate_values for trial in self._record.running())
        return any(max(curve, default=0) > self._furthest for curve in curves)


class FailureWatcher(Transient, Callback):
    """Sees the storage fail, and keeps track of running trials.

    Args:
        record: The record of the sweep.

    Attributes:
        storage_failure: The first error of the storage, as text, or None.
    """

    def __init__(self, record: Record) -> None:
        self.storage_failure: str | None = None
        self._record = record
        self._trials: list[Any] = []

    def kill_later(self, delay_s: float) -> None:
        """End the processes of the trials that run now, if they still exist after the delay.

        A trial learns that it has to stop when it reports, and an epoch can be long. It resumes
        from its last checkpoint when the sweep is resumed.
        """
        actors = [trial.temporary_state.ray_actor for trial in self._trials]

        def kill() -> None:
            for actor in filter(None, actors):
                with contextlib.suppress(Exception):  # it has ended by itself
                    ray.kill(actor)

        timer = threading.Timer(delay_s, kill)
        timer.daemon = True
        timer.start()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._trials = trials

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        outcome = outcome_of_failed(trial)
        if outcome.cause == Cause.STORAGE:
            self.storage_failure = self.storage_failure or outcome.message.partition(": ")[2]
            return
        recorded = self._record.trial(trial.trial_id)
        if not has_failed(recorded):  # Tune takes an error of a callback for the trial's
            error = str(trial.error).strip().rpartition("\n")[-1]  # of its traceback
            warnings.warn(
                f"a callback failed as trial {recorded.number} ended: {error}", stacklevel=2
            )


@contextlib.contextmanager
def interruptible(
    stopper: SweepStopper, notify: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the sweep cleanly; the second one ends it at once.

    Tune's own handler would not know the outcome, and wait for the epochs that run.

    Args:
        stopper: Is interrupted.
        notify: Called with a line for the user.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def interrupt(number: int, frame: Any) -> None:
        stopper.interrupt()
        notify("\nInterrupted: stopping cleanly. Press Ctrl-C again to quit immediately.")
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        restore()
