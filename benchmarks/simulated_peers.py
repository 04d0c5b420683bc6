"""The peers in the simulation: searches and schedulers of Ray Tune, Optuna and Syne Tune.

Each has the settings of the job, including its reduction factor; a peer with a factor in its name
has that one. All other settings are the peer's defaults. Syne Tune is not a dependency of this
project: its sides are skipped where it is not installed.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.simulated_time import Decision, MakeSide, Side, Start, Task
from tune_jobs.engine.core.settings import LightningSettings
from tune_jobs.mnist import SEARCH_SPACE

__all__ = ["PEERS", "REDUCTION_FACTOR", "SimulatedTrial", "TuneSide", "has_syne_tune"]

REDUCTION_FACTOR = int(LightningSettings.reduction_factor)


class SimulatedTrial:
    """The attributes of a Tune trial that searches and schedulers read."""

    controller: Any = None

    def __init__(self, number: int, config: dict[str, Any]) -> None:
        self.trial_id = f"{number:05d}"
        self.number = number
        self.config = config
        self.status = Trial.RUNNING


class TuneSide:
    """A search algorithm and a scheduler of Ray Tune, called as its controller calls them.

    Args:
        search: The search algorithm.
        scheduler: The scheduler.
        metric: The name under which trials report their score.
    """

    def __init__(self, search: Any, scheduler: Any, metric: str) -> None:
        self._search = search
        self._scheduler = scheduler
        self._metric = metric
        self._trials: list[SimulatedTrial] = []

    def start(self) -> Start | None:
        number = len(self._trials)
        trial = SimulatedTrial(number, self._search.suggest(f"{number:05d}"))
        self._trials.append(trial)
        self._scheduler.on_trial_add(None, trial)
        return Start(number, trial.config)

    def report(self, number: int, epoch: int, score: float) -> Decision:
        trial = self._trials[number]
        result = {"epoch": epoch, "training_iteration": epoch, self._metric: score}
        decision = self._scheduler.on_trial_result(None, trial, result)
        if decision != TrialScheduler.STOP:
            self._search.on_trial_result(trial.trial_id, result)
            if decision == TrialScheduler.PAUSE:
                trial.status = Trial.PAUSED
                return "pause"
            return "continue"
        trial.status = Trial.TERMINATED
        self._scheduler.on_trial_complete(None, trial, result)
        self._search.on_trial_complete(trial.trial_id, result)
        return "stop"


def make_tune_side(task: Task, is_random: bool, reduction_factor: float = REDUCTION_FACTOR) -> Side:
    """Make Ray Tune's own ASHA with its OptunaSearch, whose sampler is TPE or random."""
    goal = task.goal
    search = OptunaSearch(
        OptunaSearch.convert_search_space(SEARCH_SPACE),
        metric=goal.metric,
        mode=goal.mode,
        points_to_evaluate=task.first_configs,
        **({"sampler": RandomSampler(task.seed)} if is_random else {"seed": task.seed}),
    )
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=goal.metric,
        mode=goal.mode,
        max_t=task.max_epochs,
        reduction_factor=reduction_factor,
    )
    return TuneSide(search, scheduler, goal.metric)


class OptunaSide:
    """An Optuna study with a pruner, used through ask and tell by one worker a slot."""

    def __init__(self, task: Task, pruner: BasePruner) -> None:
        self._study = optuna.create_study(
            study_name="plain",  # Hyperband's brackets depend on the name; the default is random
            direction=task.goal.direction,
            sampler=TPESampler(seed=task.seed),
            pruner=pruner,
        )
        for config in task.first_configs:
            self._study.enqueue_trial(config)
        self._space = OptunaSearch.convert_search_space(SEARCH_SPACE)
        self._max_epochs = task.max_epochs
        self._trials: dict[int, optuna.Trial] = {}

    def start(self) -> Start | None:
        trial = self._study.ask(self._space)
        self._trials[trial.number] = trial
        return Start(trial.number, trial.params)

    def report(self, number: int, epoch: int, score: float) -> Decision:
        trial = self._trials[number]
        trial.report(score, epoch)
        if trial.should_prune():
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return "stop"
        if epoch < self._max_epochs:
            return "continue"
        self._study.tell(trial, score)
        return "stop"


def make_halving_side(task: Task, reduction_factor: int = REDUCTION_FACTOR) -> Side:
    return OptunaSide(task, SuccessiveHalvingPruner(reduction_factor=reduction_factor))


def make_hyperband_side(task: Task, reduction_factor: int = REDUCTION_FACTOR) -> Side:
    return OptunaSide(task, HyperbandPruner(1, task.max_epochs, reduction_factor))


class SyneTuneSide:
    """A scheduler of Syne Tune, called as its tuner calls it.

    Args:
        task: What the side is made for.
        name: The scheduler's name in `syne_tune.optimizer.baselines`.
    """

    def __init__(self, task: Task, name: str) -> None:
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        baselines = importlib.import_module("syne_tune.optimizer.baselines")
        self._scheduler = getattr(baselines, name)(
            config_space=convert_to_syne_tune(SEARCH_SPACE),
            metric=task.goal.metric,
            time_attr="epoch",
            max_t=task.max_epochs,
            do_minimize=task.goal.mode == "min",
            random_seed=task.seed,
            reduction_factor=REDUCTION_FACTOR,
            points_to_evaluate=task.first_configs,
        )
        self._trial_type = importlib.import_module("syne_tune.backend.trial_status").Trial
        self._metric = task.goal.metric
        self._trials: list[Any] = []
        np.random.seed(task.seed)  # the scheduler draws from the global generator too

    def start(self) -> Start | None:
        config = self._scheduler.suggest().config
        trial = self._trial_type(len(self._trials), config, datetime.now())
        self._trials.append(trial)
        self._scheduler.on_trial_add(trial)
        return Start(trial.trial_id, config)

    def report(self, number: int, epoch: int, score: float) -> Decision:
        trial = self._trials[number]
        result = {"epoch": epoch, self._metric: score}
        if self._scheduler.on_trial_result(trial, result) != "STOP":
            return "continue"
        self._scheduler.on_trial_remove(trial)
        return "stop"


def convert_to_syne_tune(space: dict[str, Any]) -> dict[str, Any]:
    """Convert a Tune search space to Syne Tune's, whose integers include the upper bound."""
    domains = importlib.import_module("syne_tune.config_space")

    def convert(domain: Any) -> Any:
        if hasattr(domain, "categories"):
            return domains.choice(domain.categories)
        if isinstance(domain.lower, int):
            return domains.randint(domain.lower, domain.upper - 1)
        is_logarithmic = "LogUniform" in type(domain.sampler).__name__
        make = domains.loguniform if is_logarithmic else domains.uniform
        return make(domain.lower, domain.upper)

    return {name: convert(domain) for name, domain in space.items()}


def has_syne_tune() -> bool:
    return importlib.util.find_spec("syne_tune") is not None


def _syne_tune(name: str) -> Callable[[Task], Side]:
    return lambda task: SyneTuneSide(task, name)


PEERS: dict[str, MakeSide] = {
    "random + ASHA": partial(make_tune_side, is_random=True),
    "OptunaSearch + ASHA": partial(make_tune_side, is_random=False),
    "Optuna + SuccessiveHalving": make_halving_side,
    "Optuna + Hyperband": make_hyperband_side,
    "Syne Tune ASHA": _syne_tune("ASHA"),
    "Syne Tune BOHB": _syne_tune("BOHB"),
    "random + ASHA, factor 3": partial(make_tune_side, is_random=True, reduction_factor=3),
    "OptunaSearch + ASHA, factor 3": partial(make_tune_side, is_random=False, reduction_factor=3),
    # The factors that the peers have by default.
    "random + ASHA, factor 4": partial(make_tune_side, is_random=True, reduction_factor=4),
    "OptunaSearch + ASHA, factor 4": partial(make_tune_side, is_random=False, reduction_factor=4),
    "Optuna + SuccessiveHalving, factor 4": partial(make_halving_side, reduction_factor=4),
    "Optuna + Hyperband, factor 3": partial(make_hyperband_side, reduction_factor=3),
}
