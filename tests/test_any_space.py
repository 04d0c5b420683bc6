"""`run_sweep(space=...)` with the spaces that people have, as small sweeps."""

from __future__ import annotations

import csv
import functools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from functions import Notices, running_ray
from ray import tune

from tune_jobs.engine import Settings, SettingsError, SweepFailedError, SweepResult, run_sweep
from tune_jobs.engine.core.outcome import outcome_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    yield from running_ray(__name__)


def sweep(
    folder: Path, space: Any, objective: Callable[..., Any] | None = None, **options: Any
) -> SweepResult:
    """A sweep of four trials; what each was given is left in `seen.txt`."""
    progress = options.pop("progress", None)
    settings = {"name": "s", "num_trials": 4, "gpus_per_trial": 0.0, **options}
    seen = folder / "seen.txt"

    def score(config: dict[str, Any]) -> float:
        with seen.open("a") as file:
            file.write(f"{config}\n")
        return 1.0 if objective is None else float(objective(config))

    return run_sweep(
        Settings(storage_path=str(folder), **settings),
        space=space,
        metric="score",
        mode="max",
        objective=score,
        progress=progress,
    )


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "s" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def best_of(folder: Path) -> dict[str, Any]:
    best: dict[str, Any] = json.loads((folder / "s" / "best.json").read_text())
    return best


GRIDS = {"quniform": 0.2, "qloguniform": 1e-3, "qrandint": 8, "qlograndint": 8, "qrandn": 0.5}
DOMAINS: dict[str, Any] = {
    "quniform": tune.quniform(0.2, 0.8, 0.2),
    "qloguniform": tune.qloguniform(1e-3, 1.0, 1e-3),
    "qrandint": tune.qrandint(8, 64, 8),
    "qlograndint": tune.qlograndint(8, 512, 8),
    "qrandn": tune.qrandn(0, 1, 0.5),
    "lograndint": tune.lograndint(1, 1000),
    "floats": tune.choice([0.1, 0.2]),
    "mixed": tune.choice([None, "relu", 3, 0.5, True]),
    "nested": {"opt": {"name": tune.choice(["sgd", "adam"]), "lr": tune.loguniform(1e-4, 1)}},
    "constant": 7,
}


def test_space_of_every_domain(tmp_path: Path) -> None:
    def on_grid(config: dict[str, Any]) -> float:
        assert config["constant"] == 7
        assert isinstance(config["qlograndint"], int)
        steps = [config[name] / step for name, step in GRIDS.items()]
        return float(max(abs(number - round(number)) for number in steps) < 1e-6)

    notices = Notices()
    result = sweep(tmp_path, DOMAINS, on_grid, progress=notices)
    assert [row["score"] for row in result.rows] == [1.0] * 4
    assert any(line.startswith("qrandn: tune.qrandn(0, 1, 0.5) is s") for line in notices.lines)


class Net:
    """A class among the choices."""


def double(x: float, by: float = 2) -> float:
    return x * by


CHOICES: dict[str, Any] = {
    "layers": tune.choice([[64], [64, 32], [128, 64, 32]]),
    "kernel": tune.choice([(3, 3), (5, 5)]),
    "optimizer": tune.choice([{"name": "sgd", 1: (0.9,)}, {}]),
    "width": tune.choice(list(np.array([32, 64, 128]))),
    "rate": tune.choice(np.linspace(0.1, 0.5, 3)),
    "array": tune.choice([np.arange(3), torch.ones(2)]),
    "called": tune.choice([Net, double, functools.partial(double, by=3)]),
    "number": tune.choice([1, True, math.nan]),
    "large": tune.choice([np.zeros(5_000), np.ones(5_000)]),
}
CONSTANTS: dict[str, Any] = {
    "x": tune.uniform(0, 1),
    "class_weights": np.array([0.2, 0.3, 0.5]),
    "tensor": torch.ones(2),
    "keys": {1: "a", "b/c": [1, (2,)], None: {}, (1, 2): {3}},
    "empty": {},
    "net": Net,
    "nested": {"keys": {2: 3}, "y": tune.uniform(0, 1)},
}


def has_types(config: dict[str, Any]) -> bool:
    return (
        isinstance(config["layers"], list)
        and isinstance(config["kernel"], tuple)
        and config["optimizer"] in ({"name": "sgd", 1: (0.9,)}, {})
        and isinstance(config["width"], np.int64)
        and type(config["rate"]) is np.float64
        and isinstance(config["array"], (np.ndarray, torch.Tensor))
        and callable(config["called"])
        and config["large"].shape == (5_000,)
    )


def has_constants(config: dict[str, Any]) -> bool:
    return (
        float(config["class_weights"].sum()) == 1.0
        and config["tensor"].tolist() == [1, 1]
        and config["keys"] == CONSTANTS["keys"]
        and config["empty"] == {}
        and isinstance(config["net"], type)
        and config["nested"]["keys"] == {2: 3}
    )


@pytest.mark.long
@pytest.mark.parametrize(("space", "is_right"), [(CHOICES, has_types), (CONSTANTS, has_constants)])
def test_space_of_any_value(space: Any, is_right: Any, tmp_path: Path) -> None:
    """The config has the values; files have them in a readable form; and so after a resume."""
    result = sweep(tmp_path, space, is_right)
    again = sweep(tmp_path, space, is_right, resume=True, num_trials=5)
    assert [row["score"] for row in again.rows] == [1.0] * 5
    assert is_right(result.best_config)
    assert str(again.rows[:4]) == str(result.rows)  # NaN is not NaN
    text = (tmp_path / "s" / "trials.csv").read_text()
    assert "0x" not in text
    assert "array of shape (5000,)" in text or space is CONSTANTS
    assert best_of(tmp_path)["config"].keys() == space.keys()


def test_array_constant_readable(tmp_path: Path) -> None:
    """A finished sweep must not fail as best.json is written (ray#2243)."""
    sweep(tmp_path, CONSTANTS, num_trials=1)
    config = best_of(tmp_path)["config"]
    assert config["class_weights"] == [0.2, 0.3, 0.5]
    assert config["keys"] == {"1": "a", "b/c": [1, [2]], "None": {}, "[1, 2]": [3]}
    assert config["net"] == "Net"


def test_best_json_without_nan(tmp_path: Path) -> None:
    """JSON has no infinity and no NaN; the config can be tried first in another sweep."""
    constants = {"clip": math.inf, "weights": [math.nan, 1.0], "least": -math.inf}
    space = {**constants, "limit": tune.choice([math.inf])}
    sweep(tmp_path, space, num_trials=1)
    text = (tmp_path / "s" / "best.json").read_text()
    best = json.loads(text, parse_constant=pytest.fail)
    assert best["config"] == {
        "clip": "Infinity", "weights": ["NaN", 1.0], "least": "-Infinity", "limit": "Infinity",
    }  # fmt: skip


@pytest.mark.parametrize("is_function", [False, True])
def test_space_few_configs(is_function: bool, tmp_path: Path) -> None:
    def function(trial: optuna.Trial) -> None:
        trial.suggest_int("depth", 1, 3)

    space = function if is_function else {"depth": tune.choice([1, 2, 3])}
    result = sweep(tmp_path, space, num_trials=8)
    assert sorted(row["config/depth"] for row in result.rows) == [1, 2, 3]
    again = sweep(tmp_path, space, num_trials=9, resume=True)
    assert again.rows == result.rows


def test_space_few_configs_from_queue(tmp_path: Path) -> None:
    """A config of the user's is tried however often; it counts as tried."""
    (tmp_path / "more.json").write_text('[{"depth": 2}]')
    space = {"depth": tune.choice([1, 2, 3])}
    sweep(tmp_path, space, num_trials=2)
    more = {"enqueue": str(tmp_path / "more.json"), "resume": True}
    result = sweep(tmp_path, space, num_trials=8, **more)
    depths = [row["config/depth"] for row in result.rows]
    assert set(depths) == {1, 2, 3}
    assert depths[2] == 2
    assert len(depths) == (4 if 2 in depths[:2] else 3)


def test_space_grid(tmp_path: Path) -> None:
    space = {"a": tune.grid_search([1, 2]), "b": tune.grid_search(["x", (1, 2)])}
    with pytest.raises(SettingsError) as caught:
        sweep(tmp_path, space, num_trials=3)
    assert str(caught.value).startswith(
        "num_trials must be at least 4, the number of points of grid_search (2 x 2), got 3;"
    )
    result = sweep(tmp_path, space, num_trials=10)
    points = [(row["config/a"], str(row["config/b"])) for row in result.rows]
    assert points == [(1, "x"), (1, "[1, 2]"), (2, "x"), (2, "[1, 2]")]


def number(trial: optuna.Trial) -> dict[str, Any]:
    """A file name of its own for each trial."""
    trial.suggest_float("x", 0, 1)
    return {"out": f"run_{trial.number}.txt"}


def drawn(trial: optuna.Trial) -> dict[str, Any]:
    """Another seed for each trial, drawn in the space."""
    trial.suggest_float("x", 0, 1)
    return {"seed": random.randint(0, 10**6)}


def pruned(trial: optuna.Trial) -> None:
    """Combinations that make no sense are pruned where they are drawn."""
    a, b = trial.suggest_int("a", 0, 4), trial.suggest_int("b", 0, 4)
    if a < b:
        raise optuna.TrialPruned
    trial.suggest_float("x", 0, 1)


def slash(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_float("opt/lr", 1e-4, 1e-1, log=True)
    return {"model": {"a/b": 1, "sizes": {3: (4,)}}}


def attr(trial: optuna.Trial) -> None:
    trial.set_user_attr("half", trial.suggest_float("x", 0, 1) / 2)


def few_tuples(trial: optuna.Trial) -> None:
    trial.suggest_categorical("kernel", [(3, 3), (5, 5), None])


@pytest.mark.long
@pytest.mark.parametrize("space", [number, drawn, pruned, slash, attr, few_tuples])
def test_function_what_ran_is_recorded(space: Any, tmp_path: Path) -> None:
    """What is written down is what the trials were given, also by another driver (optuna#1251)."""
    result = sweep(tmp_path, space, num_trials=8)
    again = sweep(tmp_path, space, num_trials=9, resume=True)
    seen = (tmp_path / "seen.txt").read_text().splitlines()
    assert str(result.best_config) in seen
    assert str(again.best_config) in seen
    assert again.rows[:8] == result.rows
    assert "FAIL" not in {row["state"] for row in again.rows}
    if space is number:
        assert result.best_config["out"] == f"run_{result.best_trial}.txt"
    if space is slash:
        assert result.best_config.keys() == {"opt/lr", "model"}
    if space is attr:
        assert all("half" in trial.user_attrs for trial in result.study.trials)
    if space is pruned:
        assert {"PRUNED", "COMPLETE"} == {row["state"] for row in result.rows}


def dynamic(trial: optuna.Trial) -> None:
    """Choices that depend on another parameter (optuna#372)."""
    kind = trial.suggest_categorical("kind", ["sgd", "adam"])
    trial.suggest_categorical("rate", [0.1, 0.01] if kind == "sgd" else [0.001, 0.0001])


def ranged(trial: optuna.Trial) -> None:
    layers = trial.suggest_int("layers", 1, 3)
    trial.suggest_int("width", 8, 8 * layers)


def raises(trial: optuna.Trial) -> None:
    layers = trial.suggest_int("layers", 1, 3)
    trial.suggest_int("heads", 2, layers)


@pytest.mark.long
@pytest.mark.parametrize(
    ("space", "error"),
    [
        (dynamic, "Optuna searches one domain under a name: give the two their own names, such as"),
        (ranged, None),
        (raises, "trial.suggest_int("),
    ],
)
def test_function_that_changes_its_questions(space: Any, error: str | None, tmp_path: Path) -> None:
    result = sweep(tmp_path, space, num_trials=12)
    failed = [row["trial"] for row in result.rows if row["state"] == "FAIL"]
    assert bool(failed) == (error is not None)
    for trial in failed:
        outcome = outcome_of(result.study.trials[trial])
        assert outcome is not None
        assert error is not None
        assert error in outcome.traceback
        assert "tune_jobs" not in outcome.traceback
    assert "COMPLETE" in {row["state"] for row in result.rows}
    sweep(tmp_path, space, num_trials=13, resume=True)


def test_function_that_always_raises(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)
        raise ArithmeticError("in my own words")

    with pytest.raises(SweepFailedError, match="ArithmeticError: in my own words"):
        sweep(tmp_path, space, num_trials=3)
    assert {row["state"] for row in rows_of(tmp_path)} == {"FAIL"}


@pytest.mark.long
def test_function_mended_resumes(tmp_path: Path) -> None:
    def mended(trial: optuna.Trial) -> None:
        layers = trial.suggest_int("layers", 1, 3)
        trial.suggest_int("heads", min(2, layers), layers)

    result = sweep(tmp_path, raises, num_trials=4)
    failed = [row for row in result.rows if row["state"] == "FAIL"]
    again = sweep(tmp_path, mended, num_trials=8, resume=True, retry_failed=True)
    assert len([row for row in again.rows if row["state"] == "FAIL"]) == len(failed)
    assert len(again.rows) > len(result.rows)


@pytest.mark.long
def test_function_other_questions_refused(tmp_path: Path) -> None:
    """A constant that the function uses was changed before --resume."""
    widths = [8, 16]

    def space(trial: optuna.Trial) -> None:
        trial.suggest_categorical("width", widths)
        trial.suggest_float("x", 0, 1)

    sweep(tmp_path, space, num_trials=2)
    sweep(tmp_path, space, num_trials=3, resume=True)
    widths.append(32)
    message = r"asks for width Categorical\(choices=\[8, 16, 32\]\), and asked for Categorical\("
    with pytest.raises(SettingsError, match=message):
        sweep(tmp_path, space, num_trials=4, resume=True)
    assert len(rows_of(tmp_path)) == 3
