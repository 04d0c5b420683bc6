"""`run_sweep` as a notebook calls it: own scheduler and callbacks, silence, a good guest."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining

from tune_jobs.engine import Settings, SettingsError, SweepResult, run_sweep
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.progress import Progress, Silent

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
def test_run_sweep_median_stopping(tmp_path: Path) -> None:
    rule = MedianStoppingRule("training_iteration", grace_period=2, min_samples_required=2)
    result = sweep(tmp_path, scheduler=rule)
    assert {row["state"] for row in result.rows} == {"COMPLETE", "PRUNED"}
    assert result.best_score == max(row["score"] for row in result.rows)


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
