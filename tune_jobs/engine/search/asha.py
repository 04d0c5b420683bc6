"""Which trials go on: `EpochScheduler` ends what cannot win, the two ASHAs also what seems not to.

`StoppingASHA` lets a trial go on if it is among the best of those that were at its rung before it.
`PromotionASHA` lets every trial wait at its rung, and a free slot goes on with the best of them.
"""

import bisect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_jobs.engine.core.goal import ENDS_ITSELF, Goal, epoch_of
from tune_jobs.engine.core.outcome import Endings, Reason, failure_of
from tune_jobs.engine.core.transient import Transient

__all__ = [
    "ASHA",
    "EpochScheduler",
    "Ledger",
    "PromotionASHA",
    "StoppingASHA",
    "make_rungs",
    "rung_at",
]


class Ledger(Protocol):
    """Where a scheduler enters what it has decided, before anything acts on it: a `Record`."""

    def report(
        self, trial_id: str, score: float, result: Mapping[str, Any], reason: str | None
    ) -> None: ...

    def promote(self, trial_id: str, rung: int) -> None: ...


class EpochScheduler(Transient, FIFOScheduler):
    """Ends a trial after its last epoch, at a score that is good enough, and when it diverges.

    Ray's schedulers let a trial that reports NaN run on, since NaN compares false with everything.

    Args:
        goal: What is optimised.
        max_epochs: Epochs after which a trial is complete; None: it ends by itself.
        stop_at: The score that is good enough; the sweep ends when a trial reaches it.
        record: Where each result is entered with what is done about it; None: nowhere.

    Attributes:
        endings: Why trials were ended.
        reached: Whether a trial has reached `stop_at` and its end has been recorded.
        rungs: Milestone -> Tune's id of each trial that has reached it -> its gain there: of the
            first of its epochs that are not before the milestone, and before the next one. None
            without ASHA.
    """

    def __init__(
        self,
        goal: Goal,
        max_epochs: int | None = None,
        stop_at: float | None = None,
        record: Ledger | None = None,
    ) -> None:
        super().__init__()
        self._goal = goal
        self._max_epochs = max_epochs
        self._stop_at = stop_at
        self._record = record
        self.endings = Endings()
        self.reached = False
        self.rungs: dict[int, dict[str, float]] = {}

    @property
    def num_waiting(self) -> int:
        """Paused trials, which take no slot; one that is still being saved does."""
        return 0

    @property
    def is_settled(self) -> bool:
        """Whether no trial is paused."""
        return True

    def promote(self, is_last: bool) -> bool:
        """Let a free slot go on with a paused trial.

        Args:
            is_last: Whether nothing runs, and no new trial can come.

        Returns:
            Whether there is one that may go on.
        """
        return False

    def end_waiting(self) -> None:
        """End the paused trials: none of them will be promoted any more."""

    def has_to_wait(self, trial_id: str) -> bool:
        """Whether a trial that an earlier driver left is paused."""
        return False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        trial.controller = getattr(tune_controller, "_tune_controller", None)  # see `SweepTrial`

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        score = float(result[self._goal.metric])
        reason = self._judge(trial.trial_id, epoch_of(result), score)
        if self._record is not None:
            self._record.report(trial.trial_id, score, result, reason)
        if reason is not None:
            self.endings.reasons[trial.trial_id] = reason
        decision: str = TrialScheduler.CONTINUE if reason is None else TrialScheduler.STOP
        return decision

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """None: Tune starts what is pending by itself, and Ray's looks through all trials, ended
        ones too, at each step."""
        return None

    def replay(
        self,
        trial_id: str,
        curve: Mapping[int, float],
        promoted_from: int | None = None,
        is_complete: bool = False,
    ) -> None:
        """Take in what an earlier driver has recorded of a trial; nothing is decided again.

        Args:
            trial_id: Tune's id.
            curve: Epoch -> score.
            promoted_from: The last rung that it was promoted from; None: none.
            is_complete: Whether it has ended by itself, or after its last epoch.
        """
        for epoch in sorted(curve):
            self._judge(trial_id, epoch, curve[epoch])
        gains = [self._goal.gain(score) for score in curve.values()]
        if self._stop_at is not None and gains:
            self.reached |= max(gains) >= self._goal.gain(self._stop_at)

    def _judge(self, trial_id: str, epoch: int, score: float) -> Reason | None:
        """Why this trial must end now; None: it goes on."""
        if not math.isfinite(score):
            return Reason.NAN
        gain = self._goal.gain
        if self._stop_at is not None and gain(score) >= gain(self._stop_at):
            return Reason.GOOD_ENOUGH
        if self._max_epochs is not None and epoch >= self._max_epochs:
            return Reason.LAST_EPOCH
        return None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        # Not sooner: ending the sweep at once would lose the result that ended it.
        self.reached |= self.endings.reasons.get(trial.trial_id) == Reason.GOOD_ENOUGH

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if trial.status == Trial.ERROR:
            return  # Tune calls this too when it puts a trial back into the queue
        self.endings.failures[trial.trial_id] = failure_of(trial)


class ASHA(EpochScheduler):
    """Asynchronous successive halving (https://arxiv.org/abs/1810.05934): what both kinds share.

    Unlike with Ray's `ASHAScheduler` a trial is recorded at the highest rung it has reached and no
    lower one (Ray writes late scores into lower rungs when results skip a milestone), and no rung
    is lost to rounding.
    """

    def __init__(
        self,
        goal: Goal,
        max_epochs: int,
        grace_epochs: int = 1,
        reduction_factor: float = 2,
        stop_at: float | None = None,
        record: Ledger | None = None,
    ) -> None:
        super().__init__(goal, max_epochs, stop_at, record)
        self._reduction_factor = reduction_factor
        self.rungs = {epoch: {} for epoch in make_rungs(grace_epochs, max_epochs, reduction_factor)}
        self._reached_at: dict[tuple[int, str], int] = {}

    def _judge(self, trial_id: str, epoch: int, score: float) -> Reason | None:
        reason = super()._judge(trial_id, epoch, score)
        if reason == Reason.NAN:
            return reason
        rung = self._enter(trial_id, epoch, self._goal.gain(score))
        if reason is None and rung is not None and not self._may_go_on(trial_id, rung):
            return Reason.ASHA
        return reason

    @abstractmethod
    def _may_go_on(self, trial_id: str, rung: int) -> bool:
        """Whether a trial that has just reached a rung must not end there."""

    def _enter(self, trial_id: str, epoch: int, gain: float) -> int | None:
        """Record the gain at the rung that the epoch reaches; None: it reaches none."""
        rung = rung_at(self.rungs, epoch)
        if rung is None or self._reached_at.setdefault((rung, trial_id), epoch) != epoch:
            return None
        # An epoch that is trained again, after its process had died, replaces what was there.
        self.rungs[rung].pop(trial_id, None)
        self.rungs[rung][trial_id] = gain
        return rung


class StoppingASHA(ASHA):
    """ASHA as Ray has it: at each rung a trial goes on or ends, at once and for good.

    It goes on if its score is within the best 1 / `reduction_factor` of those recorded there before
    it; the first one always does. The same decisions as Ray's where that one is right.
    """

    def _may_go_on(self, trial_id: str, rung: int) -> bool:
        gains = self.rungs[rung]
        others = [gain for other, gain in gains.items() if other != trial_id]
        percentile = (1 - 1 / self._reduction_factor) * 100
        return not others or gains[trial_id] >= float(np.percentile(others, percentile))


class PromotionASHA(ASHA):
    """ASHA as its paper has it (Algorithm 2): trials wait at rungs, and the best are promoted.

    A trial that reaches a rung is paused with its checkpoint. A free slot goes on with the best of
    those that wait at the highest rung where one may be promoted, else a new trial starts. May be
    promoted: who is among the best floor(n / `reduction_factor`) of the n trials that have reached
    the rung; of equals who was started first. Ray's ASHA only stops (ray#32634, #44256, #4401).

    The paper's loop never ends. Here the last trials are promoted once no new one can come; and
    when nothing runs and no trial has been trained to its end, the best one of the highest rung is,
    so that the last rung is not left empty by a sweep with too few trials.

    Args:
        on_pause: Called with the id of each trial that has to wait.
    """

    def __init__(
        self,
        goal: Goal,
        max_epochs: int,
        grace_epochs: int = 1,
        reduction_factor: float = 2,
        stop_at: float | None = None,
        record: Ledger | None = None,
        on_pause: Callable[[str], None] = lambda trial_id: None,
    ) -> None:
        super().__init__(goal, max_epochs, grace_epochs, reduction_factor, stop_at, record)
        self._on_pause = on_pause
        self._order: dict[str, int] = {}  # id -> how many were started before
        self._rung_of: dict[str, int] = {}  # id -> the highest it has reached
        self._promoted_from: dict[str, int] = {}  # id -> the highest it was let go on from
        # For each rung, the best first: minus the gain, how many were started before, id.
        self._ranked: dict[int, list[tuple[float, int, str]]] = {rung: [] for rung in self.rungs}
        self._paused: dict[str, Trial] = {}
        self._pausing: list[Trial] = []  # those of them that Tune still saves
        self._resuming: list[Trial] = []  # promoted, and to be handed to Tune
        self._any_complete = False

    @property
    def num_waiting(self) -> int:
        self._pausing = [
            trial
            for trial in self._pausing
            if trial.trial_id in self._paused and trial.status != Trial.PAUSED
        ]
        return len(self._paused) - len(self._pausing)

    @property
    def is_settled(self) -> bool:
        return not self._paused and not self._resuming

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        self._order.setdefault(trial.trial_id, len(self._order))
        if trial.status == Trial.PENDING and self.has_to_wait(trial.trial_id):
            # Its process died as it was to be saved, and Tune would run it again: a trial that has
            # not been promoted would train on to the next rung.
            trial.controller._set_trial_status(trial, Trial.PAUSED)
        if trial.status == Trial.PAUSED:
            self._paused[trial.trial_id] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.CONTINUE or not self.has_to_wait(trial.trial_id):
            return decision
        self._paused[trial.trial_id] = trial
        # One that ends by itself here, by a callback, would have forgotten it when it goes on. And
        # its slot is free now: to pause a trial and resume the same one would be a waste.
        if result.get(ENDS_ITSELF) or self._find(self._reduction_factor) is trial:
            self._promote(trial)
            return decision
        self._pausing.append(trial)
        self._on_pause(trial.trial_id)
        pause: str = TrialScheduler.PAUSE
        return pause

    def has_to_wait(self, trial_id: str) -> bool:
        """Whether a trial is at a rung from which it has not been promoted."""
        rung = self._rung_of.get(trial_id)
        return rung is not None and self._promoted_from.get(trial_id) != rung

    def promote(self, is_last: bool) -> bool:
        trial = self._find(self._reduction_factor)
        if trial is None and is_last and not self._any_complete:
            trial = self._find(1)
        if trial is None:
            return False
        self._promote(trial)
        self._resuming.append(trial)
        return True

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        # One that is still being saved is waited for.
        trial = next((t for t in self._resuming if t.status == Trial.PAUSED), None)
        if trial is not None:
            self._resuming.remove(trial)
        return trial

    def end_waiting(self) -> None:
        for trial in [t for t in self._paused.values() if t.status == Trial.PAUSED]:
            self.endings.reasons[trial.trial_id] = Reason.ASHA
            trial.controller.stop_trial(trial)

    def replay(
        self,
        trial_id: str,
        curve: Mapping[int, float],
        promoted_from: int | None = None,
        is_complete: bool = False,
    ) -> None:
        self._order.setdefault(trial_id, len(self._order))
        super().replay(trial_id, curve)
        self._any_complete |= is_complete
        if promoted_from is not None:
            self._promoted_from[trial_id] = promoted_from

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        reason = self.endings.reasons.get(trial.trial_id, Reason.BY_ITSELF)
        self._any_complete |= not reason.is_early
        if self.reached:
            self.end_waiting()  # for good, and they need their checkpoints no more

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_error(tune_controller, trial)
        self._forget(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)

    def _judge(self, trial_id: str, epoch: int, score: float) -> Reason | None:
        reason = super()._judge(trial_id, epoch, score)
        self._any_complete |= reason == Reason.LAST_EPOCH
        return reason

    def _may_go_on(self, trial_id: str, rung: int) -> bool:
        self._rung_of[trial_id] = max(rung, self._rung_of.get(trial_id, rung))
        return True

    def _enter(self, trial_id: str, epoch: int, gain: float) -> int | None:
        rung = super()._enter(trial_id, epoch, gain)
        if rung is not None:
            others = [entry for entry in self._ranked[rung] if entry[-1] != trial_id]
            bisect.insort(others, (-gain, self._order[trial_id], trial_id))
            self._ranked[rung] = others
        return rung

    def _find(self, factor: float) -> Trial | None:
        """The first that waits among the best 1 / factor of a rung, the highest rung first."""
        for rung, ranked in reversed(self._ranked.items()):
            num_best = math.floor(len(ranked) / factor)
            for _, _, trial_id in ranked[:num_best]:
                if trial_id in self._paused and self._rung_of[trial_id] == rung:
                    return self._paused[trial_id]
        return None

    def _promote(self, trial: Trial) -> None:
        rung = self._rung_of[trial.trial_id]
        if self._record is not None:
            self._record.promote(trial.trial_id, rung)
        self._promoted_from[trial.trial_id] = rung
        del self._paused[trial.trial_id]

    def _forget(self, trial: Trial) -> None:
        self._paused.pop(trial.trial_id, None)
        if trial in self._resuming:
            self._resuming.remove(trial)


def make_rungs(grace_epochs: int, max_epochs: int, reduction_factor: float) -> list[int]:
    """The epochs at which trials are compared: grace x factor^k, rounded, up to `max_epochs`.

    Multiplied out, since Ray's `int(log(243) / log(3))` is 4 and loses the rung at 243.
    """
    rungs, rung = [], float(grace_epochs)
    while round(rung) <= max_epochs:
        rungs.append(round(rung))
        rung *= reduction_factor
    return sorted(set(rungs))


def rung_at(rungs: Iterable[int], epoch: int) -> int | None:
    """The highest rung that an epoch has reached; None: it has reached none."""
    return max((rung for rung in rungs if rung <= epoch), default=None)
