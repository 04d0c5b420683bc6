"""Kills a sweep as planned, and resumes it each time: `TorturedSweep`."""

import math
import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from .driver import Driver
from .job import MAX_EPOCHS, NUM_KEPT, NUM_TRIALS, REDUCTION_FACTOR
from .journal import JOURNAL, read_bytes
from .moments import (
    MIN_KILLS,
    Moment,
    Progress,
    draw_moment,
    draw_plan,
    end_moment,
    enough_moment,
)

NAME = "s"
POLL_S = 0.002
# Ray starts in 3 to 6 s, and a trial's process in as many: nothing moves for up to half a minute
# while others use the machine too.
HANG_S = 120.0

# Optuna's entries in the journal: a trial is created, its state is set.
CREATE_TRIAL, SET_TRIAL_STATE = b'{"op_code":4,', b'{"op_code":6,'


class HangError(Exception):
    """The sweep does not move."""


@dataclass(frozen=True)
class Kill:
    """A kill that has happened.

    Attributes:
        victim: "driver" or "worker".
        moment: The kind of its moment.
        copy: The folder with a copy of the journal at that time; None: there was no journal yet.
    """

    victim: str
    moment: str
    copy: Path | None


@dataclass
class TorturedSweep:
    """A sweep that is killed again and again, and what was seen of it.

    Attributes:
        home: An empty folder for all files.
        seed: Of the moments, and of the sweep.
        mode: What is killed.
        asha: The kind of ASHA.
        kills: What was killed, in order.
        drivers: The sweep's drivers, in order.
        violations: What went wrong meanwhile.
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
        """The folder of the sweep."""
        return self.home / NAME

    def run(self) -> None:
        """Kill as planned, then let the sweep finish."""
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
            self._clean_up()
        if len(self.kills) < MIN_KILLS:
            self.violations.append(f"the sweep ended after {len(self.kills)} kills")

    def _kill_all(self, rng: random.Random, driver: Driver) -> Driver:
        plan = draw_plan(rng, self.mode)
        for done, victim in enumerate(plan):
            moment = draw_moment(rng, victim, plan[done - 1] if done else None)
            # Not later than this, or too few trials would be left for the kills that are left.
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
            The driver from then on; None: it had ended before.
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
            if driver.kill_trial(rng):
                return True
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
            files, journal = len(os.listdir(self.folder)), read_bytes(self.folder / JOURNAL)
        except FileNotFoundError:
            files, journal = 0, b""
        ended, started = journal.count(SET_TRIAL_STATE), journal.count(CREATE_TRIAL)
        # With promotion, paused trials end all at once: those that started are counted.
        finished = ended if self.asha == "stopping" or ended else max(0, started - 2)
        printed = sum(line.startswith("Trial ") for line in list(driver.lines))
        return Progress(time.monotonic(), files, journal.count(b"\n"), finished, printed)

    def _start(self) -> Driver:
        args = ["--name", NAME, "--storage-path", str(self.home), "--address", "local"]
        if (self.folder / "sweep.json").exists():
            args.append("--resume")  # with the recorded settings
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
            settings["max-failures"] = 2 * MIN_KILLS  # more than one trial can reach
        return [text for name, value in settings.items() for text in (f"--{name}", str(value))]

    def _copy_journal(self, number: int) -> Path | None:
        journal = self.folder / JOURNAL
        if not journal.exists():
            return None
        copy = self.home / f"kill_{number:02d}"
        copy.mkdir()
        shutil.copy(journal, copy)
        return copy

    def _clean_up(self) -> None:
        for driver in self.drivers:
            for name in driver.clean_up():
                self.violations.append(f"{driver} was dead, but its process was not: {name}")
            if driver.trouble:
                self.violations.append(driver.trouble)
