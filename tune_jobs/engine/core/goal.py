"""What a sweep optimises, and which way: `Goal`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tune_jobs.engine.core.settings import SettingsError

__all__ = ["ENDS_ITSELF", "Goal", "epoch_of"]

# In the last result of a trial that a callback of its own ends, such as EarlyStopping.
ENDS_ITSELF = "ends_itself"


@dataclass(frozen=True)
class Goal:
    """A metric and the way to go.

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
        """The mode as Optuna calls it."""
        return "maximize" if self.mode == "max" else "minimize"

    def gain(self, score: float) -> float:
        """The score as something that is better the larger it is."""
        return score if self.mode == "max" else -score

    def best_epoch(self, curve: Mapping[int, float]) -> int | None:
        """The epoch of the best score; the latest of equals, as Tune keeps checkpoints.

        Args:
            curve: Epoch -> score; an Optuna trial's intermediate values.
        """
        return max(curve, key=lambda epoch: (self.gain(curve[epoch]), epoch), default=None)


def epoch_of(result: Mapping[str, Any]) -> int:
    """The epoch that a result is of; of a plain function's, how many it has reported."""
    return int(result.get("epoch", result.get("training_iteration", 0)))
