"""Decides whether a trial continues: `EpochScheduler`."""

import math
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_jobs.engine.core.goal import Goal, is_feasible
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, outcome_of
from tune_jobs.engine.core.result import EPOCH, PRUNED, RETURNED, epoch_of
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.search.failures import outcome_of_failed
from tune_jobs.engine.search.internals import controller_of
from tune_jobs.engine.store.record import Record

__all__ = ["EpochScheduler"]


class EpochScheduler(Transient, FIFOScheduler):
    """Stops a trial after its last epoch, at a score that is good enough, and when it diverges.

    Ray's schedulers let a trial that reports NaN run on, since NaN compares false with everything.

    Args:
        goal: What is optimized.
        record: Holds each result, with the decision on it.
        settings: Uses `stop_at` and, where there are epochs, their number.

    Attributes:
        rungs: Where trials are compared; without ASHA it has none.
        has_reached: Whether a trial has reached `stop_at`, and its end is recorded.
    """

    def __init__(self, goal: Goal, record: Record, settings: Settings) -> None:
        super().__init__()
        self._goal = goal
        self._record = record
        self._settings = settings
        self.rungs = Rungs(goal)
        self.has_reached = False
        # Functions that have reported their last epoch, and may still return their result. One that
        # reports again instead is stopped.
        self._returning: set[str] = set()

    @property
    def num_paused(self) -> int:
        """Trials that are paused and hold no slot. One that is still being saved holds its slot."""
        return 0

    @property
    def is_settled(self) -> bool:
        """Whether no trial is paused."""
        return True

    def promote(self, is_last: bool) -> bool:
        """Let a free slot resume a paused trial.

        Args:
            is_last: Whether nothing runs, and no new trial can start.

        Returns:
            Whether there is a trial to resume.
        """
        return False

    def stop_paused(self) -> None:
        """Stop the paused trials: none of them can be promoted any more."""

    def is_paused(self, trial_id: str) -> bool:
        """Whether a trial that an earlier driver left is paused at a rung."""
        return False

    def restore(self, trials: Iterable[FrozenTrial]) -> None:
        """Take in what earlier drivers recorded; nothing is decided again.

        Args:
            trials: All trials that have started, in the order of their numbers.
        """
        for trial in trials:
            self._restore(trial)

    def _restore(self, trial: FrozenTrial) -> None:
        score = self._goal.score(trial)
        is_good = score is not None and self._is_good_enough(score)
        self.has_reached |= is_good and is_feasible(trial)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        trial.controller = controller_of(tune_controller)  # see `SweepTrial`

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        stop = self._enter(tune_controller, trial, result)
        decision: str = TrialScheduler.CONTINUE if stop is None else TrialScheduler.STOP
        return decision

    def _enter(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> Kind | None:
        """Record a result. Returns why the trial must stop; None: it continues."""
        if PRUNED in result:
            self._record.decide(trial.trial_id, Outcome.of(Kind.PRUNED, result[PRUNED]))
            return Kind.PRUNED
        if trial.trial_id in self._returning and RETURNED not in result:
            self._record.decide(trial.trial_id, Outcome.of(Kind.LAST_EPOCH))
            return Kind.LAST_EPOCH
        if self._goal.metric not in result:
            self._record.report_other(trial.trial_id, result)
            return None
        score = float(result[self._goal.metric])
        if RETURNED in result:  # no epoch: it is compared with nothing
            stop = self._judge_end(score)
            self._record.report_returned(trial.trial_id, result, stop)
            return stop
        stop = self._decide(tune_controller, trial, result)
        if stop == Kind.LAST_EPOCH and EPOCH in result:
            self._returning.add(trial.trial_id)
            stop = None
        self._record.report(trial.trial_id, score, result, stop)
        return stop

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """Return None. Tune starts pending trials by itself, and Ray's method would walk through
        all trials, ended ones too, at each step."""
        return None

    def _decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> Kind | None:
        """Why a trial that has just reported must stop; None: it continues."""
        score = float(result[self._goal.metric])
        return self._judge(trial.trial_id, epoch_of(result), score)

    def _judge(self, trial_id: str, epoch: int, score: float) -> Kind | None:
        """Why this trial must stop now; None: it continues."""
        stop, halving = self._judge_end(score), self._settings.halving
        if stop is None and halving is not None and epoch >= halving.max_epochs:
            return Kind.LAST_EPOCH
        return stop

    def _judge_end(self, score: float) -> Kind | None:
        if not math.isfinite(score):
            return Kind.NAN
        return Kind.GOOD_ENOUGH if self._is_good_enough(score) else None

    def _is_good_enough(self, score: float) -> bool:
        gain, stop_at = self._goal.gain, self._settings.stop_at
        return stop_at is not None and gain(score) >= gain(stop_at)

    def on_trial_recorded(self, trial: FrozenTrial) -> None:
        """Take in that a trial has ended, and is recorded.

        Not sooner: the sweep would end at once, and lose the result that ended it; and whether the
        trial violates a constraint is known only then.
        """
        outcome = outcome_of(trial)
        is_good = outcome is not None and outcome.kind == Kind.GOOD_ENOUGH
        self.has_reached |= is_good and is_feasible(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._returning.discard(trial.trial_id)
        if trial.status == Trial.ERROR:
            return  # Tune calls this too when it puts a trial back into the queue
        outcome = outcome_of_failed(trial)
        if outcome.cause != Cause.STORAGE:  # which is not the trial's end: the sweep stops
            self._record.decide(trial.trial_id, outcome)
