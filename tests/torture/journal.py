"""Reads the record of a sweep from outside, while it grows and in the end."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from tune_jobs.engine import load_study

JOURNAL = "study.log"
SET_TRIAL_SYSTEM_ATTR = 9  # Optuna's code of this operation


class Entries:
    """The results and promotions in a journal, in their order; some results come twice.

    Iterating yields the trial, the name of the attribute, and its value.
    """

    def __init__(self, journal: Path) -> None:
        self._lines = journal.read_text().splitlines()

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        for line in self._lines:
            entry = json.loads(line)
            for name, value in entry.get("system_attr", {}).items():
                is_ours = name.startswith(("tune_jobs:result:", "tune_jobs:promoted"))
                if is_ours and entry["op_code"] == SET_TRIAL_SYSTEM_ATTR:
                    yield entry["trial_id"], name, value

    def results(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The results alone, with their trials."""
        return ((trial, value) for trial, name, value in self if "result" in name)


def load_trials(folder: Path) -> list[FrozenTrial]:
    """The trials in a copy of the folder's journal; none if it has no whole line."""
    if b"\n" not in read_bytes(folder / JOURNAL):
        return []
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / JOURNAL, copy)
        return load_study(copy).get_trials()


def read_bytes(file: Path) -> bytes:
    """The content of a file; empty if there is none."""
    return file.read_bytes() if file.exists() else b""
