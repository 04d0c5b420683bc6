"""Kills a sweep at random moments, resumes it, and holds what it leaves behind to account.

    python -m tests.torture --seed 0 --mode driver
    python -m tests.torture --seeds 10 --mode both --asha stopping

What is killed, always with SIGKILL: the driver, the process of a trial, or one after the other.
The moments are drawn from the seed; where they fall is up to the machine as well, so that a seed
names a run and does not repeat it. Scores depend on config and epoch alone: whatever was recorded,
printed or stored before a kill can be compared to the digit with what is there in the end.
"""

from __future__ import annotations  # the classes below go to the workers by value

import argparse
import csv
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from ray import tune

# isort: split
import psutil  # Ray brings its own, once it has been imported

from tune_jobs.engine import LightningSettings, Sweep, load_study, run_job, run_sweep
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.search.asha import StoppingASHA
from tune_jobs.engine.store.record import results_of

MODES = ("driver", "worker", "both")
KINDS = ("promotion", "stopping")
NAME = "s"
NUM_TRIALS = 24
MAX_EPOCHS = 9
MILESTONES = (1, 3, 9)
REDUCTION_FACTOR = 3
NUM_KEPT = 10

MIN_KILLS = 8
POLL_S = 0.002
# Ray starts in 3 to 6 s, and a trial's process in as many: nothing moves for up to half a minute
# where others use the machine too.
HANG_S = 120.0
# Ray ends what it has started within 3 s after the death of the driver, or later on a busy machine.
LINGER_S = 30.0


# The job


def score(x: float, n: float, epoch: float) -> float:
    """What a trial of this config scores in this epoch.

    Rises to a height that depends on the config, so that ASHA has something to choose from, and
    falls again after a peak, so that the best epoch is not always the last. A multiple of 2^-20:
    float32, in which Lightning keeps what is logged, holds it exactly.
    """
    height = 1 - (x - 0.6) ** 2 + 0.02 * n
    peak = 4 + n % 6
    value = height * (1 - 0.5**epoch) - 0.03 * max(0.0, epoch - peak)
    return round(value * 2**20) / 2**20


def sleep_of(n: float) -> float:
    """Seconds of an epoch: 0.05 to 0.2, so that trials do not run in step."""
    return 0.05 + 0.15 * (n % 4) / 3


def make_model(config: dict[str, Any], data: Any) -> Any:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        """Scores by its buffers alone: a checkpoint of another trial or epoch would tell."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            for name in ("x", "n"):
                self.register_buffer(name, torch.tensor(config[name], dtype=torch.float64))
            self.register_buffer("epochs", torch.tensor(0.0, dtype=torch.float64))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            time.sleep(sleep_of(self.n.item()))
            self.epochs += 1
            return (self.weight * batch[0]).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", score(self.x.item(), self.n.item(), self.epochs.item()))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def make_data(config: dict[str, Any], data: Any) -> Any:
    import pytorch_lightning as pl

    class Data(pl.LightningDataModule):  # type: ignore[name-defined,misc]
        def train_dataloader(self) -> Any:
            dataset = torch.utils.data.TensorDataset(torch.ones(1, 1))
            return torch.utils.data.DataLoader(dataset, batch_size=1)

        val_dataloader = train_dataloader

    return Data()


def run_tortured_job(args: Sequence[str]) -> None:
    """What the driver runs: a job like any other."""

    def job(settings: LightningSettings) -> Sweep:
        return run_sweep(
            settings,
            space={"x": tune.uniform(0, 1), "n": tune.randint(1, 9)},
            metric="score",
            mode="max",
            make_model=make_model,
            make_data=make_data,
        )

    run_job(job, LightningSettings, "A job to be tortured.", args)


# Its driver


class Driver:
    """One life of the sweep's driver: a process, whose lines are read as they come.

    It leads a process group of its own: Ray's reaper kills the whole group of a driver that died.

    Args:
        home: Where the sweep's folder is, and what else is to be gone at the end.
        number: Of the life.
        args: The job's command line.

    Attributes:
        lines: What it has printed.
        errors: File with what it has printed on stderr.
    """

    def __init__(self, home: Path, number: int, args: Sequence[str]) -> None:
        self.number = number
        self.lines: list[str] = []
        self._family: set[psutil.Process] = set()
        # Ray's files go with ours; an abort shows where every thread is.
        env = {**os.environ, "RAY_TMPDIR": str(home), "PYTHONFAULTHANDLER": "1"}
        command = [sys.executable, "-u", str(Path(__file__).resolve()), "job", *args]
        self.errors = home / f"driver_{number:02d}.err"
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                process_group=0,
                cwd=home,
                env=env,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __str__(self) -> str:
        return f"driver {self.number} (pid {self._process.pid})"

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def trouble(self) -> str | None:
        """How it ended by itself, if not well."""
        code = self._process.poll()
        if code in (None, 0, -signal.SIGKILL):
            return None
        return f"{self} ended with {code}: {self.errors.read_text()[-3000:].strip()}"

    def trial_processes(self) -> list[psutil.Process]:
        """The processes of its trials: Ray names them after what they run."""
        return sorted(
            (process for process in self._look_for_family() if _is_trial(process)),
            key=lambda process: process.pid,
        )

    def kill(self) -> None:
        """Kill it alone, at once, and wait for its last line."""
        # Stopped at once: it does nothing more while its family is looked for.
        self._process.send_signal(signal.SIGSTOP)
        self._look_for_family()
        self._process.kill()
        self.wait()

    def abort(self) -> None:
        """End one that hangs; the stacks of its threads go to its errors."""
        self._look_for_family()
        self._process.send_signal(signal.SIGABRT)
        self._process.wait(LINGER_S)

    def wait(self) -> None:
        """Wait for its last line, after its end."""
        self._process.wait()
        self._reader.join(LINGER_S)

    def bury(self) -> list[str]:
        """Make sure that it is gone, and what it had started too.

        Returns:
            Processes of its trials that did not end by themselves: they would train on. Not so
            Ray's agents, which for a minute try to tell of the death to a head that is dead too.
        """
        if self.is_running:
            self.kill()
        trials = [process for process in self._family if _is_trial(process)]
        _, alive = psutil.wait_procs(trials, timeout=LINGER_S)
        names = [f"{process.pid} {_title(process)}" for process in alive]
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return names

    def _look_for_family(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._family.update(children)
        return children

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))


def _is_trial(process: psutil.Process) -> bool:
    return _title(process).startswith("ray::ImplicitFunc")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80]
    except psutil.Error:
        return ""


# The moments


@dataclass(frozen=True)
class Progress:
    """How far a sweep has come, as it is seen from outside.

    Attributes:
        seconds: On the clock.
        files: Files and folders in the sweep's folder.
        entries: Whole lines of the journal.
        finished: How many of these end a trial.
        printed: Lines that this driver has printed for trials.
    """

    seconds: float
    files: int
    entries: int
    finished: int
    printed: int


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        name: Its kind.
        has_come: Called with the progress at the last kill, and the progress now.
        delay_s: What is waited besides.
    """

    name: str
    has_come: Callable[[Progress, Progress], bool]
    delay_s: float = 0.0


def draw_moment(rng: random.Random, victim: str, before: str | None) -> Moment:
    """Draw a moment: of the journal, of what is printed, of the clock, or of Ray's start.

    Args:
        rng: What it is drawn with.
        victim: Who is to be killed.
        before: Who was killed before; None: nobody yet.
    """
    if (before, victim) == (None, "driver") and rng.random() < 0.3:
        return _files_moment(rng)
    if (before, victim) == ("worker", "driver") and rng.random() < 0.6:
        # While the trial is started again.
        return Moment("soon after", lambda then, now: True, rng.uniform(0, 5))
    draws = [_entries_moment] * 5 + [_lines_moment] * 3 + [_clock_moment] * 2
    if victim == "driver":
        draws.append(_start_moment)
    return rng.choice(draws)(rng)


def enough_moment(rng: random.Random, finished: int) -> Moment:
    """As soon as so many trials have finished, or a little later: in the midst of the next one."""
    delay_s = rng.choice((0.0, rng.uniform(0, 0.3)))
    return Moment("enough", lambda then, now: now.finished >= finished, delay_s)


def end_moment(rng: random.Random) -> Moment:
    """While the files are written of a sweep whose trials have all ended."""
    delay_s = rng.uniform(0, 0.5)
    return Moment("end", lambda then, now: now.finished >= NUM_TRIALS, delay_s)


def _files_moment(rng: random.Random) -> Moment:
    """As soon as there is a lock, a manifest or a journal."""
    files = rng.randint(1, 3)
    return Moment("birth", lambda then, now: now.files >= files)


def _start_moment(rng: random.Random) -> Moment:
    return Moment("start", lambda then, now: True, rng.uniform(0, 5))


def _clock_moment(rng: random.Random) -> Moment:
    seconds = rng.uniform(0, 16)
    return Moment("clock", lambda then, now: now.seconds - then.seconds >= seconds)


def _lines_moment(rng: random.Random) -> Moment:
    """Right after a printed line, or between two of them."""
    lines, delay_s = rng.randint(1, 2), rng.choice((0.0, rng.uniform(0, 0.4)))
    return Moment("line", lambda then, now: now.printed - then.printed >= lines, delay_s)


def _entries_moment(rng: random.Random) -> Moment:
    entries = rng.randint(1, 25)
    return Moment("entry", lambda then, now: now.entries - then.entries >= entries)


def draw_plan(rng: random.Random, mode: str) -> list[str]:
    """Draw who is to be killed, one after the other."""
    if mode != "both":
        return [mode] * MIN_KILLS
    plan: list[str] = []
    while len(plan) < MIN_KILLS:
        plan += ["worker"] * rng.choice((1, 1, 2)) + ["driver"]
    return plan


# The torture


class HangError(Exception):
    """The sweep does not move."""


@dataclass(frozen=True)
class Kill:
    """One that has happened.

    Attributes:
        victim: "driver" or "worker".
        moment: Its kind.
        copy: Folder with the journal as it was then; None: there was none yet.
    """

    victim: str
    moment: str
    copy: Path | None


@dataclass
class Torture:
    """A sweep under torture, and what was seen of it.

    Args:
        home: An empty folder for all of it.
        seed: Of the moments, and of the sweep.
        mode: Who is killed.
        asha: The kind of ASHA.
    """

    home: Path
    seed: int
    mode: str
    asha: str = "promotion"
    kills: list[Kill] = field(default_factory=list)
    drivers: list[Driver] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The sweep's."""
        return self.home / NAME

    def run(self) -> None:
        """Kill as planned, then let the sweep come to its end."""
        rng = random.Random(self.seed)
        try:
            driver = self._kill_all(rng, self._start())
            if self.mode != "worker" and rng.random() < 0.5:
                driver = self._try_to_kill(rng, "driver", driver, end_moment(rng)) or driver
            self._wait_for(driver)
            driver.wait()
        except HangError as error:
            self.violations.append(str(error))
        finally:
            self._bury_drivers()
        if len(self.kills) < MIN_KILLS:
            self.violations.append(f"the sweep ended after {len(self.kills)} kills")

    def _kill_all(self, rng: random.Random, driver: Driver) -> Driver:
        plan = draw_plan(rng, self.mode)
        for done, victim in enumerate(plan):
            moment = draw_moment(rng, victim, plan[done - 1] if done else None)
            # So soon at the latest that the trials left will do for the kills left.
            finished = self._look(driver).finished
            share = max(1, (NUM_TRIALS - 2 - finished) // (len(plan) - done))
            enough = enough_moment(rng, finished + share)
            survivor = self._try_to_kill(rng, victim, driver, moment, enough)
            if survivor is None:
                break
            driver = survivor
        return driver

    def _try_to_kill(
        self, rng: random.Random, victim: str, driver: Driver, *moments: Moment
    ) -> Driver | None:
        """Kill at the first of the moments.

        Returns:
            The driver from then on; None: it has ended before.
        """
        moment = self._wait_for(driver, *moments)
        if moment is None:
            return None
        if victim == "driver":
            driver.kill()
        elif not self._kill_worker(rng, driver):
            return None
        self.kills.append(Kill(victim, moment.name, self._copy_journal(len(self.kills))))
        return self._start() if victim == "driver" else driver

    def _kill_worker(self, rng: random.Random, driver: Driver) -> bool:
        """Kill the process of a trial as soon as there is one; False: the driver has ended."""
        there_is_one = Moment("worker", lambda then, now: bool(driver.trial_processes()))
        while self._wait_for(driver, there_is_one):
            try:
                rng.choice(driver.trial_processes()).kill()
                return True
            except (IndexError, psutil.NoSuchProcess):
                continue  # it has ended meanwhile
        return False

    def _wait_for(self, driver: Driver, *moments: Moment) -> Moment | None:
        """The first of the moments, once it has come; None: the driver has ended before."""
        then = moved = self._look(driver)
        due: dict[Moment, float] = {}
        while driver.is_running:
            now = self._look(driver)
            for moment in moments:
                if moment not in due and moment.has_come(then, now):
                    due[moment] = now.seconds + moment.delay_s
                if now.seconds >= due.get(moment, math.inf):
                    return moment
            if (now.entries, now.printed) != (moved.entries, moved.printed):
                moved = now
            if now.seconds - moved.seconds > HANG_S:
                driver.abort()
                raise HangError(f"{driver} has not moved for {HANG_S:g} s: {driver.errors}")
            time.sleep(POLL_S)
        return None

    def _look(self, driver: Driver) -> Progress:
        try:
            files, journal = len(os.listdir(self.folder)), _read(self.folder / "study.log")
        except FileNotFoundError:
            files, journal = 0, b""
        ended, started = journal.count(b'{"op_code":6,'), journal.count(b'{"op_code":4,')
        # Where trials wait, they end all at once.
        finished = ended if self.asha == "stopping" or ended else max(0, started - 2)
        printed = sum(line.startswith("Trial ") for line in list(driver.lines))
        return Progress(time.monotonic(), files, journal.count(b"\n"), finished, printed)

    def _start(self) -> Driver:
        args = ["--name", NAME, "--storage-path", str(self.home), "--address", "local"]
        if (self.folder / "sweep.json").exists():
            args.append("--resume")  # the settings are as they were
        else:
            args += self._settings()
        self.drivers.append(Driver(self.home, len(self.drivers) + 1, args))
        return self.drivers[-1]

    def _settings(self) -> list[str]:
        settings = {
            "num-trials": NUM_TRIALS,
            "max-epochs": MAX_EPOCHS,
            "asha": self.asha,
            "reduction-factor": REDUCTION_FACTOR,
            "keep-checkpoints": NUM_KEPT,
            "max-concurrent": 2,
            "gpus-per-trial": 0,
            "seed": self.seed,
        }
        if self.mode != "driver":
            settings["max-failures"] = 2 * MIN_KILLS  # no trial may use them up
        return [text for name, value in settings.items() for text in (f"--{name}", str(value))]

    def _copy_journal(self, number: int) -> Path | None:
        journal = self.folder / "study.log"
        if not journal.exists():
            return None
        copy = self.home / f"kill_{number:02d}"
        copy.mkdir()
        shutil.copy(journal, copy)
        return copy

    def _bury_drivers(self) -> None:
        for driver in self.drivers:
            for name in driver.bury():
                self.violations.append(f"{driver} was gone, what it had started was not: {name}")
            if driver.trouble:
                self.violations.append(driver.trouble)


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


# The reckoning


class Reckoning:
    """What must hold of a sweep in the end, however often it was killed.

    Each `check_...` yields what is not as it must be. The numbers that it compares with are worked
    out here once more, from the settings and the formula alone.

    Args:
        torture: The sweep, at its end.
    """

    def __init__(self, torture: Torture) -> None:
        self.torture = torture
        self.folder = torture.folder
        self.trials = _load_trials(self.folder)
        # Those that ended as they should; the others are told once.
        self.sound = [trial for trial in self.trials if _end_of(trial) in ENDS]
        with (self.folder / "trials.csv").open(newline="") as file:
            self.rows = list(csv.DictReader(file))

    def violations(self) -> Iterator[str]:
        """All that is not as it must be."""
        for name in vars(type(self)):
            if name.startswith("check_"):
                yield from (f"{name.removeprefix('check_')}: {text}" for text in self._run(name))

    def _run(self, name: str) -> Iterator[str]:
        try:
            yield from getattr(self, name)()
        except Exception as error:  # what is missing is a violation too; the other checks go on
            yield f"{type(error).__name__}: {error}"

    def check_trials_are_all_there_and_finished(self) -> Iterator[str]:
        numbers = list(range(NUM_TRIALS))
        yield from _compare("numbers in the study", [t.number for t in self.trials], numbers)
        yield from _compare("rows", [int(row["trial"]) for row in self.rows], numbers)
        folders = sorted(path.name for path in self.folder.glob("trial_*"))
        yield from _compare("folders", folders, [f"trial_{number:04d}" for number in numbers])
        ids = Counter(trial.user_attrs.get("trial_id") for trial in self.trials)
        yield from _compare("ids that are there twice", [i for i, n in ids.items() if n > 1], [])
        for trial in self.trials:
            if trial not in self.sound:
                yield f"trial {trial.number} is {', '.join(_end_of(trial))}"

    def check_epochs_have_no_gap_and_no_repeat(self) -> Iterator[str]:
        for trial in self.sound:
            epochs = list(range(1, len(trial.intermediate_values) + 1))
            recorded = results_of(trial)
            written = self._written(trial)
            what = f"epochs of trial {trial.number}"
            yield from _compare(f"{what} in its curve", sorted(trial.intermediate_values), epochs)
            yield from _compare(f"{what} in its results", list(recorded), epochs)
            yield from _compare(f"{what} in result.json", [r["epoch"] for r in written], epochs)
            ids = {trial.user_attrs["trial_id"]}
            yield from _compare(f"{what}: ids", {r["trial_id"] for r in written}, ids)

    def check_scores_are_those_of_the_formula(self) -> Iterator[str]:
        for trial in self.sound:
            right = curve_of(trial, len(trial.intermediate_values))
            yield from _compare(f"curve of {trial.number}", trial.intermediate_values, right)
            recorded = {epoch: r["score"] for epoch, r in results_of(trial).items()}
            yield from _compare(f"results of {trial.number}", recorded, right)
            written = {r["epoch"]: r["score"] for r in self._written(trial)}
            yield from _compare(f"result.json of {trial.number}", written, right)
            last = right[len(right)]
            value = max(right.values()) if trial.state == TrialState.COMPLETE else last
            yield from _compare(f"value of {trial.number}", trial.value, value)

    def check_what_was_printed_is_still_so(self) -> Iterator[str]:
        seen: dict[int, str] = {}
        for driver in self.torture.drivers:
            for line in driver.lines:
                if not line.startswith("Trial "):
                    continue
                number, state = int(line.split()[1]), line.split()[2]
                if state == "PAUSED":
                    yield from self._check_pause(line, self.trials[number])
                    continue
                if number in seen:
                    yield f"printed twice: {seen[number]!r} and, by {driver}, {line!r}"
                seen[number] = line
                if self.trials[number] in self.sound:
                    yield from self._check_line(line, self.trials[number])

    def _check_pause(self, line: str, trial: FrozenTrial) -> Iterator[str]:
        match = LINE.fullmatch(line)
        bests = {f"{max(curve_of(trial, epochs).values()):.5g}" for epochs in MILESTONES[:-1]}
        if match is None or match["value"] not in bests:
            yield f"{line!r} is of no rung: {bests}"

    def _check_line(self, line: str, trial: FrozenTrial) -> Iterator[str]:
        match = LINE.fullmatch(line)
        if match is None:
            yield f"cannot be read: {line!r}"
            return
        best_epoch = best_epoch_of(trial)
        state = "COMPLETE" if trial.state == TrialState.COMPLETE else "PRUNED (asha)"
        several = len(trial.intermediate_values) > 1
        right = {
            "number": str(trial.number),
            "state": state,
            "value": f"{trial.intermediate_values[best_epoch]:.5g}",
            "epoch": str(best_epoch) if several else None,
            "params": f"x={trial.params['x']:.4g}, n={trial.params['n']}",
        }
        said = match.groupdict()
        best, best_value = said.pop("best"), said.pop("best_value")
        yield from _compare(f"{line!r}", said, right)
        if best is not None:
            value = self.trials[int(best)].value
            yield from _compare(f"best in {line!r}", best_value, f"{value:.5g}")

    def check_what_was_recorded_at_each_kill_is_still_there(self) -> Iterator[str]:
        for number, kill in enumerate(self.torture.kills):
            for then in _load_trials(kill.copy) if kill.copy else ():
                now = self.trials[then.number]
                what = f"trial {now.number} since kill {number}"
                yield from _compare(f"params of {what}", now.params, then.params)
                yield from _compare(
                    f"id of {what}", *(t.user_attrs["trial_id"] for t in (now, then))
                )
                kept = {e: now.intermediate_values.get(e) for e in then.intermediate_values}
                yield from _compare(f"curve of {what}", kept, then.intermediate_values)
                if then.state.is_finished():
                    yield from _compare(f"state of {what}", now.state, then.state)
                    yield from _compare(f"values of {what}", now.values, then.values)

    def check_rungs_are_those_of_the_curves(self) -> Iterator[str]:
        # Either kind: where a trial has been, both see alike.
        asha = StoppingASHA(Goal("score", "max"), MAX_EPOCHS, 1, REDUCTION_FACTOR)
        for trial in self.trials:
            asha.replay(trial.user_attrs["trial_id"], trial.intermediate_values)
        rungs = {
            milestone: {
                trial.user_attrs["trial_id"]: trial.intermediate_values[milestone]
                for trial in self.trials
                if milestone in trial.intermediate_values
            }
            for milestone in MILESTONES
        }
        yield from _compare("rungs", asha.rungs, rungs)

    def check_trials_end_where_they_may(self) -> Iterator[str]:
        for trial in self.sound:
            ends = (MAX_EPOCHS,) if trial.state == TrialState.COMPLETE else MILESTONES[:-1]
            end = max(trial.intermediate_values)
            if end not in ends:
                yield f"trial {trial.number}, {trial.state.name}, ends at {end}"

    def check_decisions_follow_from_what_was_recorded_before(self) -> Iterator[str]:
        """Each decision again, from the entries in the order in which the journal has them."""
        check = self._check_stop if self.torture.asha == "stopping" else self._check_promotions
        rungs: dict[int, dict[int, float]] = {milestone: {} for milestone in MILESTONES}
        yield from check(_Entries(self.folder / "study.log"), rungs)

    def _check_stop(self, entries: _Entries, rungs: dict[int, dict[int, float]]) -> Iterator[str]:
        for trial, result in entries.results():
            epoch, right = result["epoch"], None
            if epoch in rungs:
                others = [s for other, s in rungs[epoch].items() if other != trial]
                rungs[epoch][trial] = result["score"]
                percentile = 100 * (1 - 1 / REDUCTION_FACTOR)
                if others and result["score"] < np.percentile(others, percentile):
                    right = "asha"
            right = "last epoch" if epoch == MAX_EPOCHS else right
            stop = result.get("tune_jobs:stop")
            yield from _compare(f"decision on trial {trial} at epoch {epoch}", stop, right)

    def _check_promotions(
        self, entries: _Entries, rungs: dict[int, dict[int, float]]
    ) -> Iterator[str]:
        promoted: set[tuple[int, int]] = set()
        for trial, name, value in entries:
            if name == "tune_jobs:promoted":
                if (trial, value) in promoted:
                    yield f"trial {trial} is promoted twice from {value}"
                promoted.add((trial, value))
                scores = rungs[value]
                best = sorted(scores, key=lambda t: -scores[t])[: len(scores) // REDUCTION_FACTOR]
                # Or the best one left, once all have started and none has come to its end.
                is_last = len(rungs[1]) == NUM_TRIALS and not rungs[MAX_EPOCHS]
                if trial not in best and not is_last:
                    yield f"trial {trial} is promoted from {value}, best are {best}"
                continue
            epoch = value["epoch"]
            if epoch in rungs:
                rungs[epoch][trial] = value["score"]
            for milestone in MILESTONES:
                if milestone < epoch and (trial, milestone) not in promoted:
                    yield f"trial {trial} trains epoch {epoch}, not promoted from {milestone}"
            right = "last epoch" if epoch == MAX_EPOCHS else None
            stop = value.get("tune_jobs:stop")
            yield from _compare(f"decision on trial {trial} at epoch {epoch}", stop, right)

    def check_table_and_best_agree_with_the_study(self) -> Iterator[str]:
        for trial in self.sound:
            row = self.rows[trial.number]
            best_epoch = best_epoch_of(trial)
            right = {
                "state": trial.state.name,
                "reason": trial.user_attrs["reason"],
                "epochs": str(len(trial.intermediate_values)),
                "best_epoch": str(best_epoch),
                "score": str(trial.intermediate_values[best_epoch]),
                "config/x": str(trial.params["x"]),
                "config/n": str(trial.params["n"]),
            }
            said = {name: row[name] for name in right}
            yield from _compare(f"row of trial {trial.number}", said, right)
        winner = self._ranked()[0]
        best = json.loads((self.folder / "best.json").read_text())
        right_best = {
            "trial": winner.number,
            "score": max(winner.intermediate_values.values()),
            "epoch": best_epoch_of(winner),
            "config": winner.params,
            "state": winner.state.name,
        }
        yield from _compare("best.json", {name: best[name] for name in right_best}, right_best)

    def check_each_kept_trial_has_its_checkpoints(self) -> Iterator[str]:
        """The best epoch's and the last one's, of the best trials, and nothing else."""
        kept = {trial.number for trial in self._ranked()[:NUM_KEPT]}
        for trial in self.sound:
            results = results_of(trial)
            epochs = {best_epoch_of(trial), len(results)} if trial.number in kept else set()
            right = {results[epoch]["checkpoint_dir_name"]: epoch for epoch in sorted(epochs)}
            there = sorted(path.name for path in self._folder_of(trial).glob("checkpoint_*"))
            yield from _compare(f"checkpoints of trial {trial.number}", there, sorted(right))
            for name in set(there) & set(right):
                file = self._folder_of(trial) / name / "checkpoint.ckpt"
                yield from self._check_checkpoint(file, trial, right[name])
        winner = self._ranked()[0]
        yield from self._check_checkpoint(self.folder / "best.ckpt", winner, best_epoch_of(winner))

    def _check_checkpoint(self, file: Path, trial: FrozenTrial, epoch: int) -> Iterator[str]:
        content = torch.load(file, weights_only=True)
        state = {name: content["state_dict"][name].item() for name in ("x", "n", "epochs")}
        yield from _compare(f"{file}", state, {**trial.params, "epochs": epoch})

    def check_nothing_is_left_over(self) -> Iterator[str]:
        for path in self.folder.iterdir():
            if not OWN_FILES.fullmatch(path.name):
                yield f"{path}"
        for path in self.folder.glob("trial_*/*"):
            if not TRIAL_FILES.fullmatch(path.name):
                yield f"{path}"
        for path in self.folder.glob("trial_*/checkpoint_*/*"):
            if path.name != "checkpoint.ckpt":
                yield f"{path}"

    def _ranked(self) -> list[FrozenTrial]:
        """The trials, the best first: complete ones, then those that were stopped."""
        return sorted(
            self.sound,
            key=lambda t: (t.state != TrialState.COMPLETE, -max(t.intermediate_values.values())),
        )

    def _folder_of(self, trial: FrozenTrial) -> Path:
        return self.folder / f"trial_{trial.number:04d}"

    def _written(self, trial: FrozenTrial) -> list[dict[str, Any]]:
        lines = (self._folder_of(trial) / "result.json").read_text().splitlines()
        return [json.loads(line) for line in lines]


LINE = re.compile(
    r"Trial (?P<number>\d+) (?P<state>[A-Z]+(?: \([^)]*\))?)(?: with value (?P<value>\S+))?"
    r"(?: at epoch (?P<epoch>\d+))? and parameters (?P<params>.*?)\."
    r"(?: Best is trial (?P<best>\d+) with value (?P<best_value>\S+)\.)?"
)
ENDS = (("COMPLETE", "last epoch"), ("PRUNED", "asha"))
# Ray's own are among them. Its snapshots are named after the time of the driver's start, and the
# draft of one stays where the driver dies before it is renamed; nothing reads either.
OWN_FILES = re.compile(
    r"study\.log|sweep\.json|trials\.csv|best\.json|best\.ckpt|trial_\d{4}|tuner\.pkl"
    r"|\.validate_storage_marker"
    r"|((\.[\da-f-]+-)?tmp-)?(experiment_state|search_gen_state|searcher-state)-[\d_-]+\.(json|pkl)"
)
TRIAL_FILES = re.compile(r"result\.json|params\.(json|pkl)|checkpoint_\d{6}|error\.(txt|pkl)")


def curve_of(trial: FrozenTrial, epochs: int) -> dict[int, float]:
    """What the trial has to have scored."""
    x, n = trial.params["x"], trial.params["n"]
    return {epoch: score(x, n, epoch) for epoch in range(1, epochs + 1)}


def best_epoch_of(trial: FrozenTrial) -> int:
    """Of equals the latest."""
    curve = trial.intermediate_values
    return max(curve, key=lambda epoch: (curve[epoch], epoch))


def _end_of(trial: FrozenTrial) -> tuple[str, str]:
    return trial.state.name, str(trial.user_attrs.get("reason"))


def _compare(what: str, is_so: Any, should_be: Any) -> Iterator[str]:
    if is_so != should_be:
        yield f"{what}: {is_so}, must be {should_be}"


def _load_trials(folder: Path) -> list[FrozenTrial]:
    """The trials in a copy of the folder's journal; none where it had hardly been begun."""
    if b"\n" not in _read(folder / "study.log"):
        return []
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / "study.log", copy)
        return load_study(copy).get_trials()


class _Entries:
    """Results and promotions in the order in which a journal has them; some results come again.

    Yields:
        Trial, name of the attribute, and its value.
    """

    def __init__(self, journal: Path) -> None:
        self._lines = journal.read_text().splitlines()

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        for line in self._lines:
            entry = json.loads(line)
            for name, value in entry.get("system_attr", {}).items():
                is_ours = name.startswith(("tune_jobs:result:", "tune_jobs:promoted"))
                if is_ours and entry["op_code"] == 9:
                    yield entry["trial_id"], name, value

    def results(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The results alone, with their trials."""
        return ((trial, value) for trial, name, value in self if "result" in name)


# The command


def torture(seed: int, mode: str, asha: str = "promotion") -> list[str]:
    """Torture one sweep, print how it was in a line, and clean up after it if it is well.

    Returns:
        What is not as it must be.
    """
    started = time.monotonic()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    home = Path(tempfile.mkdtemp(prefix="torture-"))
    victim = Torture(home, seed, mode, asha)
    victim.run()
    violations = victim.violations + _reckon(victim)
    counts = Counter(f"{kill.victim} at {kill.moment}" for kill in victim.kills)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    head = f"seed {seed}, mode {mode}, {asha}: {len(victim.kills)} kills ({kinds})"
    verdict = f"{len(violations)} violations, see {home}" if violations else "OK"
    print(f"{head}, {time.monotonic() - started:.0f} s: {verdict}", flush=True)
    for violation in violations:
        print(f"  {violation}", flush=True)
    if not violations:
        shutil.rmtree(home, ignore_errors=True)
    return violations


def _reckon(victim: Torture) -> list[str]:
    try:
        return list(Reckoning(victim).violations())
    except Exception as error:  # there is not enough to be held to account
        return [f"the sweep has left nothing to check: {type(error).__name__}: {error}"]


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the one run")
    parser.add_argument("--seeds", type=int, help="run this many instead, from 0 on")
    parser.add_argument("--mode", choices=MODES, default="driver", help="who is killed")
    parser.add_argument("--asha", choices=KINDS, default="promotion", help="the kind of ASHA")
    options = parser.parse_args(args)
    seeds = [options.seed] if options.seeds is None else range(options.seeds)
    num_violations = sum(len(torture(seed, options.mode, options.asha)) for seed in seeds)
    return int(num_violations > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        run_tortured_job(sys.argv[2:])
    sys.exit(main())
