"""This project's search and scheduler as sides of the simulation."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import InMemoryStorage
from ray.tune.experiment import Trial

from benchmarks.simulated_peers import SimulatedTrial, TuneSide
from benchmarks.simulated_time import MakeSide, Side, Start, Task
from tune_jobs.engine.core.settings import LightningSettings
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.search.asha import PromotionASHA, StoppingASHA
from tune_jobs.engine.search.study_search import StudySearch
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.record import Record
from tune_jobs.mnist import SEARCH_SPACE

__all__ = ["OURS", "OURS_SIDES", "OurSide", "make_ours"]

OURS = "ours"
STUDY_NAME = "simulated"
DEFAULTS = LightningSettings()


class OurSide(TuneSide):
    """Called as Tune's controller calls this project's parts, whose queue first asks the scheduler
    for a paused trial to resume."""

    def start(self) -> Start | None:
        if self._scheduler.promote(is_last=False):
            trial: SimulatedTrial = self._scheduler.choose_trial_to_run(None)
            trial.status = Trial.RUNNING
            return Start(trial.number, trial.config)
        return super().start()


def make_ours(
    task: Task,
    settings: LightningSettings = DEFAULTS,
    make_sampler: Callable[[], BaseSampler] = TPESampler,
    make_view: Callable[..., View] = View,
) -> Side:
    """Make the parts of a sweep and connect them as `engine/execution/driver.py` does.

    The record is in memory. To try a change, give another part, and add the side to `OURS_SIDES`.

    Args:
        task: What the side is made for.
        settings: Those of ASHA are used; `max_epochs` is the task's.
        make_sampler: Makes the sampler.
        make_view: Makes what the sampler is shown; called with the arguments of `View`.
    """
    goal, record = task.goal, _make_record(task)
    settings = replace(settings, max_epochs=task.max_epochs)
    kind: type[StoppingASHA] = PromotionASHA if settings.halving.pauses else StoppingASHA
    scheduler = kind(goal, record, settings)
    view = make_view(goal, make_sampler(), scheduler.rungs, record.kept(), scheduler.is_paused)
    search = StudySearch(convert_space(SEARCH_SPACE), goal, record, view, task.seed)
    return OurSide(search, scheduler, goal.metric)


def _make_record(task: Task) -> Record:
    """A record in memory, with the first configs in its queue."""
    storage = InMemoryStorage()
    optuna.create_study(storage=storage, study_name=STUDY_NAME, direction=task.goal.direction)
    record = Record(Path(), storage, STUDY_NAME, Event())
    for config in task.first_configs:
        record.enqueue(config)
    return record


OURS_SIDES: dict[str, MakeSide] = {
    OURS: make_ours,
    "ours, stopping": partial(make_ours, settings=LightningSettings(asha="stopping")),
}
