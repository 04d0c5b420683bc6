"""`run_sweep` as a notebook calls it: own scheduler and callbacks, silence, a good guest."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine import LightningSettings, Settings, SettingsError, SweepResult, run_sweep
from tune_jobs.engine.core.errors import SweepFailedError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.progress import Progress, Silent
from tune_jobs.engine.core.space import convert_space

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def sweep(folder: Path, **kwargs: Any) -> SweepResult:
    changes = kwargs.pop("settings", {})
    settings = {"num_trials": 8, "max_concurrent": 1, "gpus_per_trial": 0.0, **changes}
    return run_sweep(
        Settings(storage_path=str(folder), name="s", **settings),
        **{
            "space": {"x": tune.uniform(0, 1)},
            "metric": "score",
            "mode": "max",
            "objective": make_objective(),
            "progress": None,
            **kwargs,
        },
    )


@pytest.mark.parametrize("sampler", ["tpe", "", optuna.samplers.TPESampler, OptunaSearch()])
def test_sampler_not_optunas(sampler: Any, tmp_path: Path) -> None:
    """Nothing is spent: the data is not loaded."""
    message = r"sampler must be an Optuna sampler, such as optuna.samplers.TPESampler\(\), got "
    with pytest.raises(SettingsError, match=message):
        sweep(tmp_path, sampler=sampler, load_data=pytest.fail)
    assert not list(tmp_path.iterdir())


def make_objective() -> Any:
    """A local function, which goes to the workers by value: they cannot import this module."""

    def objective(config: dict[str, Any]) -> float:
        for epoch in range(1, 9):  # all worth x
            tune.report({"score": config["x"], "epoch": epoch})
        return float(config["x"])

    return objective


@pytest.mark.usefixtures("_ray")
def test_run_sweep_stock_asha(tmp_path: Path) -> None:
    scheduler = ASHAScheduler(max_t=100, grace_period=2, reduction_factor=2)
    first = sweep(tmp_path, scheduler=scheduler, settings={"num_trials": 4})
    stopped = [row for row in first.rows if row["state"] == "PRUNED"]
    assert {row["reason"] for row in stopped} == {"scheduler"}
    assert {row["epochs"] for row in stopped} <= {2, 4, 8}
    states = [trial.state.name for trial in first.study.trials]
    assert states == [row["state"] for row in first.rows]

    # Resumed, the scheduler has the rungs it had: a trial worse than the first ones stops.
    scheduler = ASHAScheduler(max_t=100, grace_period=2, reduction_factor=2)
    more = sweep(tmp_path, scheduler=scheduler, settings={"num_trials": 8, "resume": True})
    assert more.rows[:4] == first.rows
    best = max(row["score"] for row in first.rows)
    for row in more.rows[4:]:
        assert row["epochs"] == 9 or row["score"] < best  # 8 reports and the returned value
    assert any(row["state"] == "PRUNED" for row in more.rows[4:])


@pytest.mark.usefixtures("_ray")
def test_run_sweep_stock_asha_max_t(tmp_path: Path) -> None:
    """A trial that reaches the last epoch of the scheduler is complete."""
    result = sweep(tmp_path, scheduler=ASHAScheduler(max_t=4), settings={"num_trials": 3})
    assert {(row["state"], row["epochs"]) for row in result.rows} >= {("COMPLETE", 4)}
    assert result.best_state == "COMPLETE"
    assert result.study.best_value == result.best_score


@pytest.mark.usefixtures("_ray")
def test_run_sweep_scheduler_replaces_asha(tmp_path: Path) -> None:
    """A function cannot be promoted, but may have epochs; the caller's scheduler is not changed."""
    scheduler = FIFOScheduler()
    settings = LightningSettings(
        num_trials=2, max_epochs=3, gpus_per_trial=0, storage_path=str(tmp_path)
    )
    for name in ("a", "b"):
        result = run_sweep(
            dataclasses.replace(settings, name=name),
            space={"x": tune.uniform(0, 1)},
            metric="score",
            mode="max",
            objective=make_objective(),
            scheduler=scheduler,
            progress=None,
        )
        assert [row["epochs"] for row in result.rows] == [3, 3]
    assert scheduler.metric is None


@pytest.mark.usefixtures("_ray")
def test_run_sweep_median_stopping(tmp_path: Path) -> None:
    rule = MedianStoppingRule("training_iteration", grace_period=2, min_samples_required=2)
    result = sweep(tmp_path, scheduler=rule)
    assert {row["state"] for row in result.rows} == {"COMPLETE", "PRUNED"}
    assert result.best_score == max(row["score"] for row in result.rows)
    again = sweep(
        tmp_path,
        scheduler=MedianStoppingRule("training_iteration", grace_period=2, min_samples_required=2),
        settings={"num_trials": 12, "resume": True},
    )
    assert again.rows[:8] == result.rows


def test_run_sweep_refuses_pbt(tmp_path: Path) -> None:
    scheduler = PopulationBasedTraining(hyperparam_mutations={"x": [0.1]})
    with pytest.raises(SettingsError, match="got PopulationBasedTraining, which changes the conf"):
        sweep(tmp_path, scheduler=scheduler)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_ray")
def test_resume_other_scheduler_refused(tmp_path: Path) -> None:
    sweep(tmp_path, settings={"num_trials": 1})
    with pytest.raises(SettingsError, match="its scheduler is the engine's own, not Async"):
        sweep(tmp_path, scheduler=ASHAScheduler(), settings={"num_trials": 2, "resume": True})


@pytest.mark.usefixtures("_ray")
def test_run_sweep_enqueue_and_warm_start(tmp_path: Path) -> None:
    """Values as the config has them; a study in SQLite is learned from, and stays as it is."""
    space = {"x": tune.uniform(0, 1), "model": {"layers": tune.choice([[8], [16, 16]])}}
    database = f"sqlite:///{tmp_path}/x.db"
    teach = optuna.create_study(
        storage=database,
        study_name="a",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    searched = convert_space(space).searched
    assert isinstance(searched, dict)
    for _ in range(20):
        trial = teach.ask(searched)
        teach.tell(trial, -abs(trial.params["x"] - 0.3))
    before = (tmp_path / "x.db").read_bytes()
    seen: list[str] = []

    class Listener(Silent):
        def on_notice(self, text: str) -> None:
            seen.append(text)

    def run(**settings: Any) -> SweepResult:
        return sweep(
            tmp_path, space=space, settings=settings, progress=Listener(),
            objective=lambda config: -abs(config["x"] - 0.3),
            enqueue=[{"x": 0.25, "model": {"layers": [16, 16]}}, {"model/layers": [8]}],
            warm_start=f"{database}#a",
        )  # fmt: skip

    first = run(num_trials=10)
    assert (tmp_path / "x.db").read_bytes() == before
    assert seen == [f"Learning from 20 of the 20 trials of {database}#a"]
    configs = [trial_config(first, number) for number in range(10)]
    assert configs[0] == {"x": 0.25, "model": {"layers": [16, 16]}}
    assert configs[1]["model"] == {"layers": [8]}
    assert sum(abs(config["x"] - 0.3) < 0.15 for config in configs[2:]) >= 5  # random: 2
    assert len(first.study.trials) == 10
    (tmp_path / "x.db").unlink()
    assert run(num_trials=11, resume=True).rows[:10] == first.rows


def trial_config(result: SweepResult, number: int) -> dict[str, Any]:
    config: dict[str, Any] = result.result_grid[number].config
    return config


class Seen(tune.Callback):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any) -> None:
        self.events.append(str(result.get("epoch")))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.events.append("complete")


@pytest.mark.usefixtures("_ray")
def test_run_sweep_callbacks(tmp_path: Path) -> None:
    seen = Seen()
    sweep(tmp_path, callbacks=[seen], settings={"num_trials": 1})
    assert seen.events[:8] == [str(epoch) for epoch in range(1, 9)]
    assert seen.events[-1] == "complete"


@pytest.mark.usefixtures("_ray")
def test_run_sweep_callback_raises(tmp_path: Path) -> None:
    """The sweep continues, and a warning says what failed."""

    class Broken(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            raise ZeroDivisionError("of the user's callback")

    with pytest.warns(UserWarning, match="as trial 0 ended: ZeroDivisionError: of the user"):
        result = sweep(tmp_path, callbacks=[Broken()], settings={"num_trials": 1})
    assert [row["state"] for row in result.rows] == ["COMPLETE"]


@pytest.mark.usefixtures("_ray")
def test_run_sweep_diverged_checkpoint(tmp_path: Path) -> None:
    """A function that reports NaN with a checkpoint fails nobody else's trial."""

    def objective(config: dict[str, Any]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "weights").touch()
            score = math.nan if config["x"] > 0.5 else config["x"]
            tune.report({"score": score}, checkpoint=tune.Checkpoint.from_directory(folder))
        return float(config["x"])

    result = sweep(tmp_path, objective=objective, settings={"num_trials": 6})
    assert {row["reason"] for row in result.rows} >= {"nan"}
    assert all((row["state"] == "PRUNED") == (row["config/x"] > 0.5) for row in result.rows)


@pytest.mark.usefixtures("_ray")
def test_run_sweep_listener_order(tmp_path: Path) -> None:
    events: list[str] = []

    class Listener(Silent):
        def on_start(self, headline: str) -> None:
            events.append(headline.partition(":")[0])

        def on_trial_end(self, goal: Goal, trial: Any, best: Any) -> None:
            events.append(f"trial {trial.number} {trial.state.name}, best {best.number}")

    listener: Progress = Listener()
    sweep(tmp_path, progress=listener, settings={"num_trials": 2})
    assert events[0] == "Sweep s"
    assert events[1] == "trial 0 COMPLETE, best 0"
    assert len(events) == 3


@pytest.mark.usefixtures("_ray")
def test_run_sweep_listener_raises(tmp_path: Path) -> None:
    """The sweep continues without it: a closed pipe, `... | head`, is such an error."""

    class Listener(Silent):
        def on_trial_end(self, goal: Goal, trial: Any, best: Any) -> None:
            raise BrokenPipeError

    with pytest.warns(UserWarning, match=r"Listener.on_trial_end raised BrokenPipeError\(\); the"):
        result = sweep(tmp_path, progress=Listener(), settings={"num_trials": 3})
    assert [row["state"] for row in result.rows] == ["COMPLETE"] * 3


@pytest.mark.usefixtures("_ray")
def test_run_sweep_good_guest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed, and environment, loggers and Optuna's verbosity are as before."""
    tune_logger = logging.getLogger("ray.tune")
    tune_logger.setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    before, folder = dict(os.environ), os.getcwd()
    try:
        capfd.readouterr()
        sweep(tmp_path, settings={"num_trials": 2})
        assert capfd.readouterr().out == ""
        assert dict(os.environ) == before
        assert os.getcwd() == folder
        assert tune_logger.level == logging.WARNING
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        tune_logger.setLevel(logging.NOTSET)
        optuna.logging.set_verbosity(optuna.logging.INFO)


GUEST = """
import logging, os, signal
from ray import tune
from tune_jobs.engine import Settings, run_sweep

def look():
    levels = [logging.getLogger(name).level for name in ("ray", "ray.tune", "optuna")]
    return dict(os.environ), levels, signal.getsignal(signal.SIGTERM), os.getcwd()

before = look()
run_sweep(
    Settings(num_trials=2, gpus_per_trial=0), space={"x": tune.uniform(0, 1)}, metric="score",
    mode="max", objective=lambda config: config["x"], progress=None,
)
assert look() == before, (look(), before)
"""


@pytest.mark.long
def test_run_sweep_starts_ray_as_guest(tmp_path: Path) -> None:
    """The same where the sweep starts Ray and stops it again; and it says nothing."""
    (tmp_path / "job.py").write_text(GUEST)
    command = [sys.executable, "job.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sweep_failed_error_pickles() -> None:
    error = SweepFailedError("no trial succeeded", "/sweeps/s", Outcome.of(Kind.FAILURES))
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.path, copied.ended) == (str(error), error.path, error.ended)
