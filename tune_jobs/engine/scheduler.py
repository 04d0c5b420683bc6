"""Which trials go on: `EpochScheduler` ends what cannot win, `ASHA` also what seems not to."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_jobs.engine.goal import Goal, epoch_of
from tune_jobs.engine.reasons import Endings, Reason, failure_of
from tune_jobs.engine.transient import Transient

__all__ = ["ASHA", "EpochScheduler", "make_rungs"]


class EpochScheduler(Transient, FIFOScheduler):
    """Ends a trial after its last epoch, at a score that is good enough, and when it diverges.

    Ray's schedulers let a trial that reports NaN run on, since NaN compares false with everything.

    Args:
        goal: What is optimised.
        max_epochs: Epochs after which a trial is complete; None: it ends by itself.
        stop_at: The score that is good enough; the sweep ends when a trial reaches it.
        record: Called with each trial's id, score, result and the reason to stop it, or None,
            before anything is done about it.

    Attributes:
        endings: Why trials were ended.
        reached: Whether a trial has reached `stop_at` and its end has been recorded.
    """

    def __init__(
        self,
        goal: Goal,
        max_epochs: int | None = None,
        stop_at: float | None = None,
        record: Callable[[str, float, dict[str, Any], Reason | None], None] | None = None,
    ) -> None:
        super().__init__()
        self._goal = goal
        self._max_epochs = max_epochs
        self._stop_at = stop_at
        self._record = record
        self.endings = Endings()
        self.reached = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        trial.controller = getattr(tune_controller, "_tune_controller", None)  # see `SweepTrial`

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        score = float(result[self._goal.metric])
        reason = self._judge(trial.trial_id, epoch_of(result), score)
        if self._record is not None:
            self._record(trial.trial_id, score, result, reason)
        if reason is not None:
            self.endings.reasons[trial.trial_id] = reason
        decision: str = TrialScheduler.CONTINUE if reason is None else TrialScheduler.STOP
        return decision

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> None:
        """None: Tune starts what is pending by itself, and Ray's looks through all trials, ended
        ones too, at each step."""

    def replay(self, trial_id: str, curve: Mapping[int, float]) -> None:
        """Take in what a trial has reported to an earlier driver; nothing is decided again."""
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
    """Asynchronous successive halving, stopping kind (https://arxiv.org/abs/1810.05934).

    At each rung a trial goes on if its score is within the best 1 / `reduction_factor` of those
    recorded there before it. The same decisions as Ray's `ASHAScheduler` where that one is right;
    unlike it, a trial is recorded at the highest rung it has reached and no lower one (Ray writes
    late scores into lower rungs when results skip a milestone), and no rung is lost to rounding.

    Attributes:
        rungs: Milestone -> Tune's id of each trial that has reached it -> its gain there: of the
            first of its epochs that are not before the milestone, and before the next one.
    """

    def __init__(
        self,
        goal: Goal,
        max_epochs: int,
        grace_epochs: int = 1,
        reduction_factor: float = 3,
        stop_at: float | None = None,
        record: Callable[[str, float, dict[str, Any], Reason | None], None] | None = None,
    ) -> None:
        super().__init__(goal, max_epochs, stop_at, record)
        self._reduction_factor = reduction_factor
        self.rungs: dict[int, dict[str, float]] = {
            epoch: {} for epoch in make_rungs(grace_epochs, max_epochs, reduction_factor)
        }
        self._reached_at: dict[tuple[int, str], int] = {}

    def _judge(self, trial_id: str, epoch: int, score: float) -> Reason | None:
        reason = super()._judge(trial_id, epoch, score)
        if reason == Reason.NAN:
            return reason
        passed = self._pass_rung(trial_id, epoch, self._goal.gain(score))
        return reason or (None if passed else Reason.ASHA)

    def _pass_rung(self, trial_id: str, epoch: int, gain: float) -> bool:
        """Record the gain at the rung it belongs to, and compare it there."""
        rung = max((milestone for milestone in self.rungs if milestone <= epoch), default=None)
        if rung is None or self._reached_at.setdefault((rung, trial_id), epoch) != epoch:
            return True
        # An epoch that is trained again, after its process had died, replaces what was there.
        self.rungs[rung].pop(trial_id, None)
        others = list(self.rungs[rung].values())
        self.rungs[rung][trial_id] = gain
        percentile = (1 - 1 / self._reduction_factor) * 100
        return not others or gain >= float(np.percentile(others, percentile))


def make_rungs(grace_epochs: int, max_epochs: int, reduction_factor: float) -> list[int]:
    """The epochs at which trials are compared: grace x factor^k, rounded, up to `max_epochs`.

    Multiplied out, since Ray's `int(log(243) / log(3))` is 4 and loses the rung at 243.
    """
    rungs, rung = [], float(grace_epochs)
    while round(rung) <= max_epochs:
        rungs.append(round(rung))
        rung *= reduction_factor
    return sorted(set(rungs))
