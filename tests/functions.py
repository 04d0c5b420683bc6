"""Sweeps of plain functions over eight values of `x`, for the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune

from tune_jobs.engine import (
    Settings,
    SweepResult,
    run_sweep,
)
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.progress import Silent

XS = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
BY_ITSELF = {("COMPLETE", "ended by itself")}


def running_ray(module: str) -> Iterator[None]:
    """Ray, to whose workers this test module is sent: they cannot import it."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])
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


def optuna_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    from tune_jobs.engine import load_study

    return load_study(folder / "s").get_trials()
