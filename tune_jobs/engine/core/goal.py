"""What a sweep optimizes, and which trial is best: `Goal`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.outcome import Kind, has_failed, outcome_of

__all__ = ["LAST_EPOCH_ATTR", "Goal", "curve_of", "final_curve", "is_feasible"]

# The system attribute in which a trial that is run again holds the epoch to which it has come.
LAST_EPOCH_ATTR = "tune_jobs:last_epoch"


@dataclass(frozen=True)
class Goal:
    """A metric and its direction.

    Attributes:
        metric: The name under which trials report their score.
        mode: "max" or "min".

    Raises:
        SettingsError: The mode is neither, or the metric is no name.
    """

    metric: str
    mode: str

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise SettingsError(
                f"metric must be the name under which trials report their score, such as 'loss', "
                f"got {self.metric!r}."
            )
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

    def score(self, trial: FrozenTrial) -> float | None:
        """A trial's one number: its value, once it has ended; until then its best report so far.

        A failed trial has none.
        """
        if has_failed(trial):
            return None
        if trial.state.is_finished():
            return trial.value
        epoch = self.best_epoch(trial.intermediate_values)
        return None if epoch is None else trial.intermediate_values[epoch]

    def rank(self, trial: FrozenTrial) -> tuple[int, float, int]:
        """Orders trials: of two, the better one has the larger rank.

        A complete trial is better than one that was stopped or still runs. Worse than these is one
        that violates a constraint, and worst one that failed. Then the score counts; of equals the
        trial that started first wins.
        """
        score = self.score(trial)
        gain = -math.inf if score is None else self.gain(score)
        return self._standing(trial), gain, -trial.number

    def best(self, trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
        """The best of the trials; None: none has a score.

        A trial that failed, violates a constraint, or was ended by hand is never the best.
        """
        able = [t for t in trials if self._can_win(t)]
        return max(able, key=self.rank, default=None)

    def _can_win(self, trial: FrozenTrial) -> bool:
        outcome = outcome_of(trial)
        is_by_hand = outcome is not None and outcome.kind == Kind.BY_HAND
        return self.score(trial) is not None and is_feasible(trial) and not is_by_hand

    def _standing(self, trial: FrozenTrial) -> int:
        if has_failed(trial):
            return 0
        if not is_feasible(trial):
            return 1
        return 3 if trial.state == TrialState.COMPLETE else 2


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """The scores that a trial has reported, epoch -> score.

    A trial that was run again from an earlier epoch, because its process died, may have ended
    before it came as far as before. Then the later epochs of the first attempt are no part of it.
    """
    return final_curve(trial) if trial.state.is_finished() else trial.intermediate_values


def final_curve(trial: FrozenTrial) -> dict[int, float]:
    """The curve of a trial that ends now."""
    last = trial.system_attrs.get(LAST_EPOCH_ATTR)
    curve = trial.intermediate_values
    return curve if last is None else {e: score for e, score in curve.items() if e <= last}


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial violates no constraint of the sampler's; Optuna's are met at zero or less."""
    return all(violation <= 0 for violation in trial.constraints.values())
