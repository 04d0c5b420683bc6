"""Summarize many simulated sweeps: medians with bootstrap intervals over the seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulated_time import Run
from tune_jobs.engine.core.goal import Goal

__all__ = ["Estimate", "Row", "Scale", "estimate_median", "estimate_ratio", "make_table"]

Floats = NDArray[np.float64]
NUM_RESAMPLES = 10_000
REGRET_UNIT = 1e-4


@dataclass(frozen=True)
class Row:
    """One simulated sweep.

    Attributes:
        side: Who decided.
        slots: Trials in parallel.
        seed: The sweep's.
        run: Its result.
    """

    side: str
    slots: int
    seed: int
    run: Run


@dataclass(frozen=True)
class Scale:
    """What the sweeps are measured against.

    Attributes:
        goal: What was optimized.
        max_total_epochs: The epochs that a sweep counts with if it did not reach the target.
        best: The best score of the space.
        checkpoints: Numbers of epochs, of all trials, after which the regret is shown.
    """

    goal: Goal
    max_total_epochs: int
    best: float
    checkpoints: Sequence[int]


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def estimate_median(values: Floats) -> Estimate:
    """The median of values with shape (seeds,)."""
    return _estimate(lambda drawn: np.median(values[drawn], axis=-1), len(values))


def estimate_ratio(values: Floats, others: Floats) -> Estimate:
    """The ratio of two medians; both arrays have shape (seeds,) and the same order of seeds."""
    return _estimate(
        lambda drawn: np.median(values[drawn], axis=-1) / np.median(others[drawn], axis=-1),
        len(values),
    )


def epochs_to_target(run: Run, scale: Scale) -> int:
    return scale.max_total_epochs if run.epochs_to_target is None else run.epochs_to_target


def regret_at(run: Run, checkpoint: int, scale: Scale) -> float:
    """The distance of the best score so far from the space's best, in units of `REGRET_UNIT`.

    NaN: the run ended before this checkpoint, or has no score until then.
    """
    scores = [score for epochs, score in run.improvements if epochs <= checkpoint]
    if run.epochs < checkpoint or not scores:
        return float("nan")
    return (scale.goal.gain(scale.best) - scale.goal.gain(scores[-1])) / REGRET_UNIT


def make_table(rows: Sequence[Row], versus: str, scale: Scale) -> str:
    """Format sweeps as a Markdown table.

    Args:
        rows: The sweeps.
        versus: The side that the others are compared with, on the seeds that both have.
        scale: What they are measured against.
    """
    runs: dict[tuple[int, str], dict[int, Run]] = {}
    for row in rows:
        runs.setdefault((row.slots, row.side), {})[row.seed] = row.run
    shows_nan = any(row.run.num_diverged for row in rows)
    names = ["slots", "side", "seeds", "epochs to target", "reached it", f"{versus} / this"]
    names += [f"regret at {checkpoint:,}" for checkpoint in scale.checkpoints]
    names += ["epochs if diverged"] if shows_nan else []
    lines = [names, ["---"] * len(names)]
    for (slots, side), by_seed in sorted(runs.items(), key=lambda item: item[0][0]):
        cells = [str(slots), side, *_cells(by_seed, runs.get((slots, versus), {}), scale)]
        if shows_nan:
            cells.append(f"{max(run.max_diverged_epochs for run in by_seed.values())}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(by_seed: dict[int, Run], versus: dict[int, Run], scale: Scale) -> list[str]:
    """The cells of one side, from the number of seeds to the regrets."""
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    shared = sorted(by_seed.keys() & versus.keys())
    median = estimate_median(_epochs(runs, scale))
    cells = [str(len(runs)), f"{median.value:,.0f} ({median.low:,.0f} to {median.high:,.0f})"]
    cells.append(f"{np.mean([run.epochs_to_target is not None for run in runs]):.0%}")
    if shared and by_seed is not versus:
        ratio = estimate_ratio(
            _epochs([versus[seed] for seed in shared], scale),
            _epochs([by_seed[seed] for seed in shared], scale),
        )
        cells.append(f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
    else:
        cells.append("")
    for checkpoint in scale.checkpoints:
        regret = float(np.median([regret_at(run, checkpoint, scale) for run in runs]))
        cells.append("" if np.isnan(regret) else f"{regret:.1f}")
    return cells


def _epochs(runs: Sequence[Run], scale: Scale) -> Floats:
    return np.array([epochs_to_target(run, scale) for run in runs], dtype=float)


def _estimate(statistic: Callable[[NDArray[np.intp]], Floats], num_seeds: int) -> Estimate:
    """Estimate a statistic, with the interval of the percentile bootstrap.

    Args:
        statistic: Maps the positions of seeds, shape (..., seeds), to values, shape (...).
        num_seeds: The number of seeds.
    """
    drawn = np.random.default_rng(0).integers(num_seeds, size=(NUM_RESAMPLES, num_seeds))
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return Estimate(float(statistic(np.arange(num_seeds))), float(low), float(high))
