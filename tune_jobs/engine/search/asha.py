"""Asynchronous successive halving: `StoppingASHA` and `PromotionASHA`.

`StoppingASHA` lets a trial continue if it is among the best of those that were at its rung before.
`PromotionASHA` pauses every trial at its rung, and a free slot resumes the best of them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from tune_jobs.engine.core.goal import Goal, curve_of
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.result import CANNOT_RESUME, ENDS_ITSELF, epoch_of
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.search.internals import pause_pending
from tune_jobs.engine.store.entries import id_of, promoted_from
from tune_jobs.engine.store.record import Record

__all__ = ["PromotionASHA", "StoppingASHA"]


class StoppingASHA(EpochScheduler):
    """Asynchronous successive halving (https://arxiv.org/abs/1810.05934) as Ray has it.

    At each rung a trial continues or stops, at once and for good: it continues if its score is
    within the best 1 / `reduction_factor` of those recorded there before it; the first trial always
    does. Its decisions are those of Ray's `ASHAScheduler`, except that a trial is recorded at the
    highest rung that it has reached and at no lower one, and that no rung is lost to rounding.

    Args:
        goal: What is optimized.
        record: Holds each result, with the decision on it.
        settings: Have a rule of halving, and perhaps `stop_at`.
    """

    def __init__(self, goal: Goal, record: Record, settings: Settings) -> None:
        super().__init__(goal, record, settings)
        halving = settings.halving
        assert halving is not None
        self._factor = halving.reduction_factor
        self._max_epochs = halving.max_epochs
        self.rungs = Rungs(goal, halving.rungs)

    def _restore(self, trial: FrozenTrial) -> None:
        super()._restore(trial)
        self.rungs.restore(id_of(trial), curve_of(trial), promoted_from(trial))

    def _judge(self, trial_id: str, epoch: int, score: float) -> Kind | None:
        stop = super()._judge(trial_id, epoch, score)
        if stop == Kind.NAN:
            return stop
        rung = self.rungs.report(trial_id, epoch, score)
        if stop is None and rung is not None and not self._may_continue(trial_id, rung):
            return Kind.ASHA
        return stop

    def _may_continue(self, trial_id: str, rung: int) -> bool:
        """Whether a trial that has just reached a rung need not stop there."""
        gains = self.rungs.gains(rung)
        own = gains.pop(trial_id)
        percentile = (1 - 1 / self._factor) * 100
        return not gains or own >= float(np.percentile(list(gains.values()), percentile))


class PromotionASHA(StoppingASHA):
    """ASHA as its paper has it (Algorithm 2): trials pause at rungs, and the best are promoted.

    A trial that reaches a rung pauses with its checkpoint. A free slot resumes the best trial that
    is paused at the highest rung with a promotable one; if there is none, a new trial starts. A
    trial is promotable if it is among the best floor(n / `reduction_factor`) of the n trials that
    have reached the rung; of equals, the one that started first. Ray's ASHA can only stop trials
    (ray#32634, ray#44256, ray#4401).

    The paper's loop never ends. Here the last trials are promoted once no new one can start. And
    when nothing runs and no trial has been trained to its end, the best of the highest rung is
    promoted, so that a sweep with too few trials does not leave the last rung empty.

    Trials that could not be resumed cannot pause: a function need not report checkpoints. If the
    first trial at a rung says so, no trial of the sweep pauses, and they are stopped as
    `StoppingASHA` has it. If a later one does, that one continues.

    Args:
        goal, record, settings: As for `StoppingASHA`.
        on_pause: Called with the id of each trial that pauses, after its result is recorded.
        notify: Called with a line for the user.
    """

    def __init__(
        self,
        goal: Goal,
        record: Record,
        settings: Settings,
        on_pause: Callable[[str], None] = lambda trial_id: None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(goal, record, settings)
        self._on_pause = on_pause
        self._notify = notify
        self._stops_only = record.stops_only
        self._paused: dict[str, Trial] = {}
        self._saving: list[Trial] = []  # those of them that Tune still saves
        self._resuming: list[Trial] = []  # promoted, and not yet given to Tune
        self._any_complete = False

    @property
    def num_paused(self) -> int:
        self._saving = [
            trial
            for trial in self._saving
            if trial.trial_id in self._paused and trial.status != Trial.PAUSED
        ]
        return len(self._paused) - len(self._saving)

    @property
    def is_settled(self) -> bool:
        return not self._paused and not self._resuming

    def is_paused(self, trial_id: str) -> bool:
        return not self._stops_only and self.rungs.is_paused(trial_id)

    def promote(self, is_last: bool) -> bool:
        trial = self._find(self._factor)
        if trial is None and is_last and not self._any_complete:
            trial = self._find(1)
        if trial is None:
            return False
        self._promote(trial)
        self._resuming.append(trial)
        return True

    def stop_paused(self) -> None:
        for trial in [t for t in self._paused.values() if t.status == Trial.PAUSED]:
            self._record.decide(trial.trial_id, Outcome.of(Kind.ASHA))
            trial.controller.stop_trial(trial)

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        # A trial that is still being saved has to wait.
        trial = next((t for t in self._resuming if t.status == Trial.PAUSED), None)
        if trial is not None:
            self._resuming.remove(trial)
        return trial

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        self.rungs.start(trial.trial_id)
        if trial.status == Trial.PENDING and self.is_paused(trial.trial_id):
            # Its process died while it was being saved. Tune would run it again: a trial that has
            # not been promoted would train on to the next rung.
            pause_pending(trial.controller, trial)
        if trial.status == Trial.PAUSED:
            self._paused[trial.trial_id] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.CONTINUE or not self.is_paused(trial.trial_id):
            return decision
        self._paused[trial.trial_id] = trial
        # A trial that one of its callbacks ends here would have forgotten so after a pause. And
        # the best one would be resumed in the slot that it has: no need to pause it.
        # So would one that has reported its last epoch.
        must_continue = ENDS_ITSELF in result or CANNOT_RESUME in result
        must_continue |= trial.trial_id in self._returning
        if must_continue or self._find(self._factor) is trial:
            self._promote(trial)
            return decision
        self._saving.append(trial)
        self._record.pause(trial.trial_id, self.rungs.highest(trial.trial_id))
        self._on_pause(trial.trial_id)
        pause: str = TrialScheduler.PAUSE
        return pause

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        outcome = self._record.decided(trial.trial_id)
        self._any_complete |= outcome is None or outcome.is_complete

    def on_trial_recorded(self, trial: FrozenTrial) -> None:
        super().on_trial_recorded(trial)
        if self.has_reached:
            self.stop_paused()  # for good, and nobody needs their checkpoints any more

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_error(tune_controller, trial)
        self._forget(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)

    def _restore(self, trial: FrozenTrial) -> None:
        super()._restore(trial)
        trial_id = id_of(trial)
        outcome = self._record.decided(trial_id)
        self._any_complete |= outcome is not None and outcome.is_complete
        if max(trial.intermediate_values, default=0) >= self._max_epochs:
            self.rungs.promote(trial_id)  # a function that has yet to return its result
        rung = self.rungs.highest(trial_id) if self.is_paused(trial_id) else None
        if trial.state == TrialState.RUNNING and trial.user_attrs.get("paused_at") != rung:
            self._record.pause(trial_id, rung)  # the driver died between the two

    def _decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> Kind | None:
        if CANNOT_RESUME in result and self._is_first(epoch_of(result)):
            self._stops_only = True
            self._record.stop_only()
            self._notify(
                f"ASHA stops trials for good instead of pausing them: {result[CANNOT_RESUME]}"
            )
        return super()._decide(tune_controller, trial, result)

    def _is_first(self, epoch: int) -> bool:
        """Whether a trial that reports this epoch is the first at any rung."""
        none_there = not any(self.rungs.num_reached(rung) for rung in self.rungs.epochs)
        return none_there and self.rungs.reached_by(epoch) is not None

    def _judge(self, trial_id: str, epoch: int, score: float) -> Kind | None:
        stop = super()._judge(trial_id, epoch, score)
        self._any_complete |= stop == Kind.LAST_EPOCH
        return stop

    def _may_continue(self, trial_id: str, rung: int) -> bool:
        return not self._stops_only or super()._may_continue(trial_id, rung)

    def _find(self, factor: float) -> Trial | None:
        """The best paused trial among the best 1 / factor of its rung, the highest rung first."""
        for rung in reversed(self.rungs.epochs):
            for trial_id in self.rungs.best(rung, factor):
                if trial_id in self._paused and self.rungs.highest(trial_id) == rung:
                    return self._paused[trial_id]
        return None

    def _promote(self, trial: Trial) -> None:
        self._record.promote(trial.trial_id, self.rungs.promote(trial.trial_id))
        if self._record.trial(trial.trial_id).user_attrs.get("paused_at") is not None:
            self._record.pause(trial.trial_id, None)
        del self._paused[trial.trial_id]

    def _forget(self, trial: Trial) -> None:
        self._paused.pop(trial.trial_id, None)
        if trial in self._resuming:
            self._resuming.remove(trial)
