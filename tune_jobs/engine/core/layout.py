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
    "is_drivers",
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

# What Ray Tune writes beside the trials' folders.
_TUNES_OWN = re.compile(
    r"tuner\.pkl|\.validate_storage_marker|(experiment_state|search_gen_state)-.*\.json"
    r"|(searcher-state|callback-states)-.*\.pkl"
)


def is_drivers(name: str) -> bool:
    """Whether a file of this name in a sweep's folder was written by the sweep's driver.

    The lock is not: it has its own owner, which deletes it.
    """
    own = {STUDY_FILE, MANIFEST_FILE, TRIALS_FILE, BEST_FILE, BEST_CHECKPOINT_FILE}
    is_own = name in own or name in map(draft_name, own)
    return is_own or name.startswith(f"{STUDY_FILE}.lock") or bool(_TUNES_OWN.fullmatch(name))


def trial_folder(number: int) -> str:
    """The name of a trial's folder."""
    return f"{_TRIAL}{number:04d}"


def is_trial_folder(name: str) -> bool:
    return name.startswith(_TRIAL)
