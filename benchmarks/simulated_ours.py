"""This project's searcher and scheduler in the simulation, and variants of them to choose from."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray.tune.experiment import Trial

from benchmarks.simulated_peers import SimulatedTrial, TuneSide
from benchmarks.simulated_time import MakeSide, Side, Start, Task
from tune_jobs.engine.record import Record
from tune_jobs.engine.scheduler import ASHA, PromotionASHA, StoppingASHA
from tune_jobs.engine.search import StudySearch, convert_space
from tune_jobs.engine.settings import LightningSettings
from tune_jobs.engine.view import View
from tune_jobs.mnist import SEARCH_SPACE

__all__ = ["OURS", "VARIANTS", "OurSide", "make_ours"]

OURS = "ours"


class OurSide(TuneSide):
    """As Tune's controller calls ours, with the queue that asks first who may be promoted."""

    def start(self) -> Start | None:
        if self._scheduler.promote(is_last=False):
            trial: SimulatedTrial = self._scheduler.choose_trial_to_run(None)
            trial.status = Trial.RUNNING
            return Start(trial.number, trial.config)
        return super().start()


def make_ours(
    task: Task,
    asha: type[ASHA] = PromotionASHA,
    grace_epochs: int = 1,
    reduction_factor: float = LightningSettings.reduction_factor,
    sampler: Callable[[], BaseSampler] = TPESampler,
) -> Side:
    """The objects of a sweep as `tune_jobs/engine/sweep.py` wires them; the record is in memory."""
    goal = task.goal
    record = Record(Path(), optuna.create_study(direction=goal.direction), Event())
    for config in task.first_configs:
        record.enqueue(config)
    scheduler: Any = asha(
        goal, task.max_epochs, grace_epochs, reduction_factor, stop_at=None, record=record
    )
    search = StudySearch(
        convert_space(SEARCH_SPACE),
        goal,
        record,
        sampler(),
        task.seed,
        scheduler.endings,
        rungs=scheduler.rungs,
        has_to_wait=scheduler.has_to_wait,
    )
    return OurSide(search, scheduler, goal.metric)


def make_oracle(task: Task) -> Side:
    """Ours if it knew what each config is expected to come to: how far TPE and promotion can get.

    Trials are shown with that, and promoted by it, once they have reported. They have to be trained
    all the same until one reports the target.
    """
    expected: dict[str, float] = {}

    class Oracle(PromotionASHA):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            expected[trial.trial_id] = task.expect(trial.config)
            super().on_trial_add(tune_controller, trial)

        def _enter(self, trial_id: str, epoch: int, gain: float) -> int | None:
            return super()._enter(trial_id, epoch, task.goal.gain(expected[trial_id]))

    class OracleView(View):
        def _note(self, number: int, curve: Mapping[int, float]) -> None:
            last = task.max_epochs
            trial_id = self._seen[number].trial_id
            super()._note(number, {last: expected[str(trial_id)]} if curve else {})

    with patch("tune_jobs.engine.search.View", OracleView):
        return make_ours(task, asha=Oracle)


# To compare: `python -m benchmarks.simulate --part tuning --sides ours "ours, factor 4"`.
VARIANTS: dict[str, MakeSide] = {
    OURS: make_ours,
    "ours, stopping": partial(make_ours, asha=StoppingASHA),
    "oracle": make_oracle,
    "ours, random": partial(make_ours, sampler=RandomSampler),
    "ours, factor 3": partial(make_ours, reduction_factor=3),
    "ours, factor 4": partial(make_ours, reduction_factor=4),
    "ours, grace 2": partial(make_ours, grace_epochs=2),
}
