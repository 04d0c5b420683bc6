"""Search spaces, as Optuna takes them."""

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.space import contains, convert_space


def test_stock_conversion_drops_constants() -> None:
    assert OptunaSearch.convert_search_space({"lr": tune.uniform(0, 1), "b": 32}).keys() == {"lr"}


def test_space_of_optuna_distributions() -> None:
    distribution = IntDistribution(1, 3)
    assert convert_space({"n": distribution, "c": 5}) == ({"n": distribution}, {"c": 5})


def test_space_nested_names_are_flat() -> None:
    space = {"model": {"lr": tune.uniform(0, 1), "name": "mlp"}, "batch_size": 32}
    searched, constants = convert_space(space)
    assert searched == {"model/lr": FloatDistribution(0, 1)}
    assert constants == {"model/name": "mlp", "batch_size": 32}


def test_space_define_by_run() -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    assert convert_space(space) == (space, {})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "holds nothing to search"),
        ({"lr": 0.1}, "holds nothing to search"),
        ({"lr": tune.grid_search([1, 2])}, "cannot be searched by Optuna: Grid search"),
        ({"lr": tune.randn(0, 1)}, "cannot be searched by Optuna: Optuna search does not support"),
        ({"a/b": tune.uniform(0, 1)}, "cannot be searched by Optuna"),
        ({"layers": tune.choice([[64], [64, 64]])}, "choices of 'layers' must be None, bool, int"),
    ],
)
def test_space_not_searchable(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        convert_space(space)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("distribution", "value", "expected"),
    [
        (FloatDistribution(0, 1), 0.5, True),
        (FloatDistribution(0, 1), 1, True),
        (FloatDistribution(0, 1), 1.5, False),
        (FloatDistribution(0, 1), "0.5", True),  # Optuna itself reads it as a number
        (FloatDistribution(0, 1), "half", False),
        (FloatDistribution(0, 1), None, False),
        (IntDistribution(1, 3), 2, True),
        (IntDistribution(1, 3), 4, False),
        (optuna.distributions.CategoricalDistribution(["a", None]), None, True),
        (optuna.distributions.CategoricalDistribution(["a", None]), "b", False),
    ],
)
def test_distribution_contains_value(
    distribution: BaseDistribution, value: Any, expected: bool
) -> None:
    assert contains(distribution, value) == expected
