"""A search that tests drive as Tune and the scheduler do: `Driven`."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import STUDY_FILE
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.core.space import Space, convert_space
from tune_jobs.engine.search.study_search import SearchListener, StudySearch
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.entries import id_of
from tune_jobs.engine.store.record import Record

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "layers": tune.choice([2, 3])}
OOM = Outcome(Kind.OUT_OF_MEMORY, Cause.TRIAL, "out of memory; try more", "Traceback ...")


class Driven:
    """A search on the record of a sweep without rungs; a record that is there is reopened.

    Args:
        folder: The folder of the record.
        mode: "max" or "min".
        space: What is searched.
        sampler: None: a random one.
        on_trial_end: Called with each trial that has ended.
    """

    def __init__(
        self,
        folder: Path,
        mode: str = "max",
        space: Space = SPACE,
        sampler: BaseSampler | None = None,
        on_trial_end: Callable[[FrozenTrial], None] = lambda trial: None,
    ) -> None:
        class Listener(SearchListener):
            def on_trial_end(self, trial: FrozenTrial) -> None:
                on_trial_end(trial)

        goal = Goal("score", mode)
        if (folder / STUDY_FILE).exists():
            self.record = Record.open(folder, Event())
        else:
            self.record = Record.create(folder, "sweep", goal, Event())
        self.space = convert_space(space)
        self.view = View(goal, sampler or RandomSampler(), Rungs(goal), self.record.kept())
        for trial in self.record.started():
            self.view.add(trial, id_of(trial))
        self.search = StudySearch(self.space, goal, self.record, self.view, 0, Listener())

    @property
    def trials(self) -> list[FrozenTrial]:
        """What is recorded."""
        return self.record.study.get_trials()

    @property
    def shown(self) -> list[FrozenTrial]:
        """What the sampler is shown."""
        return self.view.study.get_trials()

    def report(self, trial_id: str, *scores: float, stop: Kind | None = None) -> None:
        """Report epoch by epoch, with the decision to stop on the last."""
        for epoch, score in enumerate(scores, 1):
            decision = stop if epoch == len(scores) else None
            self.record.report(trial_id, score, result(epoch, score), decision)
            if decision is None:
                self.search.on_trial_result(trial_id, result(epoch, score))

    def run(self, trial_id: str, *scores: float, stop: Kind | None = None) -> FrozenTrial:
        """Run a whole trial."""
        self.search.suggest(trial_id)
        self.report(trial_id, *scores, stop=stop)
        last = result(len(scores), scores[-1], done=True) if scores else None
        self.search.on_trial_complete(trial_id, last)
        return self.record.trial(trial_id)

    def fail(self, trial_id: str, *scores: float, failure: Outcome) -> FrozenTrial:
        """Run a whole trial that fails.

        The scheduler decides nothing where the storage failed: the trial can be resumed.
        """
        self.search.suggest(trial_id)
        self.report(trial_id, *scores)
        if failure.cause != Cause.STORAGE:
            self.record.decide(trial_id, failure)
        self.search.on_trial_complete(trial_id, None, error=True)
        return self.record.trial(trial_id)


def result(epoch: int, score: float, done: bool = False) -> dict[str, Any]:
    """A result as Tune has it."""
    return {"score": score, "epoch": epoch, "training_iteration": epoch, "done": done}


def make_stock() -> OptunaSearch:
    space = OptunaSearch.convert_search_space(SPACE)
    return OptunaSearch(space, metric="score", mode="max", seed=0)


def drive_stock(search: OptunaSearch, trial_id: str, *scores: float) -> None:
    """Report as Tune does: a stopped trial's last result comes with its end only."""
    search.suggest(trial_id)
    for epoch, score in enumerate(scores[:-1], 1):
        search.on_trial_result(trial_id, result(epoch, score))
    last = result(len(scores), scores[-1], done=True)
    search.on_trial_complete(trial_id, last)
