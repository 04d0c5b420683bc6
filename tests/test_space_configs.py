"""Configs as users give them, and what the study holds for them."""

import functools
import json
import math
import types
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pytest
from ray import tune

from tune_jobs.engine.core.domains import forgotten_in, has_domain
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.space import convert_space

ENCODED: dict[str, Any] = {
    "lr": tune.loguniform(1e-4, 1),
    "depth": tune.qlograndint(8, 64, 8),
    "rate": tune.qloguniform(0.2, 0.8, 0.2),
    "kernel": tune.choice([(3, 3), (5, 5)]),
    "flag": tune.choice([True, 1]),
    "model": {"act": tune.choice([None, "relu"]), "sizes": {1: [2]}, "name": "mlp"},
}


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({"lr": 0.5}, {"lr": 0.5}),
        ({"lr": 1}, {"lr": 1.0}),
        ({"lr": np.float32(0.5), "depth": 16.0}, {"lr": 0.5, "depth": 16}),
        ({"depth": 12, "rate": 0.5}, {"depth": 12, "rate": 0.5}),
        ({"kernel": (3, 3)}, {"kernel": "[3, 3]"}),
        ({"kernel": [5, 5]}, {"kernel": "[5, 5]"}),
        ({"kernel": "[5, 5]"}, {"kernel": "[5, 5]"}),
        ({"flag": 1}, {"flag": "1"}),
        ({"flag": True}, {"flag": "True"}),
        ({"model": {"act": None}}, {"model/act": None}),
        ({"model/act": "relu"}, {"model/act": "relu"}),
        ({"model": {"act": "relu", "sizes": {1: [2]}, "name": "mlp"}}, {"model/act": "relu"}),
        ({"model": {"sizes": {"1": [2]}}, "lr": 1e-4}, {"lr": 1e-4}),
        ({"model/sizes/1": [2], "model/name": "mlp"}, {}),
    ],
    ids=str,
)
def test_space_encodes_config(config: dict[str, Any], params: dict[str, Any]) -> None:
    assert convert_space(ENCODED).encode(config) == params


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"b": 1}, "has 'b'; the space has lr, depth, rate, kernel, flag, model/act"),
        ({"model": {"depth": 1}}, "has 'model/depth'; the space has"),
        ({"lr": 5}, "has lr = 5, which is not in the space: FloatDistribution"),
        ({"lr": None}, "has lr = None, which is not in the space"),
        ({"lr": True}, "has lr = True, which is not in the space"),
        ({"lr": math.nan}, "has lr = nan, which is not in the space"),
        ({"depth": 72}, "has depth = 72, which is not in the space: the multiples of 8 fr"),
        ({"depth": 12.5}, "has depth = 12.5, which is not in the space"),
        ({"depth": "many"}, "has depth = 'many', which is not in the space"),
        ({"kernel": [3, 5]}, "has kernel = [3, 5], which is not in the space: Categorical"),
        ({"model": {"name": "cnn"}}, "has model/name = 'cnn', which is not in the space: 'mlp'"),
        ({"model": {"sizes": {"1": [3]}}}, "has model/sizes = {'1': [3]}, which is not in the"),
        ({"model": 3}, "has 'model'; the space has"),
    ],
    ids=str,
)
def test_space_config_not_in_it(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        convert_space(ENCODED).encode(config)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_space_encodes_special_number(value: float) -> None:
    """As best.json has it, for JSON cannot hold it."""
    space = convert_space({"clip": value, "limit": tune.choice([1.0, value])})
    text = json.dumps(value)
    assert space.encode({"clip": text, "limit": text}) == space.encode({"limit": value})
    with pytest.raises(ValueError, match="not in the space"):
        space.encode({"clip": "1.0"})


def test_space_config_round_trip() -> None:
    """A drawn config is found again, also from its readable form."""
    space = convert_space(ENCODED)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        params = study.ask(space.searched).params  # type: ignore[arg-type]
        config = space.config(space.decode(params))
        for known in (config, readable(config)):
            assert space.decode(space.encode(known)) == space.decode(params)
        assert space.encode(params) == params


@dataclass
class Optimizer:
    lr: Any
    name: str = "sgd"


class Plain:
    def __init__(self, inner: Any) -> None:
        self.inner, self.itself = [inner], self


RATE = tune.uniform(0, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Optimizer(RATE), 'Optimizer(lr=trial.suggest_float("m_lr", 0, 1), name="sgd")'),
        ({"a": Optimizer(RATE)}, "'m/a' has tune.uniform(0, 1) inside a Optimizer"),
        (tune.choice([Optimizer(RATE)]), "'m' has tune.uniform(0, 1) inside a choice"),
        (Plain({"x": RATE}), "'m' has tune.uniform(0, 1) inside a Plain, where it cannot"),
        (functools.partial(max, RATE), 'partial(max, trial.suggest_float("m_1", 0, 1))'),
        (functools.partial(dict, lr=RATE), 'partial(dict, lr=trial.suggest_float("m_lr", 0'),
        (deque([1, RATE]), 'deque([1, trial.suggest_float("m_1", 0, 1)])'),
        (types.MappingProxyType({"x": RATE}), "'m' has tune.uniform(0, 1) inside a mapp"),
        (
            tune.choice,
            "'m' has a function of Tune that is not called; write tune.choice(categories)",
        ),
        ({"a": [tune.uniform]}, "write tune.uniform(lower, upper)."),
        (functools.partial(tune.uniform, 0), "write tune.uniform(lower, upper)."),
    ],
)
def test_space_domain_within_object(value: Any, message: str) -> None:
    """It would be passed on as it is, and not searched."""
    with pytest.raises(SettingsError) as caught:
        convert_space({"x": tune.uniform(0, 1), "m": value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [types.SimpleNamespace(a=[1]), [0.5] * 10**6, optuna.distributions, tune.TuneConfig(), Plain],
    ids=lambda value: type(value).__name__,
)
def test_space_object_without_domain(value: Any) -> None:
    assert not has_domain(value)
    assert forgotten_in(value) is None


def of_spec(spec: Any) -> Any:
    return spec["y"]


def of_nothing(spec: Any) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("sampled", "lines"),
    [
        (
            tune.sample_from(lambda spec: spec.config.y * 2),
            ['y = trial.suggest_float("y", 0, 1)', 'return {"x": y * 2}'],
        ),
        (
            tune.sample_from(lambda config: [config["m"]["z"], 1]),
            ['z = trial.suggest_int("z", 1, 3)', 'return {"x": [z, 1]}'],
        ),
        (
            tune.sample_from(lambda _: math.sqrt(2)),
            ['y = trial.suggest_float("y", 0, 1)', 'return {"x": math.sqrt(2)}'],
        ),
        (
            tune.sample_from(of_nothing),
            ['y = trial.suggest_float("y", 0, 1)', 'return {"x": of_nothing(None)}'],
        ),
        (
            tune.sample_from(of_spec),
            [
                'y = trial.suggest_float("y", 0, 1)',
                "x = 2 * y  # in place of what the function does",
                'return {"x": x}',
            ],
        ),
        (
            tune.sample_from(functools.partial(of_spec)),
            [
                'y = trial.suggest_float("y", 0, 1)',
                "x = 2 * y  # in place of what the function does",
                'return {"x": x}',
            ],
        ),
    ],
)
def test_space_sample_from_shown(sampled: Any, lines: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        convert_space({"x": sampled, "y": tune.uniform(0, 1), "m": {"z": tune.randint(1, 4)}})
    assert str(caught.value).splitlines()[1:] == [
        "    def space(trial):",
        *(f"        {line}" for line in lines),
    ]
