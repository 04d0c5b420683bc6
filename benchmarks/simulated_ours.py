"""This project's searcher and scheduler in the simulation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import optuna
from optuna.samplers import BaseSampler, TPESampler
from ray.tune.experiment import Trial

from benchmarks.simulated_peers import SimulatedTrial, TuneSide
from benchmarks.simulated_time import MakeSide, Side, Start, Task
from tune_jobs.engine.core.settings import LightningSettings
from tune_jobs.engine.search.asha import ASHA, PromotionASHA, StoppingASHA
from tune_jobs.engine.search.study_search import StudySearch, convert_space
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.record import Record
from tune_jobs.mnist import SEARCH_SPACE

__all__ = ["OURS", "OURS_SIDES", "OurSide", "make_ours"]

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
    asha: Callable[..., ASHA] = PromotionASHA,
    grace_epochs: int = 1,
    reduction_factor: float = LightningSettings.reduction_factor,
    sampler: Callable[[], BaseSampler] = TPESampler,
    view: type[View] = View,
) -> Side:
    """The objects of a sweep as `tune_jobs/engine/sweep.py` wires them; the record is in memory."""
    goal = task.goal
    record = Record(Path(), optuna.create_study(direction=goal.direction), Event())
    for config in task.first_configs:
        record.enqueue(config)
    scheduler: Any = asha(
        goal, task.max_epochs, grace_epochs, reduction_factor, stop_at=None, record=record
    )
    with patch("tune_jobs.engine.search.study_search.View", view):
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


OURS_SIDES: dict[str, MakeSide] = {
    OURS: make_ours,
    "ours, stopping": partial(make_ours, asha=StoppingASHA),
}
