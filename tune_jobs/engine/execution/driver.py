"""Drives Tune's controller through the trials of a sweep that are not finished: `Driver`."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import TrialScheduler

from tune_jobs.engine.cluster.monitor import ClusterMonitor
from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.errors import SweepFailedError
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, has_failed
from tune_jobs.engine.core.progress import Progress, Silent
from tune_jobs.engine.core.raised import outcome_of_raised
from tune_jobs.engine.execution.callbacks import KeepBestCheckpoints, ResultLogs
from tune_jobs.engine.execution.queue import TrialQueue
from tune_jobs.engine.execution.stopper import SweepStopper, interruptible
from tune_jobs.engine.search.asha import PromotionASHA, StoppingASHA
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.search.stock import StockScheduler
from tune_jobs.engine.search.study_search import SearchListener, StudySearch
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.entries import id_of
from tune_jobs.engine.store.folder import storage_uri
from tune_jobs.engine.store.opening import OpenSweep
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.store.warm_start import agrees, others_of

__all__ = ["Driver", "Parts"]

# Reasons that do not matter if there was nothing left to do.
OVERTAKEN = (Kind.TIME_BUDGET, Kind.FAILURES)
# Optuna's samplers leave out trials that failed or still run.
LEARNED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Parts:
    """What the caller of a sweep may put in place of the engine's own.

    Attributes:
        sampler: Any Optuna sampler.
        scheduler: One of Tune's schedulers that only continue or stop trials; None: ASHA, where the
            settings have epochs.
        callbacks: Tune callbacks.
        progress: Listens to the sweep.
    """

    sampler: BaseSampler = field(default_factory=TPESampler)
    scheduler: TrialScheduler | None = None
    callbacks: Sequence[tune.Callback] = ()
    progress: Progress = field(default_factory=Silent)


class Driver(SearchListener):
    """Drives the trials of a sweep that are not finished.

    Args:
        sweep: The sweep.
        record: Its record.
        parts: What the caller put in place of the engine's own.
    """

    def __init__(self, sweep: OpenSweep, record: Record, parts: Parts) -> None:
        self._sweep, self._record, self._parts = sweep, record, parts
        settings, goal = sweep.settings, sweep.goal
        record.repair_curves(goal.metric)
        self._best = goal.best(_complete(record.started()))
        self._scheduler = self._make_scheduler()
        self._scheduler.restore(record.started())
        self._stopper = SweepStopper(self._scheduler, record, sweep.lost, settings)
        view = View(
            goal,
            parts.sampler,
            self._scheduler.rungs,
            record.kept(),
            self._scheduler.is_paused,
        )
        for other in [*others_of(sweep.manifest.others), *self._foreign()]:
            view.add_other(other)
        for trial in record.started():
            view.add(trial, id_of(trial))
        self._search = StudySearch(sweep.space, goal, record, view, settings.seed, self)
        self._is_exhausted = False

    @property
    def num_trials(self) -> int:
        """All trials of the sweep. Retries come on top of what was asked for, and whatever is in
        the queue is run."""
        asked = self._sweep.settings.num_trials + self._record.num_retries
        return max(asked, self._record.num_trials)

    @property
    def num_finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self._record.started())

    @property
    def num_unfinished(self) -> int:
        """Trials that have started and not finished."""
        return len(self._record.running())

    @property
    def ended(self) -> Outcome:
        """Why the sweep ended."""
        decided = self._stopper.decided
        num_left = self.num_trials - len(self._record.started())
        if decided is None or (decided.kind in OVERTAKEN and not num_left + self.num_unfinished):
            return Outcome.of(Kind.EXHAUSTED if self._is_exhausted else Kind.ALL_DONE)
        if decided.kind == Kind.FAILURES:
            return Outcome.of(Kind.FAILURES, self._describe_failures(num_left))
        return decided

    def _describe_failures(self, num_left: int) -> str:
        started = self._record.started()
        num_failed, num_started = sum(map(has_failed, started)), len(started)
        failed = f"{num_failed} of " if num_failed < num_started else ""
        return (
            f"{failed}the first {num_started} of {self.num_trials} trials failed, none finished, "
            f"{num_left} not started"
        )

    def run(self, trainable: Any, resources: Resources, monitor: ClusterMonitor) -> tune.ResultGrid:
        """Run the trials.

        Args:
            trainable: What Tune runs for each.
            resources: What each holds.
            monitor: Knows how many may run in parallel.

        Raises:
            SweepFailedError: The storage or the sampler failed, or another driver has taken over
                the sweep.
        """
        stopper = self._stopper
        self._search.end_decided()
        queue = self._make_queue(monitor)
        tuner = self._make_tuner(queue, trainable, resources, monitor)
        try:
            with _tune_environment(), interruptible(stopper, self._parts.progress.on_notice):
                grid = tuner.fit()
        except Exception as error:
            self._check(error)
            raise
        self._check(None)
        self._is_exhausted = queue.is_exhausted
        if self.ended.kind == Kind.OTHER_GOOD_ENOUGH:
            self._search.end_unfinished(self.ended)
        elif self.ended.kind in (Kind.INTERRUPTED, Kind.TIME_BUDGET):
            self._search.check_unfinished()
        return grid

    def on_trial_end(self, trial: FrozenTrial) -> None:
        self._stopper.on_trial_end(trial)
        self._scheduler.on_trial_recorded(trial)
        self._best = self._sweep.goal.best(_complete([self._best, trial]))
        self._parts.progress.on_trial_end(self._sweep.goal, trial, self._best)

    def on_sampler_error(self, error: Exception) -> None:
        raised, name = outcome_of_raised(error), type(self._parts.sampler).__name__
        message = f"{name} failed as a trial ended; mend it and resume:\n{raised.traceback}"
        self._stopper.fail(dataclasses.replace(raised, message=message))

    def _check(self, error: Exception | None) -> None:
        """Check that nothing ended the sweep in a way that leaves no result."""
        outcome = self._stopper.decided
        if outcome is None or (outcome.cause == Cause.SWEEP and not self._stopper.trouble):
            return
        raise SweepFailedError(outcome.message, self._sweep.folder.uri, outcome) from error

    def _foreign(self) -> list[FrozenTrial]:
        """The trials of the user's own that the sampler can learn from."""
        trials, space = self._record.foreign(), self._sweep.space
        return [t for t in trials if t.state in LEARNED and t.values and agrees(t, space)]

    def _make_scheduler(self) -> EpochScheduler:
        settings, goal, record = self._sweep.settings, self._sweep.goal, self._record
        if self._parts.scheduler is not None:
            return StockScheduler(goal, record, settings, self._parts.scheduler)
        if settings.halving is None:
            return EpochScheduler(goal, record, settings)
        if settings.halving.pauses:
            notify = self._parts.progress.on_notice
            return PromotionASHA(goal, record, settings, self._on_trial_pause, notify)
        return StoppingASHA(goal, record, settings)

    def _make_queue(self, monitor: ClusterMonitor) -> TrialQueue:
        return TrialQueue(
            self._search,
            self._scheduler,
            self._record,
            self._sweep,
            lambda: monitor.slots,
            self._stopper,
        )

    def _make_tuner(
        self, queue: TrialQueue, trainable: Any, resources: Resources, monitor: ClusterMonitor
    ) -> tune.Tuner:
        settings, goal = self._sweep.settings, self._sweep.goal
        return tune.Tuner(
            tune.with_resources(trainable, resources.per_trial),
            tune_config=tune.TuneConfig(
                search_alg=queue,
                scheduler=self._scheduler,
                num_samples=self.num_trials,
                # Otherwise each trial would start a process, which imports torch and Lightning.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=self._sweep.name,
                storage_path=storage_uri(settings.storage_path),
                verbose=0,
                stop=self._stopper,
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                # Tune keeps the latest one too: a trial resumes from it.
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1,
                    checkpoint_score_attribute=goal.metric,
                    checkpoint_score_order=goal.mode,
                ),
                callbacks=[
                    ResultLogs(self._record),
                    self._stopper.watcher,
                    KeepBestCheckpoints(settings.keep_checkpoints, goal, self._record),
                    monitor,
                    *self._parts.callbacks,
                ],
            ),
        )

    def _on_trial_pause(self, trial_id: str) -> None:
        trial = self._record.trial(trial_id)
        self._parts.progress.on_trial_pause(self._sweep.goal, trial, self._best)


def _complete(trials: Sequence[FrozenTrial | None]) -> list[FrozenTrial]:
    return [t for t in trials if t is not None and t.state == TrialState.COMPLETE]


@contextmanager
def _tune_environment() -> Iterator[None]:
    """The environment variables that Tune reads while it runs.

    All trials that `TrialQueue` hands out may be pending at once. Tune allows one, so that slots
    fill one by one, unless it limits concurrency by itself; its limiter counts paused trials, and
    does not know of recorded ones.

    A report without the metric passes. Tune would end the sweep.
    """
    wanted = {
        "TUNE_MAX_PENDING_TRIALS_PG": str(sys.maxsize),
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }
    added = {name: value for name, value in wanted.items() if not os.environ.get(name)}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
