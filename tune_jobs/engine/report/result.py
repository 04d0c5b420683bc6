"""What a sweep found: `SweepResult`."""

from dataclasses import dataclass, field
from typing import Any

import optuna
from ray.tune import Checkpoint, ResultGrid

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Outcome
from tune_jobs.engine.core.settings import Settings

__all__ = ["SweepResult"]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        path: The sweep's folder or URL.
        goal: What was optimized.
        settings: What the user set.
        resources: What each trial held.
        best_config: The winner's config.
        best_score: Its score: what its function returned, else the best that it reported.
        best_epoch: The epoch at which it was reported; None: it was returned.
        best_trial: Its number.
        best_state: "COMPLETE"; if no trial was, "PRUNED", or "RUNNING" for one to be resumed.
        best_checkpoint: Its checkpoint of its best epoch; None: its function reported none.
        test: The winner's test, metric -> value; None if there was none.
        study: The Optuna study.
        result_grid: Ray's own results.
        rows: The rows of trials.csv.
        foreign: The numbers of trials in the study that are not the sweep's own.
        is_lightning: Whether the trials trained a LightningModule.
        failures: What each failed trial failed of, and where its log is, by trial number.
        seconds: Wall-clock time of this driver.
        ended: Why the sweep ended.
    """

    path: str
    goal: Goal
    settings: Settings
    resources: Resources
    best_config: dict[str, Any]
    best_score: float
    best_epoch: int | None
    best_trial: int
    best_state: str
    best_checkpoint: Checkpoint | None
    test: dict[str, float] | None
    study: optuna.Study = field(repr=False)
    result_grid: ResultGrid = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    foreign: list[int]
    is_lightning: bool
    failures: dict[int, str] = field(repr=False)
    seconds: float
    ended: Outcome

    @property
    def max_epochs(self) -> int | None:
        """Epochs that a trial trained at most; None: its function ended by itself."""
        halving = self.settings.halving
        return None if halving is None else halving.max_epochs

    @property
    def is_resumable(self) -> bool:
        """Whether there are trials left that `--resume` would run."""
        return self.ended.is_resumable
