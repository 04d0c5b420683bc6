"""Race real sweeps against the clock, until a trial is as good as the best 1 % of recorded configs.

    python -m benchmarks.race --data-dir data --out race.json            # hours on two cores
    python -m benchmarks.race --data-dir data --out race.json --sides ours stopping

Model, images and epochs are those of `benchmarks.record_curves`. Two trials run in parallel, and
the sides take turns, seed by seed. "ours" is promotion, "stopping" is this project's other ASHA.
"stock" is Ray's ASHAScheduler, with an OptunaSearch as sampler (`benchmarks/stock_sampler.py`). All
sides run in this project's engine, so that they differ only in their decisions. Sweeps that `--out`
already holds are not repeated.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytorch_lightning as pl
import ray
import tyro
from ray.tune.schedulers import ASHAScheduler

from benchmarks.record_curves import Args as RecordArgs
from benchmarks.record_curves import load_images, read_curves
from benchmarks.stock_sampler import StockSampler
from tune_jobs.engine import LightningSettings, SweepResult, run_sweep
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Kind
from tune_jobs.engine.store.entries import id_of, results_of
from tune_jobs.mnist import SEARCH_SPACE, make_data, make_model

GOAL = Goal("val_acc", "max")
SIDES = ("ours", "stopping", "stock")

Event = tuple[str, str, float]  # Tune's id of the trial, "start" or "end" of an epoch, time


@dataclass(frozen=True)
class Args:
    """Race real sweeps against the clock."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    out: Path
    """JSON file that keeps all sweeps."""
    sides: tuple[str, ...] = SIDES
    """Sides to race: ours (promotion), stopping, stock."""
    num_sweeps: int = 10
    """Sweeps of each side."""
    limit_s: float = 900.0
    """Seconds after which a sweep is stopped; it then counts with this time."""
    max_epochs: int = 27
    """Epochs that a trial trains at most."""


@dataclass(frozen=True)
class Gaps:
    """How long processes are idle between epochs.

    Attributes:
        num_switches: How often a process changed from one trial, paused or ended, to another.
        switch_s: Median seconds of a switch, from the end of the one trial's epoch to the start of
            the other's; None: there was none.
        epoch_s: Median seconds between two epochs of one trial; None: there are none.
    """

    num_switches: int
    switch_s: float | None
    epoch_s: float | None


@dataclass(frozen=True)
class Lap:
    """One sweep of the race.

    Attributes:
        side: Its side.
        seed: Its seed.
        seconds: From the start of the first epoch to the report that reached the target; None: no
            report did.
        epochs: Epochs of all trials.
        num_trials: Trials that were started.
        gaps: The idle time between epochs.
    """

    side: str
    seed: int
    seconds: float | None
    epochs: int
    num_trials: int
    gaps: Gaps


class Clock(pl.Callback):
    """Records when epochs start and end, in one file for each process: trial, event, time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._note("start")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._note("end")

    def _note(self, event: str) -> None:
        trial_id = ray.tune.get_context().get_trial_id()
        with Path(self._folder, f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{trial_id} {event} {time.time()}\n")


def race(args: Args, side: str, seed: int, target: float) -> Lap:
    """Run one sweep."""
    recorded = RecordArgs(data="mnist", data_dir=args.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes")
        notes.mkdir()
        settings = LightningSettings(
            num_trials=100_000,
            max_concurrent=2,
            gpus_per_trial=0,
            max_epochs=args.max_epochs,
            asha="stopping" if side == "stopping" else "promotion",
            stop_at=target,
            time_budget_s=args.limit_s,
            seed=seed,
            storage_path=folder,
            name="race",
        )
        result = run_sweep(
            settings,
            space=SEARCH_SPACE,
            metric=GOAL.metric,
            mode=GOAL.mode,
            load_data=lambda _: load_images(recorded),
            make_model=make_model,
            make_data=make_data,
            trainer_kwargs={"callbacks": [Clock(str(notes))]},
            sampler=StockSampler(SEARCH_SPACE, GOAL) if side == "stock" else None,
            scheduler=make_stock_asha(settings) if side == "stock" else None,
            progress=None,
        )
        if result.ended.kind == Kind.INTERRUPTED:
            raise KeyboardInterrupt
        return summarize(side, seed, result, [read_events(file) for file in notes.iterdir()])


def make_stock_asha(settings: LightningSettings) -> ASHAScheduler:
    """Ray's ASHA with this project's rule."""
    return ASHAScheduler(
        time_attr="epoch",
        max_t=settings.max_epochs,
        grace_period=settings.grace_epochs,
        reduction_factor=settings.reduction_factor,
    )


def summarize(side: str, seed: int, result: SweepResult, events: list[list[Event]]) -> Lap:
    """Summarize a sweep.

    Args:
        side: Its side.
        seed: Its seed.
        result: Its result.
        events: The epochs' starts and ends in each process, in order.
    """
    stop_at = result.settings.stop_at
    trials = result.study.trials
    curves = [results_of(trial) for trial in trials]
    reached = [
        end_of(events, id_of(trial), epoch)
        for trial, curve in zip(trials, curves, strict=True)
        for epoch, report in curve.items()
        if stop_at is not None and float(report[GOAL.metric]) >= stop_at
    ]
    first = min(process[0][2] for process in events if process)
    return Lap(
        side,
        seed,
        min(reached) - first if reached else None,
        sum(len(curve) for curve in curves),
        len(trials),
        find_gaps(events),
    )


def find_gaps(events: list[list[Event]]) -> Gaps:
    """Measure the gaps between epochs.

    Args:
        events: The epochs' starts and ends in each process, in order.
    """
    switches: list[float] = []
    epochs: list[float] = []
    for process in events:
        for (trial, event, ended), (other, _, started) in itertools.pairwise(process):
            if event == "end":
                (epochs if trial == other else switches).append(started - ended)
    return Gaps(
        len(switches),
        statistics.median(switches) if switches else None,
        statistics.median(epochs) if epochs else None,
    )


def read_events(file: Path) -> list[Event]:
    lines = (line.split() for line in file.read_text().splitlines())
    return [(trial, event, float(when)) for trial, event, when in lines]


def end_of(events: list[list[Event]], trial_id: str, epoch: int) -> float:
    """When a trial ended an epoch, in whichever process."""
    ends = sorted(
        when
        for process in events
        for trial, event, when in process
        if trial == trial_id and event == "end"
    )
    return ends[epoch - 1]


def read_laps(path: Path) -> list[Lap]:
    """The sweeps in `--out`; none if it does not exist."""
    if not path.exists():
        return []
    entries = json.loads(path.read_text())
    return [Lap(**{**entry, "gaps": Gaps(**entry["gaps"])}) for entry in entries]


def print_table(laps: list[Lap], args: Args) -> None:
    rng = np.random.default_rng(0)
    print(
        "| side | sweeps | median seconds | reached it | median epochs | next trial | next epoch |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for side in args.sides:
        own = [lap for lap in laps if lap.side == side]
        took = np.array([args.limit_s if lap.seconds is None else lap.seconds for lap in own])
        medians = np.median(rng.choice(took, (10_000, len(took))), axis=1)
        low, high = np.quantile(medians, [0.025, 0.975])
        reached = np.mean([lap.seconds is not None for lap in own])
        seconds = f"{np.median(took):.0f} ({low:.0f} to {high:.0f})"
        print(
            f"| {side} | {len(own)} | {seconds} | {reached:.0%} "
            f"| {np.median([lap.epochs for lap in own]):.0f} "
            f"| {format_median([lap.gaps.switch_s for lap in own])} "
            f"| {format_median([lap.gaps.epoch_s for lap in own])} |"
        )


def format_median(seconds: list[float | None]) -> str:
    """The median of the known ones; empty if none is known."""
    known = [value for value in seconds if value is not None]
    return f"{statistics.median(known):.3f} s" if known else ""


def main(args: Args) -> None:
    _, curves = read_curves("mnist")
    target = float(np.quantile(curves["val_acc"].max(axis=1), 0.99))
    print(f"target: {target:.4f}")
    laps = read_laps(args.out)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    for seed in range(args.num_sweeps):
        for side in args.sides:
            if any((lap.side, lap.seed) == (side, seed) for lap in laps):
                continue
            lap = race(args, side, seed, target)
            print(lap, flush=True)
            laps.append(lap)
            args.out.write_text(json.dumps([asdict(lap) for lap in laps], indent=1))
    print_table(laps, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
