"""`run_sweep(objective=...)` with the functions that people have, from Ray Tune and from Optuna."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from ray import tune

from tune_jobs.engine import (
    EpochSettings,
    Settings,
    SettingsError,
    SweepFailedError,
    SweepResult,
    run_sweep,
)
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Kind
from tune_jobs.engine.core.progress import Silent

pytestmark = pytest.mark.slow

XS = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


class Notices(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.paused_at: set[int] = set()

    def on_trial_pause(self, goal: Goal, trial: Any, best: Any) -> None:
        self.paused_at.add(trial.user_attrs["paused_at"])

    def on_notice(self, text: str) -> None:
        self.lines.append(text)


def sweep(
    folder: Path,
    objective: Callable[..., Any],
    kind: type[Settings] = Settings,
    metric: str = "loss",
    **options: Any,
) -> SweepResult:
    """Minimize over `x`, whose values are `XS` in this order."""
    keywords = {
        name: options.pop(name)
        for name in ("load_data", "sampler", "progress", "mode")
        if name in options
    }
    settings = kind(
        **{
            "num_trials": len(XS),
            "max_concurrent": 1,
            "gpus_per_trial": 0,
            "storage_path": str(folder),
            "name": "s",
            **options,
        }
    )
    return run_sweep(
        settings,
        space={"x": tune.grid_search(XS)},
        objective=objective,
        metric=metric,
        **{"mode": "min", "progress": None, **keywords},
    )


def values(result: SweepResult) -> list[float | None]:
    """The trials' values; the same in the study and in the rows."""
    trials = {trial.number: trial for trial in result.study.trials}
    for row in result.rows:
        trial = trials[row["trial"]]
        assert (row["state"], row["score"]) == (trial.state.name, trial.value)
    return [row["score"] for row in result.rows]


def states(result: SweepResult) -> set[tuple[str, str]]:
    return {(row["state"], row["reason"]) for row in result.rows}


BY_ITSELF = {("COMPLETE", "ended by itself")}


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


def test_function_logs_steps(tmp_path: Path) -> None:
    """Reports without the metric are no epochs, and none is lost."""

    def train(config: dict[str, Any]) -> None:
        for epoch in range(1, 4):
            for step in range(5):
                tune.report({"step_loss": step, "epoch": epoch})
            tune.report({"loss": config["x"] / epoch, "epoch": epoch})

    result = sweep(tmp_path, train, EpochSettings, max_epochs=3, asha="stopping")
    assert result.rows[0]["epochs"] == 3
    lines = Path(tmp_path, "s", "trial_0000", "result.json").read_text().splitlines()
    assert len(lines) == 18


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


def optuna_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    from tune_jobs.engine import load_study

    return load_study(folder / "s").get_trials()


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


def test_function_without_checkpoints_is_stopped(tmp_path: Path) -> None:
    """Promotion could not resume it; the form that suits it is chosen, and said in a line."""

    def train(config: dict[str, Any]) -> None:
        for epoch in range(9):
            tune.report({"loss": config["x"] - epoch})

    notices = Notices()
    result = sweep(tmp_path, train, EpochSettings, max_epochs=4, progress=notices)
    assert notices.lines == [
        "ASHA stops trials for good instead of pausing them: the function reports no checkpoint "
        "to resume from."
    ]
    assert states(result) == {("COMPLETE", "last epoch"), ("PRUNED", "asha")}
    assert all(t.user_attrs.get("paused_at") is None for t in result.study.trials)


@pytest.mark.long
def test_function_stopped_resumed(tmp_path: Path) -> None:
    """The form that was chosen holds after a resume, and is not said again."""

    def train(config: dict[str, Any]) -> None:
        for epoch in range(9):
            tune.report({"loss": config["x"] - epoch})

    sweep(tmp_path, train, EpochSettings, max_epochs=4, num_trials=8)
    before, notices = optuna_trials(tmp_path), Notices()
    options = {"max_epochs": 4, "num_trials": 9, "resume": True, "progress": notices}
    result = sweep(tmp_path, train, EpochSettings, **options)
    assert not notices.lines
    assert result.ended.kind == Kind.EXHAUSTED
    assert [t.value for t in result.study.trials] == [t.value for t in before]


@pytest.mark.long
def test_function_returns_after_last_epoch(tmp_path: Path) -> None:
    """It has reported `max_epochs` epochs, and may do the rest of its work: what it returns counts.

    One that reports again instead is stopped.
    """
    done = tmp_path / "done.txt"

    def train(config: dict[str, Any]) -> float:
        for epoch in range(4 if config["x"] < 0.5 else 9):
            tune.report({"loss": 1 / (1 + epoch) - config["x"]})
        with done.open("a") as file:
            file.write("x")
        return 7.0

    result = sweep(tmp_path, train, EpochSettings, max_epochs=4, asha="stopping")
    assert values(result) == [7.0] * 4 + [1 / 4 - x for x in XS[4:]]
    assert states(result) == {*BY_ITSELF, ("COMPLETE", "last epoch")}
    assert {row["epochs"] for row in result.rows} == {4}
    assert done.read_text() == "xxxx"


@pytest.mark.long
def test_function_begins_again_and_ends_sooner(tmp_path: Path) -> None:
    """Its process died at epoch 6, and the second attempt ends at 3: the first one's later epochs
    are no part of its score."""
    died = tmp_path / "died"

    def train(config: dict[str, Any]) -> None:
        first = not died.exists()
        for epoch in range(1, 7 if first else 4):
            tune.report({"loss": config["x"] - (epoch if first else 0)})
        if first:
            died.touch()
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    result = sweep(tmp_path, train, num_trials=8)
    assert values(result) == XS
    assert {row["epochs"] for row in result.rows} == {3}


@pytest.mark.long
def test_function_reports_as_it_is_stopped(tmp_path: Path) -> None:
    """In a `finally`, after ASHA has stopped it; the next trial in its process must not fail."""

    def train(config: dict[str, Any]) -> None:
        try:
            for epoch in range(9):
                tune.report({"loss": config["x"] - epoch})
        finally:
            tune.report({"note": 1})

    result = sweep(tmp_path, train, EpochSettings, max_epochs=4, asha="stopping")
    assert states(result) == {("COMPLETE", "last epoch"), ("PRUNED", "asha")}


@pytest.mark.long
def test_best_so_far_when_time_is_up(tmp_path: Path) -> None:
    """Of a trial that was stopped and one that still runs, the better one; none that violates a
    constraint."""

    def train(config: dict[str, Any]) -> None:
        slow = config["x"] in (0.1, 0.2)
        for _ in range(9):
            tune.report({"loss": -config["x"] if slow else config["x"]})
            time.sleep(60 if slow else 0)

    options = {"max_epochs": 4, "asha": "stopping", "time_budget_s": 9}
    slots = {"max_concurrent": 3, "cpus_per_trial": 0.5}
    sampler = quiet_tpe(lambda trial: [0.5 if trial.params["x"] == 0.2 else -0.5])
    result = sweep(tmp_path, train, EpochSettings, sampler=sampler, **options, **slots)
    assert (result.best_score, result.best_state) == (-0.1, "RUNNING")
    assert "PRUNED" in {row["state"] for row in result.rows}
    assert result.ended.kind == Kind.TIME_BUDGET


@pytest.mark.long
def test_function_ends_before_last_epoch(tmp_path: Path) -> None:
    """It is COMPLETE: its last epoch is compared with nothing if it is at no rung."""

    def train(config: dict[str, Any]) -> float:
        for epoch in range(3):
            tune.report({"loss": 1 / (1 + epoch) - config["x"]})
        return -config["x"]

    result = sweep(tmp_path, train, EpochSettings, max_epochs=10, asha="stopping")
    assert states(result) == BY_ITSELF  # each is better than those before it
    assert {row["epochs"] for row in result.rows} == {3}
    assert values(result) == [-x for x in XS]


def make_resumable(log: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes checkpoints and resumes from them; it logs where it begins."""

    def train(config: dict[str, Any]) -> None:
        first, checkpoint = 1, tune.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                first = json.loads(Path(folder, "state.json").read_text()) + 1
        with log.open("a") as file:
            file.write(f"{config['x']} from {first}\n")
        for epoch in range(first, 9):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "state.json").write_text(json.dumps(epoch))
                tune.report(
                    {"loss": config["x"] + 1 / epoch},
                    checkpoint=tune.Checkpoint.from_directory(folder),
                )

    return train


def test_function_with_checkpoints_is_promoted(tmp_path: Path) -> None:
    notices, log = Notices(), tmp_path / "log.txt"
    result = sweep(tmp_path, make_resumable(log), EpochSettings, max_epochs=8, progress=notices)
    assert not notices.lines
    assert 1 in notices.paused_at
    assert notices.paused_at <= {1, 2, 4}  # at the last rung it has ended
    assert all(t.user_attrs.get("paused_at") is None for t in result.study.trials)
    begun = log.read_text().splitlines()
    assert any(not line.endswith("from 1") for line in begun)
    assert states(result) == {*BY_ITSELF, ("PRUNED", "asha")}
    for trial in result.study.trials:
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1))
    assert result.best_checkpoint is not None
    with result.best_checkpoint.as_directory() as folder:
        assert json.loads(Path(folder, "state.json").read_text()) == result.best_epoch


@pytest.mark.long
def test_function_ignores_its_checkpoints(tmp_path: Path) -> None:
    """It reports checkpoints and never asks for one: promoted, it would begin again at epoch 1."""

    def train(config: dict[str, Any]) -> None:
        for epoch in range(1, 9):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "weights").touch()
                checkpoint = tune.Checkpoint.from_directory(folder)
                tune.report({"loss": config["x"] + 1 / epoch}, checkpoint=checkpoint)

    notices = Notices()
    sweep(tmp_path, train, EpochSettings, max_epochs=8, progress=notices)
    assert "does not call tune.get_checkpoint()" in notices.lines[0]


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


def test_constraints_hold_for_winner(tmp_path: Path) -> None:
    """Of parameters and of metrics; `metrics` is a user attribute of the trial."""

    def train(config: dict[str, Any]) -> dict[str, float]:
        return {"loss": config["x"], "size": 10 * (1 - config["x"])}

    def violations(trial: optuna.trial.FrozenTrial) -> list[float]:
        return [0.25 - trial.params["x"], trial.user_attrs["metrics"]["size"] - 5]

    sampler = quiet_tpe(violations)
    result = sweep(tmp_path, train, sampler=sampler)
    assert result.best_score == 0.6
    assert result.study.best_value == 0.6
    never = quiet_tpe(lambda trial: [1.0])
    with pytest.raises(SweepFailedError, match="can win: 8 violated a constraint"):
        sweep(tmp_path / "never", train, sampler=never)


@pytest.mark.long
def test_constraints_hold_for_stop_at(tmp_path: Path) -> None:
    """A score that is good enough does not end the sweep if its trial violates one."""

    def train(config: dict[str, Any]) -> float:
        return float(config["x"])

    sampler = quiet_tpe(lambda trial: [0.25 - trial.params["x"]])
    result = sweep(tmp_path, train, sampler=sampler, stop_at=0.3)
    assert values(result) == XS[:3]
    assert result.best_score == 0.3
    assert result.ended.kind == Kind.OTHER_GOOD_ENOUGH


@pytest.mark.parametrize("error", [KeyError("size")])
def test_constraints_raise(error: Exception, tmp_path: Path) -> None:
    """The error is shown, whatever its class, and no training is lost: mended, it resumes."""

    def violations(trial: optuna.trial.FrozenTrial) -> list[float]:
        raise error

    def train(config: dict[str, Any]) -> float:
        return float(config["x"])

    with pytest.raises(SweepFailedError, match=type(error).__name__) as caught:
        sweep(tmp_path, train, sampler=quiet_tpe(violations))
    assert "in violations" in str(caught.value)
    result = sweep(tmp_path, train, sampler=quiet_tpe(lambda trial: [0.0]), resume=True)
    assert values(result) == XS


def quiet_tpe(violations: Callable[..., list[float]]) -> optuna.samplers.TPESampler:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(constraints_func=violations)
