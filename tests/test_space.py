"""Search spaces: what is searched, what the study holds, what a config holds."""

import functools
import math
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.parameters import copied
from tune_jobs.engine.core.readable import same
from tune_jobs.engine.core.space import SearchSpace, contains, convert_space


class Net:
    """A class that a user chooses."""


class Width(IntEnum):
    SMALL = 8


def draw(space: SearchSpace, num: int = 50) -> list[dict[str, Any]]:
    """What the study holds for random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask(space.searched).params for _ in range(num)]  # type: ignore[arg-type]


def values_of(domain: Any, num: int = 50) -> list[Any]:
    space = convert_space({"x": domain})
    return [space.decode(params)["x"] for params in draw(space, num)]


def test_stock_conversion_drops_constants() -> None:
    assert OptunaSearch.convert_search_space({"lr": tune.uniform(0, 1), "b": 32}).keys() == {"lr"}


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (tune.uniform(0, 1), FloatDistribution(0, 1)),
        (tune.quniform(0.2, 0.8, 0.2), FloatDistribution(0.2, 0.8, step=0.2)),
        (tune.quniform(0.1 + 0.2, 0.8, 0.1), FloatDistribution(0.3, 0.8, step=0.1)),
        (tune.loguniform(1e-4, 1), FloatDistribution(1e-4, 1, log=True)),
        (tune.qloguniform(1e-3, 1, 1e-3), FloatDistribution(1e-3, 1, log=True)),
        (tune.randint(0, 5), IntDistribution(0, 4)),
        (tune.lograndint(1, 1000), IntDistribution(1, 999, log=True)),
        (tune.qrandint(8, 64, 8), IntDistribution(8, 64, step=8)),
        (tune.qrandint(5, 30, 8), IntDistribution(8, 24, step=8)),
        (tune.qrandint(1, 4), IntDistribution(1, 3)),
        (tune.qlograndint(8, 512, 8), IntDistribution(8, 512, log=True)),
        (tune.randn(1, 2), FloatDistribution(-5, 7)),
        (tune.qrandn(0, 1, 0.5), FloatDistribution(-3, 3, step=0.5)),
        (tune.choice(["a", None]), CategoricalDistribution(["a", None])),
        (tune.uniform(np.float32(0), np.int64(3)), FloatDistribution(0, 3)),
        (tune.randint(np.int64(2), torch.tensor(5)), IntDistribution(2, 4)),
        (FloatDistribution(0, 1, step=0.5), FloatDistribution(0, 1, step=0.5)),
        (IntDistribution(1, 8, log=True), IntDistribution(1, 8, log=True)),
        (CategoricalDistribution(["a", 1]), CategoricalDistribution(["a", 1])),
    ],
    ids=str,
)
def test_space_domain_distribution(domain: Any, expected: BaseDistribution) -> None:
    found = convert_space({"x": domain}).parameters["x"].distribution
    assert found == expected
    bounds = [getattr(found, name) for name in ("low", "high", "step") if hasattr(found, name)]
    assert all(type(bound) in (int, float, type(None)) for bound in bounds)


@pytest.mark.parametrize(
    ("domain", "low", "high", "step"),
    [
        (tune.quniform(0.2, 0.8, 0.2), 0.2, 0.8, 0.2),
        (tune.qloguniform(1e-3, 1, 1e-3), 1e-3, 1, 1e-3),
        (tune.qlograndint(8, 512, 8), 8, 512, 8),
        (tune.qlograndint(5, 100, 10), 10, 100, 10),
        (tune.qrandint(5, 64, 8), 8, 64, 8),
        (tune.qrandn(0.05, 1, 0.1), -2.9, 3.0, 0.1),
    ],
    ids=str,
)
def test_space_values_on_grid(domain: Any, low: float, high: float, step: float) -> None:
    values = values_of(domain, 300)
    assert all(low <= value <= high for value in values)
    assert all(value == float(f"{round(value / step) * step:.12g}") for value in values)
    number = convert_space({"x": domain}).parameters["x"]
    assert number.size == round((high - low) / step) + 1
    assert number.values is not None
    assert set(values) <= set(number.values)


@pytest.mark.parametrize(
    "choices",
    [
        [[64], [64, 32]],
        [(3, 3), (5, 5)],
        [{"name": "sgd", "momentum": 0.9}, {}],
        [{1: "a"}, {"1": "a"}],
        list(np.array([32, 64])),
        list(np.linspace(0.1, 0.5, 3)),
        [np.arange(2), torch.ones(2)],
        [Net, torch.nn.ReLU, values_of],
        [1, True, 1.0],
        [None, "None"],
        [math.inf, math.nan, 0.5],
        [Width.SMALL, 8],
        ["a" * 500 + "b", ("a" * 500 + "c",)],
    ],
    ids=str,
)
def test_space_choice_is_itself(choices: list[Any]) -> None:
    """The config holds the value with its type; the study what its file can hold."""
    space = convert_space({"x": tune.choice(choices)})
    parameter = space.parameters["x"]
    assert isinstance(parameter.distribution, CategoricalDistribution)
    held = parameter.distribution.choices
    assert all(type(name) in (bool, int, float, str, type(None)) for name in held)
    assert len(set(held)) == len(choices) == parameter.size
    for name, choice in zip(held, choices, strict=True):
        assert same(parameter.decode(name), choice) or choice != choice
        assert parameter.encode(choice) == name
        assert parameter.held_at(parameter.index(name)) == name


def test_space_choice_labels() -> None:
    domains = {
        "plain": tune.choice([None, "relu", 3, 0.5, True]),
        "numbers": tune.choice(list(np.array([32, 64]))),
        "lists": tune.choice([(3, 3), [3, 3]]),
        "mixed": tune.choice([1, True, "1"]),
        "classes": tune.choice([Net, lambda: 1]),
    }
    held = {
        name: parameter.distribution.choices  # type: ignore[attr-defined]
        for name, parameter in convert_space(domains).parameters.items()
    }
    assert held == {
        "plain": (None, "relu", 3, 0.5, True),
        "numbers": (32, 64),
        "lists": ("[3, 3]", "[3, 3] (2)"),
        "mixed": ("1 (2)", "True", "1"),
        "classes": ("Net", "test_space_choice_labels.<locals>.<lambda>"),
    }


def test_space_repeated_choices_weigh() -> None:
    parameter = convert_space({"x": tune.choice(["a", "a", "b"])}).parameters["x"]
    assert parameter.distribution == CategoricalDistribution(["a", "a (2)", "b"])
    assert [parameter.decode(held) for held in ("a", "a (2)", "b")] == ["a", "a", "b"]
    assert (parameter.size, parameter.values) == (2, ["a", "b"])
    assert [parameter.index(held) for held in ("a", "a (2)", "b")] == [0, 0, 1]


@pytest.mark.parametrize("value", [[1], {"a": [1]}, np.zeros(2), {1}])
def test_space_values_not_shared(value: Any) -> None:
    """What one trial does to its config reaches no other."""
    space = convert_space({"x": tune.choice([value]), "c": value, "y": tune.uniform(0, 1)})
    (held,) = draw(space, 1)
    one, other = (space.config(space.decode(held)) for _ in range(2))
    assert same(one["x"], value)
    assert same(one["c"], value)
    assert len({id(config[name]) for config in (one, other) for name in ("x", "c")}) == 4


class Unshown:
    def __repr__(self) -> str:
        raise ArithmeticError


DEEP = functools.reduce(lambda value, _: [value], range(2_000), [1])
ITSELF: dict[str, Any] = {}
ITSELF["a"] = [ITSELF]
GRAPH = torch.ones(1, requires_grad=True) * 2
UNSENT = [threading.Lock(), math, GRAPH, 10**5000, Unshown(), DEEP, ITSELF]


@pytest.mark.parametrize("value", UNSENT, ids=lambda value: type(value).__name__)
def test_space_values_sent(value: Any) -> None:
    """Ray copies and pickles each config, and would end the sweep."""
    message = "'m/v' holds .*, which cannot be sent to a trial"
    with pytest.raises(SettingsError, match=message):
        convert_space({"x": tune.uniform(0, 1), "m": {"v": value, "y": tune.uniform(0, 1)}})
    with pytest.raises(SettingsError, match=message):
        convert_space({"m": {"v": tune.choice([1, [value]])}})


def test_space_unsendable_without_quotes() -> None:
    """They are for text."""
    with pytest.raises(SettingsError, match="'v' holds lock, which cannot be sent"):
        convert_space({"x": tune.uniform(0, 1), "v": threading.Lock()})


def test_space_value_without_copy() -> None:
    lock = threading.Lock()
    assert copied(lock) is lock


@pytest.mark.parametrize(
    "constant",
    [
        {1: 2, "a/b": 3},
        {},
        {"a": {}},
        [1, {"a": 2}],
        np.arange(3),
        {"weights": torch.ones(2)},
        Net,
        None,
        (1, 2),
    ],
    ids=str,
)
def test_space_constant_stays_whole(constant: Any) -> None:
    space = convert_space({"x": tune.uniform(0, 1), "c": constant, "deep": {"c": constant}})
    assert space.constants.keys() == {"c", "deep"}
    config = space.config({"x": 0.5})
    assert same(config, {"c": constant, "deep": {"c": constant}, "x": 0.5})


def test_space_nested_names_are_flat() -> None:
    nested = {"model": {"lr": tune.uniform(0, 1), "name": "mlp", "sizes": {3: 4}}, "batch_size": 32}
    space = convert_space(nested)
    assert space.searched == {"model/lr": FloatDistribution(0, 1)}
    assert space.constants == {"model/name": "mlp", "model/sizes": {3: 4}, "batch_size": 32}
    assert space.config({"model/lr": 0.5}) == {
        "model": {"name": "mlp", "sizes": {3: 4}, "lr": 0.5},
        "batch_size": 32,
    }


def test_space_define_by_run() -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    converted = convert_space(space)
    assert converted == SearchSpace({}, space)
    assert converted.searched is space
    assert converted.size is None
    assert converted.config({"a/b": 1}) == {"a/b": 1}


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({"x": tune.uniform(0, 1)}, None),
        ({"x": tune.choice([1, 2, 3]), "y": tune.quniform(0, 1, 0.25), "c": 5}, 15),
        ({"x": tune.randint(0, 10**12), "y": tune.randint(0, 10**12)}, 10**24),
        ({"x": tune.choice([1, 2]), "y": tune.randn(0, 1)}, None),
        ({"x": tune.uniform(1, 1)}, 1),
        ({"x": tune.grid_search([1, 2]), "y": tune.choice([1, 1])}, 2),
    ],
)
def test_space_size(space: dict[str, Any], size: int | None) -> None:
    assert convert_space(space).size == size


def test_space_grid_points() -> None:
    space = convert_space(
        {
            "a": tune.grid_search([1, 2, 2]),
            "b": {"c": {"grid_search": [(1,), (2,)]}},
            "x": tune.uniform(0, 1),
        }
    )
    assert space.grid == ("a", "b/c")
    held = [space.decode(point) for point in space.points()]
    assert [tuple(point.values()) for point in held] == [
        (1, (1,)),
        (1, (2,)),
        (2, (1,)),
        (2, (2,)),
    ]


def test_space_notes() -> None:
    space = convert_space(
        {"x": tune.randn(1, 2), "y": tune.qrandn(0, 1, 0.4), "z": tune.choice([1])}
    )
    assert space.notes == (
        "x: tune.randn(1, 2) is searched evenly between -5 and 7, its mean and three standard "
        "deviations to either side.",
        "y: tune.qrandn(0, 1, 0.4) is searched evenly between -2.8 and 2.8, its mean and three "
        "standard deviations to either side.",
    )


SAMPLED = """
    def space(trial):
        a = trial.suggest_int("a", 5, 9)
        return {"m": {"b": 2}}"""
IN_LIST = """
    def space(trial):
        layers = [trial.suggest_int("layers_0", 8, 63), 3]
        return {"layers": layers}"""
IN_CHOICE = """
    def space(trial):
        which = trial.suggest_categorical("opt", [0, 1])
        return {"opt": {"name": "sgd", "m": trial.suggest_float("opt_0_m", 0, 1)} if which == 0 \
else "adam"}"""


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, "space must be a dict of Tune domains or a function of an Optuna trial, got None;"),
        ([1], "space must be a dict of Tune domains or a function of an Optuna trial, got [1];"),
        (tune.uniform(0, 1), "got tune.uniform(0, 1); give for example"),
        (lambda: 1, "'<lambda>' does not take one argument"),
        ({}, "holds nothing to search"),
        ({"lr": 0.1}, "holds nothing to search"),
        ({"grid_search": [1, 2]}, "holds nothing to search"),
        ({"a/b": tune.uniform(0, 1)}, "the key 'a/b', and '/' separates"),
        ({"x": tune.uniform(0, 1), "a/b": 1}, "the key 'a/b', and '/' separates"),
        ({3: tune.uniform(0, 1)}, "the key 3, which is no text; write '3'"),
        ({"m": {None: 1, "x": tune.uniform(0, 1)}}, "the key None, which is no text"),
        ({"x": tune.uniform(1, 0)}, "'x' holds no value: tune.uniform(1, 0)."),
        ({"x": tune.randint(5, 5)}, "'x' holds no value: tune.randint(5, 5); its upper bound is"),
        ({"x": tune.randint(0.5, 5)}, "'x' must have whole numbers, got tune.randint(0.5, 5)."),
        ({"x": tune.randint(None, 5)}, "'x' must have a finite number as its lower bound, got"),
        (
            {"x": tune.randint(False, True)},
            "'x' must have a number, not True or False",
        ),
        ({"x": tune.uniform(0, True)}, "'x' must have a number, not True or False, as its upper"),
        ({"x": tune.randint(0, math.nan)}, "'x' must have a finite number as its upper bound, got"),
        ({"m": {"x": tune.search.sample.Float(None, 1)}}, "'m/x' must have a finite number as its"),
        ({"x": tune.randn(math.nan, 1)}, "'x' must have a finite number as its mean, got"),
        ({"x": tune.qrandint(0, 10, 0)}, "'x' must have a step above 0, got tune.qrandint(0, 10"),
        ({"x": tune.qrandint(1, 7, 8)}, "'x' holds no value: tune.qrandint(1, 7, 8)."),
        ({"x": tune.choice([])}, "'x' must have a list of values to choose from, got tune.choice"),
        ({"x": tune.grid_search(3)}, "'x' must have a list of values to choose from, got"),
        ({"x": tune.grid_search("abc")}, "'x' must have a list of values to choose from, got"),
        (
            {"m": {"a": tune.randint(5, 10), "b": tune.sample_from(lambda config: 2)}},
            f"'m/b' is tune.sample_from, {'of which Optuna does not know what it draws'}; write the"
            f" space as a function:{SAMPLED}",
        ),
        (
            {"layers": [tune.randint(8, 64), 3]},
            "'layers' has tune.randint(8, 64) inside a list, where it cannot be searched; write "
            f"the space as a function:{IN_LIST}",
        ),
        (
            {"opt": tune.choice([{"name": "sgd", "m": tune.uniform(0, 1)}, "adam"])},
            "'opt' has tune.uniform(0, 1) inside a choice, where it cannot be searched; write the "
            f"space as a function:{IN_CHOICE}",
        ),
        ({"x": (tune.grid_search([1]),)}, "'x' has tune.grid_search([1]) inside a tuple"),
        ({"x": {"y": {tune.uniform(0, 1)}}}, "'x/y' has tune.uniform(0, 1) inside a set"),
        ({"x": np.array([tune.randn()])}, "'x' has tune.randn(0.0, 1.0) inside a ndarray"),
        ({"x": tune.grid_search([tune.uniform(0, 1)])}, "'x' has tune.uniform(0, 1) inside a cho"),
        ({"x": tune.choice([tune.sample_from(lambda: 1)])}, "'x' has tune.sample_from inside a"),
        ({"x": tune.choice([[[tune.randint(0, 2)]]])}, "'x' has tune.randint(0, 2) inside a ch"),
    ],
)
def test_space_not_searchable(space: Any, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        convert_space(space)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "space",
    [
        {"layers": [tune.randint(8, 64), 3]},
        {"layers": (tune.loguniform(0.1, 1), {"a": tune.choice(["x", "y"])})},
        {"opt": tune.choice([{"m": tune.uniform(0, 1)}, {"m": tune.uniform(0, 9)}, "adam"])},
        {"m": {"opt": tune.grid_search([tune.qrandint(2, 8, 2), None])}},
        {"x": [tune.randn(0, 1), tune.quniform(0, 1, 0.5), IntDistribution(1, 4)]},
    ],
)
def test_space_shown_function_works(space: dict[str, Any]) -> None:
    """What the message shows can be pasted, and gives a config of the same form."""
    with pytest.raises(SettingsError) as caught:
        convert_space(space)
    code = "\n".join(line[4:] for line in str(caught.value).splitlines()[1:])
    found: dict[str, Callable[[optuna.Trial], dict[str, Any]]] = {}
    exec(code, found)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        config = found["space"](study.ask())
        assert config.keys() == space.keys()
        assert not isinstance(next(iter(config.values())), tune.search.sample.Domain)


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
        (CategoricalDistribution(["a", None]), None, True),
        (CategoricalDistribution(["a", None]), "b", False),
    ],
)
def test_distribution_contains_value(
    distribution: BaseDistribution, value: Any, expected: bool
) -> None:
    assert contains(distribution, value) == expected
