"""Measure what the driver costs for each trial, from the first trial of a long sweep to the last.

    python -m benchmarks.driver_cost
    python -m benchmarks.driver_cost --sampler random     # without the cost of TPE

The trials do nothing, so all time is the driver's: search, record and Ray.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import optuna
import tyro
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from ray import tune

from tune_jobs.engine import Settings, run_sweep
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.progress import Silent

BLOCK = 10  # trials whose mean time is taken
NUM_PARTS = 10  # parts of the sweep, each reported in one row
MIN_TRIALS = NUM_PARTS * (BLOCK + 1)


@dataclass(frozen=True)
class Args:
    """Measure what the driver costs for each trial."""

    num_trials: int = 1_000
    """Trials of the sweep."""
    sampler: Literal["tpe", "random"] = "tpe"
    """TPE, the default of a sweep, or random search, which looks at no other trial."""


class Clock(Silent):
    """Listens to a sweep and records when each trial ends, in ms.

    Attributes:
        wall: By the clock.
        cpu: In CPU time of the driver.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        self.wall.append(1_000 * time.perf_counter())
        self.cpu.append(1_000 * time.process_time())


class TimedSampler(BaseSampler):
    """Measures the CPU time of another sampler.

    Args:
        sampler: The sampler.

    Attributes:
        took: CPU time of the sampler for each trial, in ms.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler
        self.took: list[float] = []

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.took.append(0.0)
        with self._timed():
            self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with self._timed():
            return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._timed():
            return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        with self._timed():
            return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.process_time()
        yield
        self.took[-1] += 1_000 * (time.process_time() - started)


def do_nothing(config: dict[str, Any]) -> float:
    score: float = config["x"]
    return score


def main(args: Args) -> None:
    if args.num_trials < MIN_TRIALS:
        raise SystemExit(f"--num-trials must be at least {MIN_TRIALS}, got {args.num_trials}.")
    clock = Clock()
    sampler = TimedSampler(RandomSampler() if args.sampler == "random" else TPESampler())
    with tempfile.TemporaryDirectory() as folder:
        run_sweep(
            Settings(num_trials=args.num_trials, gpus_per_trial=0, storage_path=folder),
            space={name: tune.uniform(0, 1) for name in ("x", "y", "z")},
            metric="score",
            mode="max",
            objective=do_nothing,
            sampler=sampler,
            progress=clock,
        )
    print(f"{'trials':>12} {'wall ms':>9} {'CPU ms':>9} {'sampler ms':>11}   medians for one trial")
    tenth = args.num_trials // NUM_PARTS
    for part in range(NUM_PARTS):
        start, stop = part * tenth, (part + 1) * tenth
        print(
            f"{start:6}-{stop - 1:<5} {_between(clock.wall[start:stop]):9.1f} "
            f"{_between(clock.cpu[start:stop]):9.1f} "
            f"{statistics.median(sampler.took[start:stop]):11.1f}"
        )
    for name, times in (("wall", clock.wall), ("CPU", clock.cpu)):
        ratio = _between(times[-tenth:]) / _between(times[:tenth])
        print(f"{name}: a trial of the last tenth costs {ratio:.2f} times one of the first tenth")


def _between(moments: list[float]) -> float:
    """The median time of a trial, over blocks of trials: parallel trials end in pairs."""
    blocks = zip(moments[::BLOCK], moments[BLOCK::BLOCK], strict=False)
    return statistics.median((end - start) / BLOCK for start, end in blocks)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
