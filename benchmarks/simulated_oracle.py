"""Ours if it knew what each config is expected to come to: how far its decisions can get."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.simulated_ours import make_ours
from benchmarks.simulated_time import MakeSide, Side, Task
from tune_jobs.engine.search.asha import PromotionASHA
from tune_jobs.engine.search.view import View

__all__ = ["ORACLES"]


def make_oracle(task: Task, tells_sampler: bool = True, tells_scheduler: bool = True) -> Side:
    """TPE and promotion that are told what a config will come to once it has reported.

    Trials are shown with that, and promoted by it. They have to be trained all the same until one
    reports the target.

    Args:
        task: What the side is made for.
        tells_sampler: Whether TPE knows; otherwise it learns from what is reported.
        tells_scheduler: Whether promotion knows.
    """
    expected: dict[str, float] = {}

    class OraclePromotion(PromotionASHA):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            expected[trial.trial_id] = task.expect(trial.config)
            super().on_trial_add(tune_controller, trial)

        def _enter(self, trial_id: str, epoch: int, gain: float) -> int | None:
            known = task.goal.gain(expected[trial_id]) if tells_scheduler else gain
            return super()._enter(trial_id, epoch, known)

    class OracleView(View):
        def _note(self, number: int, curve: Mapping[int, float]) -> None:
            trial_id = str(self._seen[number].trial_id)
            super()._note(number, {task.max_epochs: expected[trial_id]} if curve else {})

    return make_ours(task, asha=OraclePromotion, view=OracleView if tells_sampler else View)


ORACLES: dict[str, MakeSide] = {
    "oracle": make_oracle,
    "oracle, sampler": partial(make_oracle, tells_scheduler=False),
    "oracle, promotion": partial(make_oracle, tells_sampler=False),
}
