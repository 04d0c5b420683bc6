"""Ray's OptunaSearch as a sampler: `StockSampler`, the stock side of `benchmarks/race.py`."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.goal import Goal

__all__ = ["StockSampler"]


class StockSampler(BaseSampler):
    """Suggests what Ray's OptunaSearch suggests, within a sweep of this project.

    It asks an OptunaSearch for each trial and completes each finished trial there as Ray Tune does:
    with its last score, whether ASHA stopped it or not. So the OptunaSearch's own study, in which
    TPE draws, is the stock one. As in Ray Tune, a trial that reported NaN is never completed there.

    Args:
        space: A Tune search space.
        goal: What is optimized.
    """

    def __init__(self, space: dict[str, Any], goal: Goal) -> None:
        # An attribute of its own, so that the engine finds its random generators and seeds them.
        self._sampler = TPESampler()
        self._goal = goal
        self._search = OptunaSearch(
            OptunaSearch.convert_search_space(space),
            metric=goal.metric,
            mode=goal.mode,
            sampler=self._sampler,
        )
        self._params: dict[int, dict[str, Any]] = {}  # of trials that are not completed, by number

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        for other in study.get_trials(deepcopy=False):
            curve = other.intermediate_values
            if other.number in self._params and other.state.is_finished() and curve:
                del self._params[other.number]
                result = {self._goal.metric: curve[max(curve)]}
                self._search.on_trial_complete(str(other.number), result)
        self._params[trial.number] = self._search.suggest(str(trial.number))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._params[trial.number][param_name]
