"""Functions under ASHA, with constraints, and when a sweep ends early."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from functions import BY_ITSELF, XS, Notices, optuna_trials, running_ray, states, sweep, values
from ray import tune

from tune_jobs.engine import (
    EpochSettings,
    SweepFailedError,
)
from tune_jobs.engine.core.outcome import Kind

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    yield from running_ray(__name__)


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
        place = XS.index(config["x"])
        is_slow = place < 2
        while len(list(tmp_path.glob("reported_*"))) < min(place, 2):
            time.sleep(0.1)  # ASHA compares each with those before it
        tune.report({"loss": -config["x"] if is_slow else config["x"]})
        if is_slow:
            tune.report({"note": 1})  # the first one has been judged
            (tmp_path / f"reported_{config['x']}").touch()
            time.sleep(120)

    options = {"max_epochs": 4, "asha": "stopping", "time_budget_s": 20}
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
