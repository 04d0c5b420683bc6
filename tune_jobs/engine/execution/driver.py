"""Drives Tune's controller through the trials of a sweep that are not finished: `Driver`."""

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
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.progress import Progress, Silent
from tune_jobs.engine.execution.callbacks import KeepBestCheckpoints, ResultLogs
from tune_jobs.engine.execution.queue import TrialQueue
from tune_jobs.engine.execution.stopper import SweepStopper, interruptible
from tune_jobs.engine.search.asha import PromotionASHA, StoppingASHA
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.search.stock import StockScheduler
from tune_jobs.engine.search.study_search import StudySearch
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.folder import storage_uri
from tune_jobs.engine.store.opening import OpenSweep
from tune_jobs.engine.store.record import Record, id_of
from tune_jobs.engine.store.warm_start import others_of

__all__ = ["Driver", "Parts"]


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


class Driver:
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
        self._best = goal.best(_complete(record.trials()))
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
        for other in others_of(sweep.manifest.others):
            view.add_other(other)
        for trial in record.started():
            view.add(trial, id_of(trial))
        self._search = StudySearch(
            sweep.space, goal, record, view, settings.seed, self._on_trial_end
        )

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
    def ended(self) -> Outcome | None:
        """What ended the sweep early; None: nothing did."""
        return self._stopper.outcome

    def run(self, trainable: Any, resources: Resources, monitor: ClusterMonitor) -> tune.ResultGrid:
        """Run the trials.

        Args:
            trainable: What Tune runs for each.
            resources: What each holds.
            monitor: Knows how many may run in parallel.

        Raises:
            SweepFailedError: The storage failed, or another driver has taken over the sweep.
        """
        stopper = self._stopper
        self._search.end_decided()
        tuner = self._make_tuner(trainable, resources, monitor)
        try:
            with _pending_trials(), interruptible(stopper, self._parts.progress.on_notice):
                grid = tuner.fit()
        except Exception as error:
            self._check_storage(error)
            raise
        self._check_storage(None)
        if stopper.outcome is not None and not stopper.outcome.is_resumable:
            self._search.end_unfinished(stopper.outcome)
        return grid

    def _check_storage(self, error: Exception | None) -> None:
        outcome = self._stopper.outcome
        if outcome is not None and outcome.kind in (Kind.STORAGE, Kind.LOCK_LOST):
            raise SweepFailedError(outcome.message, self._sweep.folder.uri, outcome) from error

    def _make_scheduler(self) -> EpochScheduler:
        settings, goal, record = self._sweep.settings, self._sweep.goal, self._record
        if self._parts.scheduler is not None:
            return StockScheduler(goal, record, settings, self._parts.scheduler)
        if settings.halving is None:
            return EpochScheduler(goal, record, settings)
        if settings.halving.pauses:
            return PromotionASHA(goal, record, settings, self._on_trial_pause)
        return StoppingASHA(goal, record, settings)

    def _make_tuner(
        self, trainable: Any, resources: Resources, monitor: ClusterMonitor
    ) -> tune.Tuner:
        settings, goal = self._sweep.settings, self._sweep.goal
        queue = TrialQueue(
            self._search,
            self._scheduler,
            self._record,
            self._sweep,
            lambda: monitor.slots,
            lambda: self._stopper.outcome is not None,
        )
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

    def _on_trial_end(self, trial: FrozenTrial) -> None:
        self._best = self._sweep.goal.best(_complete([self._best, trial]))
        self._parts.progress.on_trial_end(self._sweep.goal, trial, self._best)


def _complete(trials: Sequence[FrozenTrial | None]) -> list[FrozenTrial]:
    return [t for t in trials if t is not None and t.state == TrialState.COMPLETE]


@contextmanager
def _pending_trials() -> Iterator[None]:
    """Let all trials that `TrialQueue` hands out be pending at once.

    Tune allows one pending trial, so that slots fill one by one, unless it limits concurrency by
    itself; its limiter counts paused trials, and does not know of recorded ones.
    """
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(name)
    os.environ[name] = before or str(sys.maxsize)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
