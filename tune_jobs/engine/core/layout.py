"""The names of all files in a sweep's folder.

sweep.json                  what the sweep was started with
study.log                   the record; an Optuna journal
sweep.lock                  held by the driver while it runs
trials.csv                  one row per trial
best.json  best.ckpt        the winner and its checkpoint
trial_0000/                 a trial's folder
    result.json             Ray's log: one line per result
    error.txt               Ray's log of the exception
    checkpoint_000000/      Ray's name of a checkpoint's folder
        checkpoint.ckpt     Lightning's checkpoint
"""

import re

__all__ = [
    "BEST_CHECKPOINT_FILE",
    "BEST_FILE",
    "CHECKPOINT_FILE",
    "CHECKPOINT_FOLDER",
    "ERROR_FILE",
    "LEFTOVERS",
    "LOCK_FILE",
    "MANIFEST_FILE",
    "PROBE_FILE",
    "RESULT_FILE",
    "STUDY_FILE",
    "TRIALS_FILE",
    "draft_name",
    "is_trial_folder",
    "trial_folder",
]

MANIFEST_FILE = "sweep.json"
STUDY_FILE = "study.log"
LOCK_FILE = "sweep.lock"
TRIALS_FILE = "trials.csv"
BEST_FILE = "best.json"
BEST_CHECKPOINT_FILE = "best.ckpt"
CHECKPOINT_FILE = "checkpoint.ckpt"

# Ray's names; ray.air.constants has the first two too.
RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
CHECKPOINT_FOLDER = re.compile(r"checkpoint_\d{6}")

PROBE_FILE = ".probe"  # written and deleted again, to try a URL

_TRIAL = "trial_"


def draft_name(name: str) -> str:
    """The name under which a file is written before it replaces the file of that name."""
    return f".{name}"


# What a driver leaves behind that dies before the first line of its record.
LEFTOVERS = {LOCK_FILE, PROBE_FILE, draft_name(MANIFEST_FILE)}


def trial_folder(number: int) -> str:
    """The name of a trial's folder."""
    return f"{_TRIAL}{number:04d}"


def is_trial_folder(name: str) -> bool:
    return name.startswith(_TRIAL)
