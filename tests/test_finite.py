"""Finite spaces, in which no config is tried twice, and grids."""

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from asked import Ran
from optuna.samplers import RandomSampler, TPESampler
from ray import tune

from tune_jobs.engine.core.space import Space

FEW: dict[str, Any] = {"k": tune.choice([1, 2]), "m": {"c": tune.choice(["a", (1,), "a"])}}


def few(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_categorical("k", [1, 2])
    trial.suggest_float("c", 0, 1, step=0.5)
    return {"constant": [1]}


def branch(trial: optuna.Trial) -> None:
    if not trial.suggest_int("a", 0, 2):
        trial.suggest_int("b", 0, 3)


@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler])
@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({"depth": tune.choice([1, 2, 3])}, 3),
        (FEW, 4),
        ({"a": tune.quniform(0, 1, 0.25), "b": tune.qloguniform(0.1, 0.4, 0.1)}, 20),
        ({"a": tune.qlograndint(8, 64, 8), "c": 7}, 8),
        (few, 6),
        (branch, 6),
    ],
)
def test_finite_space_each_config_once(
    space: Space, size: int, sampler: Any, tmp_path: Path
) -> None:
    ran = Ran(tmp_path, space, size // 2, sampler=sampler())
    again = Ran(tmp_path, space, size - size // 2, sampler=sampler())  # resumed
    configs = [repr(config) for config in ran.configs + again.configs]
    assert len(set(configs)) == len(configs) == size
    again.run()
    assert again.is_exhausted


def test_finite_space_returned_not_compared(tmp_path: Path) -> None:
    """Nor how a choice is pickled: in another process a class is another one."""

    def nets(trial: optuna.Trial) -> dict[str, Any]:
        made = type("Net", (), {"made": random.random()})
        trial.suggest_categorical("net", [made, {"a"}, None])
        return {"out": trial.number}

    def numbers(trial: optuna.Trial) -> dict[str, Any]:
        return {"k": trial.suggest_categorical("k", [(1,), (2,)]), "out": trial.number}

    for size, space in ((2, numbers), (3, nets)):
        folder = tmp_path / str(size)
        folder.mkdir()
        assert len(Ran(folder, space, 1).configs) == 1
        again = Ran(folder, space, size)
        assert len(again.configs) == size - 1
        assert again.is_exhausted


def test_finite_space_draws_do_not_depend_on_time(tmp_path: Path) -> None:
    """A sweep that was killed after each trial tries the same configs."""
    (tmp_path / "whole").mkdir()
    whole = Ran(tmp_path / "whole", few, 6).configs
    assert [Ran(tmp_path, few, 1).configs[0] for _ in range(6)] == whole


def test_finite_space_failed_counts_as_tried(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        layers = trial.suggest_int("layers", 1, 3)
        trial.suggest_int("heads", 2, layers)

    ran = Ran(tmp_path, space, 5)
    assert ran.failures == ["ValueError: `low <= high` must hold, but got (low=2, high=1)."]
    assert len(ran.configs) == 3
    assert ran.is_exhausted


def test_finite_space_queue_is_exempt(tmp_path: Path) -> None:
    for space, given in ((FEW, {"k": 1, "m/c": "a"}), (few, {"k": 1, "c": 0.5})):
        folder = tmp_path / str(callable(space))
        folder.mkdir()
        configs = Ran(folder, space, 3, queue=[given, given]).configs
        assert configs[0] == configs[1] != configs[2]


def test_partly_finite_function(tmp_path: Path) -> None:
    """A branch without end is drawn for as long as it takes."""

    def space(trial: optuna.Trial) -> None:
        if trial.suggest_categorical("kind", ["a", "b"]) == "b":
            trial.suggest_float("x", 0, 1)

    configs = Ran(tmp_path, space, 12).configs
    assert sum(config["kind"] == "a" for config in configs) <= 1
    assert len(configs) == 12


def test_huge_number_in_space(tmp_path: Path) -> None:
    """More than `len` can count, and than a machine's integer holds."""

    def function(trial: optuna.Trial) -> None:
        trial.suggest_int("a", 0, 2**70)

    for name, space in {"dict": {"a": tune.randint(0, 2**70)}, "function": function}.items():
        (tmp_path / name).mkdir()
        ran = Ran(tmp_path / name, space, 3)
        assert not ran.failures
        assert len({config["a"] for config in ran.configs}) == 3


def test_huge_finite_space(tmp_path: Path) -> None:
    space = {"a": tune.randint(0, 10**9), "b": tune.choice(range(1000))}
    assert len(Ran(tmp_path, space, 3).configs) == 3


def test_first_draw_as_ever(tmp_path: Path) -> None:
    """Sweeps of earlier versions continue as they would have: the seed of the first draw stays."""
    (config,) = Ran(tmp_path, {"x": tune.uniform(0, 1)}, 1).configs
    assert config == {"x": 0.5355993486273284}


def test_grid_each_point_in_order(tmp_path: Path) -> None:
    space = {"g": tune.grid_search([1, 2, 2]), "h": {"k": tune.grid_search(["a", (1,)])}}
    ran = Ran(tmp_path, space, 3)
    again = Ran(tmp_path, space, 2)
    points = [(config["g"], config["h"]["k"]) for config in ran.configs + again.configs]
    assert points == [(1, "a"), (1, (1,)), (2, "a"), (2, (1,))]
    assert again.is_exhausted


def test_grid_beside_random_domain(tmp_path: Path) -> None:
    space = {"g": tune.grid_search([1, 2, 3]), "x": tune.uniform(0, 1)}
    configs = Ran(tmp_path, space, 4).configs + Ran(tmp_path, space, 3).configs
    assert [config["g"] for config in configs] == [1, 2, 3, 1, 2, 3, 1]
    assert len({config["x"] for config in configs}) == 7


def test_grid_beside_finite_domain(tmp_path: Path) -> None:
    space = {"g": tune.grid_search([1, 2]), "c": tune.choice(["a", "b", "c"])}
    ran = Ran(tmp_path, space, 7)
    assert [config["g"] for config in ran.configs] == [1, 2, 1, 2, 1, 2]
    assert len({repr(config) for config in ran.configs}) == 6
    assert ran.is_exhausted


def test_grid_and_queue(tmp_path: Path) -> None:
    """A config of the queue that leaves the grid open gets the next point, and counts."""
    space = {"g": tune.grid_search([1, 2]), "h": tune.grid_search([1, 2]), "x": tune.uniform(0, 1)}
    configs = Ran(tmp_path, space, 4, queue=[{"x": 0.5}, {"g": 2}]).configs
    assert [(config["g"], config["h"]) for config in configs] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert configs[0]["x"] == 0.5
