"""Fence off the largest garden along a wall: a plain function, tuned in seconds.

    python tune_jobs/garden.py
    python tune_jobs/garden.py --num-trials 100 --seed 1

500 m of fence make three sides of a rectangle; the wall is the fourth. x is the side perpendicular
to the wall. Calculus says x = 125 m, y = 250 m, 31,250 square meters.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ray import tune

from tune_jobs.engine import Settings, run_job

if TYPE_CHECKING:
    from tune_jobs.engine import SweepResult

FENCE_M = 500.0
BEST_AREA_M2 = FENCE_M**2 / 8

SEARCH_SPACE = {"x": tune.uniform(0.0, FENCE_M / 2)}  # meters


@dataclass(frozen=True)
class GardenSettings(Settings):
    """Settings of the garden."""

    num_trials: int = 50
    """Configs to try."""
    gpus_per_trial: float | Literal["auto"] = 0.0
    """Share of a GPU that a trial holds, 0 to 1; a formula needs none."""


def area(config: dict[str, Any]) -> float:
    """Square meters of a garden whose side perpendicular to the wall is x meters long."""
    x: float = config["x"]
    return x * (FENCE_M - 2 * x)


def main(settings: Settings) -> "SweepResult":
    from tune_jobs.engine import run_sweep  # here: `--help` should not wait for Optuna

    return run_sweep(settings, space=SEARCH_SPACE, metric="area", mode="max", objective=area)


def print_garden(result: "SweepResult") -> None:
    x = result.best_config["x"]
    short_of = 100 * (1 - result.best_score / BEST_AREA_M2)
    print(
        f"Garden: {x:.2f} m by {FENCE_M - 2 * x:.2f} m along the wall, "
        f"{result.best_score:,.1f} m2; {short_of:.4f} % below the best, 125 m by 250 m, "
        f"{BEST_AREA_M2:,.0f} m2"
    )


if __name__ == "__main__":
    run_job(main, GardenSettings, __doc__, finish=print_garden)
