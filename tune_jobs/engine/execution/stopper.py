"""When the whole sweep ends, and that it does so in order and soon: `SweepStopper`."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from optuna.trial import TrialState
from ray.tune import Callback, Stopper

from tune_jobs.engine.core.outcome import Blame, Endings, Failure, Reason
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.search.asha import EpochScheduler
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.trainable.lightning import MetricNotLoggedError

__all__ = ["MAX_FAILURES_WITHOUT_SUCCESS", "SweepStopper", "interruptible"]

# So many failures and no success: the fault is the code's, not the configs'.
MAX_FAILURES_WITHOUT_SUCCESS = 5
# For trials that are about to report; Tune itself waits 10 s for an epoch that may take an hour.
KILL_AFTER_S = 3.0


class SweepStopper(Transient, Stopper):
    """Ends a sweep, and knows why.

    Args:
        scheduler: Tells whether a score that is good enough has been reached.
        record: The record of the sweep; one that cannot be written ends it.
        lost: Set once another driver has taken the sweep over.
        time_budget_s: Seconds from now; None: no limit.

    Attributes:
        watcher: The Tune callback that sees trials fail; goes into the same run.
    """

    def __init__(
        self,
        scheduler: EpochScheduler,
        record: Record,
        lost: threading.Event,
        time_budget_s: float | None,
    ) -> None:
        self._scheduler = scheduler
        self._lost = lost
        self._record = record
        self._deadline = time.monotonic() + time_budget_s if time_budget_s else None
        self._is_interrupted = False
        self._is_ending = False
        complete = (trial.state == TrialState.COMPLETE for trial in record.trials())
        self.watcher = FailureWatcher(scheduler.endings, num_successes=sum(complete))

    @property
    def reason(self) -> Reason | None:
        """Why the sweep has to end, as told to the trials it cuts short; None: it goes on."""
        if self._lost.is_set():
            return Reason.LOCK_LOST
        if self._is_interrupted:
            return Reason.INTERRUPTED
        if self._record.trouble is not None or self.watcher.storage_failure is not None:
            return Reason.STORAGE
        if self._scheduler.reached:
            return Reason.OTHER_GOOD_ENOUGH
        # A trial that is paused has trained well; it is no success as yet.
        if self.watcher.is_hopeless and self._scheduler.is_settled:
            return Reason.FAILURES
        if self._deadline is not None and time.monotonic() > self._deadline:
            return Reason.TIME_BUDGET
        return None

    @property
    def trouble(self) -> str | None:
        """What is wrong with the storage, in a sentence; None: nothing."""
        if self._lost.is_set():
            return "another driver has taken the sweep over; this one ends and leaves it alone."
        if self._record.trouble is not None:
            return f"{self._record.trouble}."
        failure = self.watcher.storage_failure
        return None if failure is None else f"{failure.error}."

    def interrupt(self) -> None:
        """End the sweep; called by a signal."""
        self._is_interrupted = True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.reason is None:
            return False
        if not self._is_ending:
            self._is_ending = True
            self.watcher.kill_later(KILL_AFTER_S)
        return True


class FailureWatcher(Transient, Callback):
    """Counts trials that failed until one succeeds; holds on to those that run.

    Args:
        endings: Why trials were ended, as the scheduler fills it; Tune calls that first.
        num_successes: Trials that had succeeded before.

    Attributes:
        storage_failure: The first failure that was the storage's; None: there was none.
    """

    def __init__(self, endings: Endings, num_successes: int) -> None:
        self._endings = endings
        self.storage_failure: Failure | None = None
        self._num_failures = 0
        self._num_successes = num_successes
        self._metric_missing = False
        self._trials: list[Any] = []

    @property
    def is_hopeless(self) -> bool:
        """A metric that is never logged is missing in every trial: one failure tells it."""
        too_many = self._num_failures >= MAX_FAILURES_WITHOUT_SUCCESS
        return self._num_successes == 0 and (self._metric_missing or too_many)

    def kill_later(self, delay_s: float) -> None:
        """End the processes of the trials that run now, if they are still there by then.

        A trial hears that it has to stop when it reports, and an epoch can be long; it goes on from
        its last checkpoint when the sweep is resumed.
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

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._num_successes += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        failure = self._endings.failures[trial.trial_id]
        if failure.blame == Blame.STORAGE:
            self.storage_failure = self.storage_failure or failure
            return
        self._num_failures += 1
        self._metric_missing |= isinstance(failure.error, MetricNotLoggedError)


@contextlib.contextmanager
def interruptible(stopper: SweepStopper) -> Iterator[None]:
    """Let Ctrl-C, and a polite `kill`, end the sweep in order; a second one ends it at once.

    Tune's own handler would lose the reason, and wait for the epochs that run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def interrupt(number: int, frame: Any) -> None:
        stopper.interrupt()
        print("\nInterrupted: the sweep ends in order; once more ends it at once.", flush=True)
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
