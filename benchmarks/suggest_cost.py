"""Measure how long a suggestion takes in a sweep of 10 000 trials.

    python -m benchmarks.suggest_cost                  # minutes
    python -m benchmarks.suggest_cost --side "ours, stopping"

The sweep runs in simulated time, with the project's own search, scheduler and view. The benchmark
times what a free slot waits for: the last report, the choice of a paused trial to resume, the view,
the sampler and the record. The record is in memory here; on disk, it also appends a few lines to a
journal.
"""

import math
import statistics
import time
from dataclasses import dataclass

import optuna
import tyro

from benchmarks.record_curves import read_curves
from benchmarks.simulate import GOALS, SIDES, draw_first
from benchmarks.simulated_ours import OURS
from benchmarks.simulated_time import Decision, Limits, Side, Start, Task, simulate
from benchmarks.surrogate import Surrogate


@dataclass(frozen=True)
class Args:
    """Time suggestions."""

    side: str = OURS
    """Side to time; benchmarks.simulate names them."""
    num_trials: int = 10_000
    """Trials of the sweep."""
    num_slots: int = 16
    """Trials in parallel."""
    num_parts: int = 10
    """Parts of the sweep, each reported in one row."""


class TimedSide:
    """Times the suggestions of a side, and ends the sweep once all trials have started.

    Args:
        side: The side.
        num_trials: Trials to start.

    Attributes:
        took: Milliseconds of each suggestion, including the report before it.
    """

    def __init__(self, side: Side, num_trials: int) -> None:
        self._side = side
        self._num_trials = num_trials
        self.took: list[float] = []
        self._reporting_s = 0.0

    def start(self) -> Start | None:
        if len(self.took) == self._num_trials:
            return None
        started = time.perf_counter()
        start = self._side.start()
        if start is not None and start.number == len(self.took):
            self.took.append(1_000 * (self._reporting_s + time.perf_counter() - started))
        return start

    def report(self, number: int, epoch: int, score: float) -> Decision:
        started = time.perf_counter()
        decision = self._side.report(number, epoch, score)
        self._reporting_s = time.perf_counter() - started
        return decision


def main(args: Args) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    goal = GOALS["val_acc"]
    surrogate = Surrogate(*read_curves("mnist"), goal, model="forest")  # the faster model
    task = Task(goal, surrogate.max_epochs, args.num_slots, 0, draw_first(0, 10))
    side = TimedSide(SIDES[args.side](task), args.num_trials)
    limits = Limits(math.inf, max_total_epochs=1_000 * args.num_trials)
    simulate(side, surrogate, task, limits)
    size = args.num_trials // args.num_parts
    print("| trials | median ms | 99th percentile | longest |\n| ---: | ---: | ---: | ---: |")
    for first in range(0, len(side.took), size):
        part = sorted(side.took[first : first + size])
        quantile = part[int(0.99 * len(part))]
        print(
            f"| {first:,} to {first + len(part):,} | {statistics.median(part):.1f} "
            f"| {quantile:.1f} | {part[-1]:.1f} |"
        )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
