"""`run_sweep(objective=...)` with the functions that people have, from Ray Tune and from Optuna."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from functions import BY_ITSELF, XS, optuna_trials, running_ray, states, sweep, values
from ray import tune

from tune_jobs.engine import (
    EpochSettings,
    Settings,
    SettingsError,
    SweepFailedError,
    run_sweep,
)
from tune_jobs.engine.core.outcome import Kind

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    yield from running_ray(__name__)


def test_function_reports_then_none(tmp_path: Path) -> None:
    """As Ray Tune's examples do; a later report may be worse."""

    def train(config: dict[str, Any]) -> None:
        for loss in (3, 1, 2):
            tune.report({"loss": config["x"] + loss})

    result = sweep(tmp_path, train)
    assert values(result) == [x + 1 for x in XS]
    assert states(result) == BY_ITSELF
    assert (result.best_score, result.best_epoch) == (1.1, 2)


@pytest.mark.parametrize("metric", ["loss", "val/loss"])
def test_function_returns_dict(metric: str, tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> dict[str, Any]:
        return {"loss": config["x"], "val": {"loss": config["x"], "acc": 1.0}, "size": 3}

    result = sweep(tmp_path, train, metric=metric)
    assert values(result) == XS
    assert result.study.trials[0].user_attrs["metrics"]["size"] == 3
    assert {row["epochs"] for row in result.rows} == {0}
    assert result.best_epoch is None


def test_function_reports_and_returns(tmp_path: Path) -> None:
    """What it returns is the result: no epoch, and not what ASHA compares."""

    def train(config: dict[str, Any]) -> float:
        for epoch in range(3):
            tune.report({"loss": config["x"] - epoch})
        return config["x"] + 100.0

    result = sweep(tmp_path, train, EpochSettings, max_epochs=4)
    assert values(result)[0] == XS[0] + 100
    assert result.rows[0]["epochs"] == 3
    curve = result.study.trials[0].intermediate_values
    assert curve == {1: XS[0], 2: XS[0] - 1, 3: XS[0] - 2}


@pytest.mark.long
def test_function_yields(tmp_path: Path) -> None:
    """Tune takes generators."""

    def train(config: dict[str, Any]) -> Iterator[Any]:
        yield {"loss": config["x"]}
        yield config["x"] - 1

    assert values(sweep(tmp_path, train)) == [x - 1 for x in XS]


def test_function_takes_data(tmp_path: Path) -> None:
    def train(config: dict[str, Any], data: list[float]) -> float:
        return config["x"] + sum(data)

    result = sweep(tmp_path, train, load_data=lambda settings: [1.0, 2.0])
    assert values(result) == [x + 3 for x in XS]


@pytest.mark.parametrize("load_data", [None, lambda settings: 1])
def test_function_arguments_refused(load_data: Any, tmp_path: Path) -> None:
    wrong = (lambda config: 0.0) if load_data else (lambda config, data: 0.0)
    with pytest.raises(SettingsError, match=r"objective must take the config (and|alone)"):
        sweep(tmp_path, wrong, load_data=load_data)
    assert not list(tmp_path.iterdir())


def test_function_of_optunas_trial_refused(tmp_path: Path) -> None:
    """As in the article that this project grew from; with a space, and without one."""

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        return x**2

    class Objective:
        def __call__(self, trial: optuna.Trial) -> float:
            return objective(trial)

    forms = [
        objective,
        Objective(),
        lambda trial: objective(trial),
        lambda t: t.suggest_int("n", 1, 2),
    ]
    for form in forms:
        with pytest.raises(SettingsError, match="Write two functions"):
            sweep(tmp_path, form)
    with pytest.raises(SettingsError, match="Write two functions"):
        run_sweep(Settings(storage_path=str(tmp_path)), objective=objective, metric="y", mode="min")


def test_function_of_tune_refused(tmp_path: Path) -> None:
    """What is said elsewhere than in the settings is not ignored."""

    def train(config: dict[str, Any]) -> float:
        return 0.0

    class Trainable(tune.Trainable):
        pass

    with pytest.raises(SettingsError, match="give the function itself, and cpus_per_trial"):
        sweep(tmp_path, tune.with_resources(train, {"cpu": 2}))
    with pytest.raises(SettingsError, match="objective must be a function of a config, got <class"):
        sweep(tmp_path, Trainable)
    with pytest.raises(SettingsError, match=r"objective must be a function of a config, got 0\.5"):
        sweep(tmp_path, 0.5)


class Scaled:
    """A function that has a state."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, config: dict[str, Any]) -> float:
        return self.factor * config["x"]

    def method(self, config: dict[str, Any]) -> float:
        return self(config)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["partial", "object", "method", "with_parameters"])
def test_function_of_any_kind(kind: str, tmp_path: Path) -> None:
    def scaled(config: dict[str, Any], factor: float) -> float:
        return factor * config["x"]

    functions: dict[str, Callable[[], Any]] = {
        "partial": lambda: functools.partial(scaled, factor=2.0),
        "object": lambda: Scaled(2.0),
        "method": lambda: Scaled(2.0).method,
        "with_parameters": lambda: tune.with_parameters(scaled, factor=2.0),
    }
    assert values(sweep(tmp_path, functions[kind]())) == [2 * x for x in XS]


@pytest.mark.long
@pytest.mark.parametrize("score", ["0.5"])
def test_function_bad_score_fails_one_trial(score: Any, tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        tune.report({"loss": config["x"]})
        if config["x"] < 0.3:
            tune.report({"loss": score})

    result = sweep(tmp_path, train)
    assert values(result)[:3] == [None, None, 0.3]
    assert result.best_score == 0.3
    assert result.failures[0].startswith(f"ScoreError: tune.report gave 'loss' = {score!r}; it")
    assert "in train" in Path(tmp_path, "s", "trial_0000", "error.txt").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit("units must be even"), "SystemExit: units must be even"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_function_raises(error: BaseException, message: str, tmp_path: Path) -> None:
    """Ray takes one for the death of its process, which it starts again (ray#13957), and dies of
    the other. `test_users_code.py` has all the others."""
    calls = tmp_path / "calls.txt"

    def train(config: dict[str, Any]) -> float:
        with calls.open("a") as file:
            file.write("x")
        raise error

    with pytest.raises(SweepFailedError, match="in train") as caught:
        sweep(tmp_path, train, num_trials=len(XS))
    assert calls.read_text() == "xxxxx"  # each once, and the sweep ends early
    assert "the first 5 of 8 trials failed, none finished, 3 not started" in str(caught.value)
    assert caught.value.ended.kind == Kind.FAILURES
    log = Path(tmp_path, "s", "trial_0000", "error.txt").read_text()
    assert "engine" not in log.replace("tune_jobs.engine.core", "")
    (trial, *_) = optuna_trials(tmp_path)
    assert trial.state == optuna.trial.TrialState.FAIL
    assert re.match(message, trial.user_attrs["error"])


def test_function_pruned(tmp_path: Path) -> None:
    """`optuna.TrialPruned` is no failure, before a report or after some."""

    def train(config: dict[str, Any]) -> float:
        if config["x"] < 0.3:
            tune.report({"loss": config["x"]})
        if config["x"] < 0.5:
            raise optuna.TrialPruned("makes no sense")
        return config["x"]

    result = sweep(tmp_path, train)
    assert values(result) == [0.1, 0.2, None, None, *XS[4:]]
    assert states(result) == {("PRUNED", "pruned"), *BY_ITSELF}
    assert result.best_score == 0.6
    assert not result.failures


@pytest.mark.long
def test_function_reports_then_fails(tmp_path: Path) -> None:
    """What a failed trial had reported is no success."""

    def train(config: dict[str, Any]) -> None:
        tune.report({"loss": config["x"]})
        raise RuntimeError("cannot write the predictions")

    with pytest.raises(SweepFailedError, match="the first 5 of 8 trials failed"):
        sweep(tmp_path, train)
    assert not Path(tmp_path, "s", "best.json").exists()


def test_function_diverges(tmp_path: Path) -> None:
    """A NaN ends the trial, reported or returned; its value is the best that was finite."""

    def train(config: dict[str, Any]) -> float:
        tune.report({"loss": config["x"]})
        if config["x"] < 0.25:
            tune.report({"loss": math.nan})
        return math.nan if config["x"] < 0.5 else config["x"]

    result = sweep(tmp_path, train)
    assert values(result) == [0.1, 0.2, None, None, *XS[4:]]
    assert states(result) == {("PRUNED", "nan"), *BY_ITSELF}
    assert result.best_score == 0.6


def test_function_seeded(tmp_path: Path) -> None:
    """Each trial draws the same, whatever ran in its process before, also from a torch that it
    imports itself."""

    def train(config: dict[str, Any]) -> dict[str, float]:
        import random

        import numpy as np
        import torch

        draws = [random.random(), np.random.rand(), torch.rand(1).item()]
        np.random.rand(3), torch.rand(5), random.random()
        return {"loss": config["x"], "python": draws[0], "numpy": draws[1], "torch": draws[2]}

    drawn = set()
    for seed in (0, 1):
        result = sweep(tmp_path / str(seed), train, max_concurrent=2, seed=seed)
        for trial in result.study.trials:
            metrics = dict(trial.user_attrs["metrics"])
            del metrics["loss"]
            drawn.add((seed, *metrics.values()))
    assert [seed for seed, *_ in sorted(drawn)] == [0, 1]
