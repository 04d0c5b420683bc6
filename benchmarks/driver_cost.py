"""What the driver itself costs a trial, from the first of a long sweep to its last.

    python -m benchmarks.driver_cost
    python -m benchmarks.driver_cost --sampler random     # without what TPE itself takes

Trials that do nothing, so that all there is to wait for is the driver: search, record, Ray.
"""

import contextlib
import io
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from optuna.samplers import BaseSampler, RandomSampler
from ray import tune

from tune_jobs.engine import Settings, run_sweep
from tune_jobs.engine.search.study_search import StudySearch


@dataclass(frozen=True)
class Args:
    """Measure the driver's cost a trial."""

    num_trials: int = 1_000
    """Trials that do nothing."""
    sampler: Literal["tpe", "random"] = "tpe"
    """The default, or one that looks at nothing."""


class Clock:
    """Notes when each trial ends, and how long each suggestion takes; ms."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.suggest: list[float] = []

    def attach(self) -> None:
        end, suggest = StudySearch.on_trial_complete, StudySearch.suggest

        def timed_end(search: StudySearch, *args: Any, **kwargs: Any) -> None:
            end(search, *args, **kwargs)
            self.wall.append(1_000 * time.perf_counter())
            self.cpu.append(1_000 * time.process_time())

        def timed_suggest(search: StudySearch, trial_id: str) -> Any:
            started = time.process_time()
            try:
                return suggest(search, trial_id)
            finally:
                self.suggest.append(1_000 * (time.process_time() - started))

        setattr(StudySearch, "on_trial_complete", timed_end)  # noqa: B010
        setattr(StudySearch, "suggest", timed_suggest)  # noqa: B010


def nothing(config: dict[str, Any]) -> float:
    score: float = config["x"]
    return score


def main(args: Args) -> None:
    clock = Clock()
    clock.attach()
    sampler: BaseSampler | None = RandomSampler() if args.sampler == "random" else None
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run_sweep(
            Settings(num_trials=args.num_trials, gpus_per_trial=0, storage_path=folder),
            space={name: tune.uniform(0, 1) for name in ("x", "y", "z")},
            metric="score",
            mode="max",
            objective=nothing,
            sampler=sampler,
        )
    print(f"{'trials':>12} {'wall ms':>9} {'CPU ms':>9} {'suggest ms':>11}   medians, a trial")
    tenth = args.num_trials // 10
    for start in range(0, args.num_trials, tenth):
        stop = start + tenth
        print(
            f"{start:6}-{stop - 1:<5} {_between(clock.wall[start:stop]):9.1f} "
            f"{_between(clock.cpu[start:stop]):9.1f} "
            f"{statistics.median(clock.suggest[start:stop]):11.1f}"
        )
    for name, times in (("wall", clock.wall), ("CPU", clock.cpu)):
        ratio = _between(times[-tenth:]) / _between(times[:tenth])
        print(f"{name}: the last tenth's trial costs {ratio:.2f} times the first's")


def _between(moments: list[float]) -> float:
    """Two trials run at a time and end in pairs: the median over blocks of ten of their means."""
    blocks = [(b - a) / 10 for a, b in zip(moments[::10], moments[10::10], strict=False)]
    return statistics.median(blocks)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
