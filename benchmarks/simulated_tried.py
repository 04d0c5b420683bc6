"""What was tried in ours and left out, so that it can be tried again.

python -m benchmarks.simulate --part tuning --sides ours "ours, factor 4"
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from optuna.samplers import CmaEsSampler, GPSampler, RandomSampler
from optuna.trial import TrialState

from benchmarks.simulated_ours import make_ours
from benchmarks.simulated_time import MakeSide, Side, Task
from tune_jobs.engine.search.asha import PromotionASHA
from tune_jobs.engine.search.view import View

__all__ = ["TRIED"]


class LateASHA(PromotionASHA):
    """Promotion that judges some trials at no rung below a later one.

    The first few: a barrier at the start (ray#52535). One in so many: a bracket, as Hyperband has
    them.

    Args:
        first_rung: The first at which these trials wait.
        is_late: Whether the trial is one of them that so many were started before.
    """

    def __init__(
        self, *args: Any, first_rung: int, is_late: Callable[[int], bool], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._first_rung = first_rung
        self._is_late = is_late

    def has_to_wait(self, trial_id: str) -> bool:
        is_below = self._rung_of.get(trial_id, 0) < self._first_rung
        goes_on = is_below and self._is_late(self._order[trial_id])
        return not goes_on and super().has_to_wait(trial_id)


class PrunedView(View):
    """Each trial as pruned at its highest rung, which Optuna ranks before all of lower ones."""

    def _face(
        self, seen: Any, is_waiting: bool
    ) -> tuple[TrialState, float | None, Mapping[int, float]]:
        if seen.has_crashed or not seen.at_rungs:
            return super()._face(seen, is_waiting)
        highest = max(seen.at_rungs)
        _, value = seen.at_rungs[highest]
        return TrialState.PRUNED, value, {highest: value}


def make_barrier(task: Task, num_trials: int) -> Side:
    """The first trials train to the 8th epoch before they are judged."""
    return make_late(task, first_rung=8, is_late=lambda order: order < num_trials)


def make_bracket(task: Task, first_rung: int) -> Side:
    """One trial in four is first judged at a later rung."""
    return make_late(task, first_rung, is_late=lambda order: order % 4 == 3)


def make_late(task: Task, first_rung: int, is_late: Callable[[int], bool]) -> Side:
    return make_ours(task, asha=partial(LateASHA, first_rung=first_rung, is_late=is_late))


TRIED: dict[str, MakeSide] = {
    "ours, random": partial(make_ours, sampler=RandomSampler),
    "ours, GP": partial(make_ours, sampler=GPSampler),
    "ours, CMA-ES": partial(make_ours, sampler=CmaEsSampler),
    "ours, factor 3": partial(make_ours, reduction_factor=3),
    "ours, factor 4": partial(make_ours, reduction_factor=4),
    "ours, grace 2": partial(make_ours, grace_epochs=2),
    "ours, barrier 10": partial(make_barrier, num_trials=10),
    "ours, barrier 20": partial(make_barrier, num_trials=20),
    "ours, bracket 4": partial(make_bracket, first_rung=4),
    "ours, bracket 8": partial(make_bracket, first_rung=8),
    "ours, pruned": partial(make_ours, view=PrunedView),
}
