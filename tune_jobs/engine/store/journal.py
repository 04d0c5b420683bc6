"""The file of the record, an Optuna journal, as the death of a driver leaves it: `repair`."""

import json
from pathlib import Path
from typing import NoReturn

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.layout import STUDY_FILE

__all__ = ["refuse", "remove_locks", "repair"]


def repair(file: Path) -> None:
    """Remove what the death of the last driver left behind.

    That is a last line that was not written to its end, on which nothing has acted; and Optuna's
    lock in any of its stages, which would be waited for.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        refuse(file, error.strerror or str(error))
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            refuse(file, f"line {number} is damaged")
    if not whole:
        refuse(file, "it is empty")
    try:
        if whole < len(content):
            with file.open("r+b") as stream:
                stream.truncate(whole)
        remove_locks(file.parent)
    except OSError as error:
        refuse(file, error.strerror or str(error))


def remove_locks(folder: Path) -> None:
    """Remove Optuna's locks of a driver that has exited; one may be half released."""
    for lock in folder.glob(f"{STUDY_FILE}.lock*"):
        lock.unlink()


def refuse(file: Path, reason: str) -> NoReturn:
    """Refuse to use a record."""
    raise SettingsError(
        f"{file}, the record of the sweep, cannot be used: {reason}; nothing was changed. "
        "Restore a copy of it, or start a new sweep with another --name."
    )
