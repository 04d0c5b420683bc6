"""Kills a sweep at random moments, resumes it, and checks what it leaves behind.

    python -m tests.torture --seed 0 --mode driver
    python -m tests.torture --seeds 10 --mode both --asha stopping

What is killed, always with SIGKILL: the driver, the process of a trial, or one after the other. The
moments are drawn from the seed; when they come depends on the machine too, so the same seed does
not repeat a run. Scores depend on config and epoch alone: whatever was recorded, printed or stored
before a kill can be compared, digit by digit, with what is there in the end.

    job.py      the job that is tortured; runs as a script, in a process of its own
    driver.py   one such process
    moments.py  when to kill what
    sweep.py    kills and resumes
    journal.py  reads the record, from outside
    checks.py   what must hold in the end
"""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna

from .checks import Audit
from .sweep import TorturedSweep

__all__ = ["KINDS", "MODES", "torture"]

MODES = ("driver", "worker", "both")
KINDS = ("promotion", "stopping")


def torture(seed: int, mode: str, asha: str = "promotion") -> list[str]:
    """Torture one sweep, print a line about it, and delete its files if no problem is found.

    Args:
        seed: Of the moments, and of the sweep.
        mode: What is killed, one of `MODES`.
        asha: The kind of ASHA, one of `KINDS`.

    Returns:
        What is not as it must be.
    """
    started = time.monotonic()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    home = Path(tempfile.mkdtemp(prefix="torture-"))
    sweep = TorturedSweep(home, seed, mode, asha)
    sweep.run()
    violations = sweep.violations + _audit(sweep)
    counts = Counter(f"{kill.victim} at {kill.moment}" for kill in sweep.kills)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    head = f"seed {seed}, mode {mode}, {asha}: {len(sweep.kills)} kills ({kinds})"
    verdict = f"{len(violations)} violations, see {home}" if violations else "OK"
    print(f"{head}, {time.monotonic() - started:.0f} s: {verdict}", flush=True)
    for violation in violations:
        print(f"  {violation}", flush=True)
    if not violations:
        shutil.rmtree(home, ignore_errors=True)
    return violations


def _audit(sweep: TorturedSweep) -> list[str]:
    try:
        return list(Audit(sweep).violations())
    except Exception as error:  # too little is left to check
        return [f"the sweep cannot be checked: {type(error).__name__}: {error}"]
