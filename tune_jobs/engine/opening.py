"""A sweep opened for one driver, new or as it was left: `open_sweep`."""

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from pyarrow import fs

from tune_jobs.engine.checkpoints import Shelf, check_checkpoint
from tune_jobs.engine.goal import Goal
from tune_jobs.engine.lock import LOCK_FILE, SweepLock
from tune_jobs.engine.manifest import MANIFEST_FILE, Manifest
from tune_jobs.engine.reasons import CheckpointError
from tune_jobs.engine.record import Record, folder_name, results_of
from tune_jobs.engine.results import BEST_FILE
from tune_jobs.engine.search import SearchSpace
from tune_jobs.engine.seeding import (
    enqueue,
    keep_others,
    read_configs,
    read_others,
    retry_failed,
)
from tune_jobs.engine.settings import Settings, SettingsError
from tune_jobs.engine.storage import SweepFolder, new_folder, old_folder
from tune_jobs.engine.study import STUDY_FILE

__all__ = ["OpenSweep", "open_sweep"]


@dataclass(frozen=True)
class OpenSweep:
    """A sweep whose folder is held, checked as far as it can be before anything is spent.

    Attributes:
        settings: What the user had set; the data set is the recorded one.
        goal: What is optimised.
        folder: Where the results go.
        lost: Set once another driver has taken the sweep over.
        manifest: What it was, or is, started with.
        earlier: The record as an earlier driver left it; None: there is none.
        configs: To be tried first.
        others: Trials of another sweep to learn from.
    """

    settings: Settings
    goal: Goal
    folder: SweepFolder
    lost: threading.Event
    manifest: Manifest
    earlier: Record | None
    configs: list[dict[str, Any]]
    others: list[dict[str, Any]]

    def begin(self, data: str | None) -> Record:
        """Make the record, or go on with the earlier one; from here on something is written.

        Args:
            data: The name of the data set, if it has one.

        Raises:
            SettingsError: The sweep is gone on with, and had other data.
        """
        record = self.earlier
        if record is None:
            dataclasses.replace(self.manifest, data=data).write(self.folder.local)
            name = self.folder.path.rpartition("/")[-1]
            record = Record.create(self.folder.local, name, self.goal, self.lost)
            keep_others(record, self.others)
        elif data != self.manifest.data:
            raise SettingsError(
                f"the sweep cannot be resumed with other data: its data is {self.manifest.data}, "
                f"not {data}."
            )
        enqueue(record, self.configs)
        if self.settings.retry_failed:
            retry_failed(record)
        self.folder.publish()
        return record


@contextmanager
def open_sweep(
    settings: Settings, name: str, goal: Goal, space: SearchSpace
) -> Iterator[OpenSweep]:
    """Open a sweep for this driver alone.

    Raises:
        SettingsError: It cannot be done as asked for; nothing has been changed.
    """
    lost = threading.Event()
    files = (STUDY_FILE, MANIFEST_FILE, BEST_FILE)
    resume, path = settings.resume, settings.storage_path
    opened = old_folder(path, name, *files) if resume else new_folder(path, name)
    with opened as folder, SweepLock(folder.filesystem, f"{folder.path}/{LOCK_FILE}", lost.set):
        manifest, earlier = Manifest.of(settings, goal, space), None
        if resume and _was_begun(folder):
            asked, manifest = manifest, Manifest.read(folder.local)
            manifest.check(asked)
            earlier = Record.open(folder.local, lost)
            _check_checkpoints(earlier, folder)
            settings = _with_data(settings, manifest.data)
        configs = read_configs(settings.enqueue, space) if settings.enqueue else []
        learns = settings.warm_start if earlier is None else None  # what was learnt is recorded
        others = read_others(learns, goal, space, path) if learns else []
        yield OpenSweep(settings, goal, folder, lost, manifest, earlier, configs, others)


def _was_begun(folder: SweepFolder) -> bool:
    """Whether there is anything to go on with, or the driver died before it had begun."""
    there = {
        info.base_name for info in folder.filesystem.get_file_info(fs.FileSelector(folder.path))
    }
    there |= {path.name for path in folder.local.iterdir()}
    if MANIFEST_FILE in there:
        file = folder.local / STUDY_FILE
        has_record = file.exists() and b"\n" in file.read_bytes()
        return has_record or any(name.startswith("trial_") for name in there)
    if there & {STUDY_FILE, BEST_FILE}:
        raise SettingsError(
            f"{folder.uri} has no {MANIFEST_FILE}: another version of tune_jobs made it, which "
            "this one cannot go on with; nothing has been changed. Start a new sweep with "
            "another --name."
        )
    return False


def _with_data(settings: Settings, data: str | None) -> Settings:
    """The settings with the recorded data set, where they leave it open."""
    if data is None or getattr(settings, "data", None) != "auto":
        return settings
    return dataclasses.replace(settings, data=data)  # type: ignore[call-arg]


def _check_checkpoints(record: Record, folder: SweepFolder) -> None:
    """See that unfinished trials can go on."""
    unfinished = [trial for trial in record.trials() if trial.state == TrialState.RUNNING]
    if not unfinished:
        return
    shelf = Shelf(folder.filesystem, folder.path)
    for trial in unfinished:
        kept = shelf.of(folder_name(trial.number), results_of(trial))
        if not kept:
            continue
        last = kept[max(kept)]
        try:
            check_checkpoint(folder.filesystem, last)
        except CheckpointError as error:
            raise SettingsError(
                f"trial {trial.number} cannot go on: {error}; nothing has been changed. Put back a "
                f"copy of it, or delete {last}: the trial then goes on from the checkpoint before, "
                "or anew."
            ) from error
