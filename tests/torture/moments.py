"""When to kill what: `Moment`, drawn at random."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .job import NUM_TRIALS

MIN_KILLS = 8


@dataclass(frozen=True)
class Progress:
    """How far a sweep has come, as seen from outside.

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
        delay_s: Seconds to wait after it has come.
    """

    name: str
    has_come: Callable[[Progress, Progress], bool]
    delay_s: float = 0.0


def draw_plan(rng: random.Random, mode: str) -> list[str]:
    """Draw what is to be killed, one after the other."""
    if mode != "both":
        return [mode] * MIN_KILLS
    plan: list[str] = []
    while len(plan) < MIN_KILLS:
        plan += ["worker"] * rng.choice((1, 1, 2)) + ["driver"]
    return plan


def draw_moment(rng: random.Random, victim: str, before: str | None) -> Moment:
    """Draw a moment: by the journal, by what is printed, by the clock, or by Ray's start.

    Args:
        rng: The generator.
        victim: What is to be killed.
        before: What was killed before; None: nothing was.
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
    """As soon as so many trials have finished, or a little later, within the next one."""
    delay_s = rng.choice((0.0, rng.uniform(0, 0.3)))
    return Moment("enough", lambda then, now: now.finished >= finished, delay_s)


def end_moment(rng: random.Random) -> Moment:
    """While the result files are written, after all trials have ended."""
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
