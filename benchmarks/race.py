"""Real sweeps against the clock: until a trial is as good as the best 1 % of the recorded configs.

    python -m benchmarks.race --data-dir data --out race.json            # hours on two cores
    python -m benchmarks.race --data-dir data --out race.json --sides ours stopping

The model, images and epochs of `benchmarks.record_curves`, two slots; the sides take turns, seed by
seed. "stock" is Ray's ASHA and what its OptunaSearch would tell Optuna, inside this same engine, so
that nothing but the decisions differs. Sweeps that are in `--out` are not run again.
"""

import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_lightning as pl
import ray
import tyro
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler

from benchmarks.record_curves import Args as RecordArgs
from benchmarks.record_curves import load_images, read_curves
from tune_jobs.engine import LightningSettings, Sweep, run_sweep
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Reason
from tune_jobs.engine.search.asha import EpochScheduler
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.record import Record, results_of
from tune_jobs.mnist import SEARCH_SPACE, make_data, make_model

SIDES = ("ours", "stopping", "stock")


@dataclass(frozen=True)
class Args:
    """Race searches on the real thing."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    out: Path
    """JSON file of all sweeps."""
    sides: tuple[str, ...] = SIDES
    """Who races: ours (promotion), stopping (ours), stock."""
    num_sweeps: int = 10
    """Sweeps a side."""
    limit_s: float = 900.0
    """Seconds after which a sweep is given up; it counts as so many."""
    max_epochs: int = 27
    """Epochs a trial trains at most."""


@dataclass(frozen=True)
class Lap:
    """One sweep of the race.

    Attributes:
        side: Who.
        seed: The sweep's.
        seconds: From the first epoch's start to the report that reached the target; None: none did.
        epochs: Epochs of all trials.
        num_trials: Trials that were started.
        num_switches: Times that a process went from one trial, paused or ended, to another.
        switch_s: Seconds between these, from the end of one's epoch to the start of the other's:
            median; None: there were none.
        epoch_gap_s: The same between two epochs of one trial.
    """

    side: str
    seed: int
    seconds: float | None
    epochs: int
    num_trials: int
    num_switches: int
    switch_s: float | None
    epoch_gap_s: float | None


class Clock(pl.Callback):
    """Notes when epochs start and end, in a file a process: trial, event, time."""

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


class StockASHA(EpochScheduler):
    """Ray's ASHA; NaN, the last epoch and a score that is good enough are the engine's."""

    def __init__(self, settings: LightningSettings, goal: Goal, record: Record) -> None:
        super().__init__(goal, settings.max_epochs, settings.stop_at, record)
        self._stock = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=goal.metric,
            mode=goal.mode,
            max_t=settings.max_epochs,
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        )
        self._trials: dict[str, Any] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._trials[trial.trial_id] = trial
        self._stock.on_trial_add(tune_controller, trial)

    def _judge(self, trial_id: str, epoch: int, score: float) -> Reason | None:
        result = {"epoch": epoch, self._goal.metric: score}
        decision = self._stock.on_trial_result(None, self._trials[trial_id], result)
        stops = decision == AsyncHyperBandScheduler.STOP
        return super()._judge(trial_id, epoch, score) or (Reason.ASHA if stops else None)


class StockView(View):
    """What OptunaSearch tells: each trial is COMPLETE with its last value."""

    def end(self, trial_id: str, state: TrialState, value: Any, curve: Any, crashed: bool) -> Any:
        last = curve[max(curve)] if curve else None
        ended = TrialState.COMPLETE if curve else state
        return super().end(trial_id, ended, last, curve, crashed)


@contextlib.contextmanager
def side(name: str) -> Iterator[None]:
    """Put the parts of a side in their places."""
    if name != "stock":
        yield
        return

    def make_stock(settings: Any, goal: Goal, record: Record, on_pause: Any) -> StockASHA:
        return StockASHA(settings, goal, record)

    with (
        patch("tune_jobs.engine.sweep._make_scheduler", make_stock),
        patch("tune_jobs.engine.search.study_search.View", StockView),
    ):
        yield


def race(args: Args, name: str, seed: int, target: float) -> Lap:
    """Run one sweep."""
    recorded = RecordArgs(data="mnist", data_dir=args.data_dir)
    with tempfile.TemporaryDirectory() as folder, side(name):
        notes = Path(folder, "notes")
        notes.mkdir()
        settings = LightningSettings(
            num_trials=100_000,
            max_concurrent=2,
            gpus_per_trial=0,
            max_epochs=args.max_epochs,
            asha="stopping" if name == "stopping" else "promotion",
            stop_at=target,
            time_budget_s=args.limit_s,
            seed=seed,
            storage_path=folder,
            name="race",
        )
        with contextlib.redirect_stdout(io.StringIO()):
            sweep = run_sweep(
                settings,
                space=SEARCH_SPACE,
                metric="val_acc",
                mode="max",
                load_data=lambda _: load_images(recorded),
                make_model=make_model,
                make_data=make_data,
                trainer_kwargs={"callbacks": [Clock(str(notes))]},
            )
        if sweep.ended == Reason.INTERRUPTED:
            raise KeyboardInterrupt
        return summarise(name, seed, sweep, notes, target)


def summarise(name: str, seed: int, sweep: Sweep, notes: Path, target: float) -> Lap:
    events = [read_events(file) for file in sorted(notes.iterdir())]
    switches: list[float] = []
    gaps: list[float] = []
    for process in events:
        for (trial, event, ended), (other, _, started) in itertools.pairwise(process):
            if event == "end":
                (gaps if trial == other else switches).append(started - ended)
    curves = [results_of(trial) for trial in sweep.study.trials]
    times = [
        (trial.user_attrs["trial_id"], epoch)
        for trial, curve in zip(sweep.study.trials, curves, strict=True)
        for epoch, result in curve.items()
        if float(result["val_acc"]) >= target
    ]
    first = min(process[0][2] for process in events if process)
    reached = [end_of(events, trial_id, epoch) - first for trial_id, epoch in times]
    return Lap(
        name,
        seed,
        min(reached, default=None),
        sum(len(curve) for curve in curves),
        len(curves),
        len(switches),
        statistics.median(switches) if switches else None,
        statistics.median(gaps) if gaps else None,
    )


def read_events(file: Path) -> list[tuple[str, str, float]]:
    lines = (line.split() for line in file.read_text().splitlines())
    return [(trial, event, float(when)) for trial, event, when in lines]


def end_of(events: list[list[tuple[str, str, float]]], trial_id: str, epoch: int) -> float:
    """When a trial ended an epoch, whichever processes trained it."""
    ends = sorted(
        when
        for process in events
        for trial, event, when in process
        if trial == trial_id and event == "end"
    )
    return ends[epoch - 1]


def print_table(laps: list[Lap], args: Args) -> None:
    rng = np.random.default_rng(0)
    print(
        "| side | sweeps | median seconds | got there | median epochs | next trial | next epoch |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.sides:
        own = [lap for lap in laps if lap.side == name]
        took = np.array([args.limit_s if lap.seconds is None else lap.seconds for lap in own])
        medians = np.median(rng.choice(took, (10_000, len(took))), axis=1)
        low, high = np.quantile(medians, [0.025, 0.975])
        there = np.mean([lap.seconds is not None for lap in own])
        switches = [lap.switch_s for lap in own if lap.switch_s is not None]
        gaps = [lap.epoch_gap_s for lap in own if lap.epoch_gap_s is not None]
        seconds = f"{np.median(took):.0f} ({low:.0f} to {high:.0f})"
        print(
            f"| {name} | {len(own)} | {seconds} | {there:.0%} "
            f"| {np.median([lap.epochs for lap in own]):.0f} "
            f"| {statistics.median(switches):.3f} s | {statistics.median(gaps):.3f} s |"
        )


def main(args: Args) -> None:
    _, curves = read_curves("mnist")
    target = float(np.quantile(curves["val_acc"].max(axis=1), 0.99))
    print(f"target: {target:.4f}")
    laps = [Lap(**lap) for lap in json.loads(args.out.read_text())] if args.out.exists() else []
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    for seed in range(args.num_sweeps):
        for name in args.sides:
            if any((lap.side, lap.seed) == (name, seed) for lap in laps):
                continue
            lap = race(args, name, seed, target)
            print(lap, flush=True)
            laps.append(lap)
            args.out.write_text(json.dumps([asdict(lap) for lap in laps], indent=1))
    print_table(laps, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
