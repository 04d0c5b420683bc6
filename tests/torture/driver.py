"""One process that drives the tortured sweep: `Driver`."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray  # noqa: F401 - it brings its own psutil

# isort: split
import psutil

JOB = Path(__file__).with_name("job.py").resolve()

# Ray ends what it has started within 3 s after the death of the driver, or later on a busy machine.
LINGER_S = 30.0


class Driver:
    """A process that runs the job, whose lines are read as they come.

    It leads a process group of its own: Ray's reaper kills the whole group of a dead driver.

    Args:
        home: The folder that holds the sweep's folder and the driver's error output.
        number: The number of the driver, from 1.
        args: The job's command line.

    Attributes:
        lines: What it has printed.
        errors: The file with what it has printed on stderr.
    """

    def __init__(self, home: Path, number: int, args: Sequence[str]) -> None:
        self.number = number
        self.lines: list[str] = []
        self._children: set[psutil.Process] = set()
        # Ray's files are deleted with ours; an abort shows where every thread is.
        env = {**os.environ, "RAY_TMPDIR": str(home), "PYTHONFAULTHANDLER": "1"}
        self.errors = home / f"driver_{number:02d}.err"
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-u", str(JOB), *args],
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
        """How it failed; None: it has not failed."""
        code = self._process.poll()
        if code in (None, 0, -signal.SIGKILL):
            return None
        return f"{self} ended with {code}: {self.errors.read_text()[-3000:].strip()}"

    def trial_processes(self) -> list[psutil.Process]:
        """The processes of its trials: Ray names them after what they run."""
        return sorted(
            (process for process in self._find_children() if _is_trial(process)),
            key=lambda process: process.pid,
        )

    def kill_trial(self, rng: random.Random) -> bool:
        """Kill the process of one of its trials; False: all have ended meanwhile."""
        with suppress(IndexError, psutil.NoSuchProcess):
            rng.choice(self.trial_processes()).kill()
            return True
        return False

    def kill(self) -> None:
        """Kill it alone, at once, and wait for its last line."""
        # Stopped first, so that it does nothing while its children are looked for.
        self._process.send_signal(signal.SIGSTOP)
        self._find_children()
        self._process.kill()
        self.wait()

    def abort(self) -> None:
        """End a driver that hangs; the stacks of its threads are written to its errors."""
        self._find_children()
        self._process.send_signal(signal.SIGABRT)
        self._process.wait(LINGER_S)

    def wait(self) -> None:
        """Wait for its end and its last line."""
        self._process.wait()
        self._reader.join(LINGER_S)

    def clean_up(self) -> list[str]:
        """End it and all processes that it has started.

        Returns:
            Processes of its trials that did not end by themselves: they would have trained on.
            Ray's agents may take longer: for a minute they try to report the death to a head that
            is dead too.
        """
        if self.is_running:
            self.kill()
        trials = [process for process in self._children if _is_trial(process)]
        _, alive = psutil.wait_procs(trials, timeout=LINGER_S)
        names = [f"{process.pid} {_title(process)}" for process in alive]
        for process in self._children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return names

    def _find_children(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._children.update(children)
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
