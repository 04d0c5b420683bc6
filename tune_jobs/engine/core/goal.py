"""What a sweep optimizes, and which trial is best: `Goal`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.outcome import has_failed

__all__ = ["ENDS_ITSELF", "Goal", "epoch_of"]

# Set in the last result of a trial that one of its own callbacks ends, such as EarlyStopping.
ENDS_ITSELF = "ends_itself"


@dataclass(frozen=True)
class Goal:
    """A metric and its direction.

    Attributes:
        metric: The name under which trials report their score.
        mode: "max" or "min".

    Raises:
        SettingsError: The mode is neither.
    """

    metric: str
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise SettingsError(f"mode must be 'max' or 'min', got {self.mode!r}.")

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The mode in Optuna's words."""
        return "maximize" if self.mode == "max" else "minimize"

    def gain(self, score: float) -> float:
        """The score, negated where lower is better: a larger gain is always better."""
        return score if self.mode == "max" else -score

    def best_epoch(self, curve: Mapping[int, float]) -> int | None:
        """The epoch of the best score; of equals the latest, whose checkpoint Tune keeps.

        Args:
            curve: Epoch -> score; the intermediate values of an Optuna trial.
        """
        return max(curve, key=lambda epoch: (self.gain(curve[epoch]), epoch), default=None)

    def rank(self, trial: FrozenTrial) -> tuple[int, float, int]:
        """Orders trials: of two, the better one has the larger rank.

        A complete trial is better than one that was stopped or still runs, and both are better than
        one that failed. Then the best epoch counts; of equals the trial that started first wins.
        """
        standing = 0 if has_failed(trial) else 1 + (trial.state == TrialState.COMPLETE)
        gains = [self.gain(score) for score in trial.intermediate_values.values()]
        return standing, max(gains, default=-math.inf), -trial.number

    def best(self, trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
        """The best of the trials; None: none has a score. A failed trial is never the best."""
        scored = (t for t in trials if t.intermediate_values and not has_failed(t))
        return max(scored, key=self.rank, default=None)


def epoch_of(result: Mapping[str, Any]) -> int:
    """The epoch of a result; for a plain function, the number of its reports so far."""
    return int(result.get("epoch", result.get("training_iteration", 0)))
