"""Run a sweep in simulated time.

Slots run trials whose learning curves are looked up, and a side decides which trials start and
continue. Only the training is simulated: the search and the scheduler are real objects, called as
Tune's controller, or a user's own loop, calls them.
"""

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from benchmarks.surrogate import Curve, Surrogate
from tune_jobs.engine.core.goal import Goal

__all__ = ["Decision", "Limits", "MakeSide", "Run", "Side", "Start", "Task", "simulate"]

Decision = Literal["continue", "stop", "pause"]


class Start(NamedTuple):
    """A trial that a free slot runs: a new one, or a paused one that is resumed."""

    number: int
    config: dict[str, Any]


class Side(Protocol):
    """What decides in a sweep: a search with a scheduler, or a study with a pruner."""

    def start(self) -> Start | None:
        """The trial that a free slot runs next; None: wait until another trial has reported."""

    def report(self, number: int, epoch: int, score: float) -> Decision:
        """Take in a trial's score after an epoch; "pause" and "stop" free its slot.

        Args:
            number: The trial.
            epoch: Counted from 1.
            score: The value of the metric.
        """


@dataclass(frozen=True)
class Task:
    """What a side is made for.

    Attributes:
        goal: What is optimized.
        max_epochs: Epochs that a trial trains at most.
        num_slots: Trials in parallel.
        seed: The sweep's.
        first_configs: Configs that every side tries first with this seed, so that sides are paired.
    """

    goal: Goal
    max_epochs: int
    num_slots: int
    seed: int
    first_configs: list[dict[str, Any]]


MakeSide = Callable[[Task], Side]


@dataclass(frozen=True)
class Limits:
    """When a simulated sweep ends.

    Attributes:
        target: The score to reach.
        max_total_epochs: Epochs of all trials together.
        runs_to_end: Whether the sweep continues after the target has been reached.
        speed_spread: Standard deviation of the logarithm of a trial's speed, so that trials that
            start together do not report together.
        uses_lengths: Whether an epoch takes its recorded time, relative to the mean; otherwise each
            epoch takes 1.
    """

    target: float
    max_total_epochs: int = 3_000
    runs_to_end: bool = False
    speed_spread: float = 0.2
    uses_lengths: bool = False


@dataclass
class Run:
    """The result of a simulated sweep.

    Attributes:
        epochs_to_target: Epochs of all trials until one reached the target; None: none did.
        time_to_target: Simulated time until then; an epoch takes 1 on average.
        epochs: Epochs of all trials.
        num_trials: Trials that were started.
        improvements: For each new best score, the epochs of all trials until then, and the score.
        num_diverged: Trials that reported NaN.
        max_diverged_epochs: The most epochs that a diverged trial trained.
        start_s: Real seconds that the side spent on choosing trials to start.
        report_s: Real seconds that the side spent on reports.
        all_s: Real seconds of the whole simulation.
    """

    epochs_to_target: int | None = None
    time_to_target: float | None = None
    epochs: int = 0
    num_trials: int = 0
    improvements: list[tuple[int, float]] = field(default_factory=list)
    num_diverged: int = 0
    max_diverged_epochs: int = 0
    start_s: float = 0.0
    report_s: float = 0.0
    all_s: float = 0.0


@dataclass
class _Trial:
    """A trial that has started.

    Attributes:
        curve: Its learning curve.
        epoch_length: Simulated time of an epoch.
        epoch: The last epoch that it has reported.
    """

    curve: Curve
    epoch_length: float
    epoch: int = 0


class _Simulation:
    """One simulated sweep; call `run` once."""

    def __init__(self, side: Side, surrogate: Surrogate, task: Task, limits: Limits) -> None:
        self._side, self._surrogate, self._task, self._limits = side, surrogate, task, limits
        self._trials: dict[int, _Trial] = {}
        self._running: list[tuple[float, int]] = []  # a heap: end of the next epoch, number
        self._best = -math.inf
        self._run = Run()

    def run(self) -> Run:
        started = time.perf_counter()
        self._fill_slots(0.0)
        while self._running and not self._is_over():
            now, number = heapq.heappop(self._running)
            if self._finish_epoch(now, number) == "continue":
                heapq.heappush(self._running, (now + self._trials[number].epoch_length, number))
            else:
                self._fill_slots(now)
        self._run.all_s = time.perf_counter() - started
        return self._run

    def _is_over(self) -> bool:
        run, limits = self._run, self._limits
        is_done = run.epochs_to_target is not None and not limits.runs_to_end
        return is_done or run.epochs >= limits.max_total_epochs

    def _fill_slots(self, now: float) -> None:
        while len(self._running) < self._task.num_slots:
            started = time.perf_counter()
            start = self._side.start()
            self._run.start_s += time.perf_counter() - started
            if start is None:
                return
            if start.number not in self._trials:
                self._trials[start.number] = self._begin(start)
            trial = self._trials[start.number]
            heapq.heappush(self._running, (now + trial.epoch_length, start.number))

    def _begin(self, start: Start) -> _Trial:
        # Speed and luck depend on seed and number alone: they are the same for every side.
        rng = np.random.default_rng([self._task.seed, start.number])
        length = float(rng.lognormal(0.0, self._limits.speed_spread))
        curve = self._surrogate.curve(start.config, rng)
        self._run.num_trials += 1
        return _Trial(curve, length * (curve.epoch_length if self._limits.uses_lengths else 1.0))

    def _finish_epoch(self, now: float, number: int) -> Decision:
        trial, run = self._trials[number], self._run
        score = float(trial.curve.scores[trial.epoch])
        trial.epoch += 1
        run.epochs += 1
        self._note(now, trial.epoch, score)
        started = time.perf_counter()
        decision = self._side.report(number, trial.epoch, score)
        run.report_s += time.perf_counter() - started
        if decision == "continue" and trial.epoch == self._task.max_epochs:
            raise RuntimeError(
                f"side continues trial {number} after its last epoch, {trial.epoch}."
            )
        return decision

    def _note(self, now: float, epoch: int, score: float) -> None:
        run, gain = self._run, self._task.goal.gain
        if math.isnan(score):
            run.num_diverged += epoch == 1
            run.max_diverged_epochs = max(run.max_diverged_epochs, epoch)
        elif gain(score) > self._best:
            self._best = gain(score)
            run.improvements.append((run.epochs, score))
            if run.epochs_to_target is None and gain(score) >= gain(self._limits.target):
                run.epochs_to_target, run.time_to_target = run.epochs, now


def simulate(side: Side, surrogate: Surrogate, task: Task, limits: Limits) -> Run:
    """Run a sweep in simulated time.

    Trials whose epochs end at the same time report in the order in which they were started.
    """
    return _Simulation(side, surrogate, task, limits).run()
