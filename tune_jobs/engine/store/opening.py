"""A sweep opened for one driver, new or as it was left: `open_sweep`."""

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import CheckpointError
from tune_jobs.engine.core.settings import Settings, SettingsError
from tune_jobs.engine.report.results import BEST_FILE
from tune_jobs.engine.search.study_search import SearchSpace
from tune_jobs.engine.store.checkpoints import Shelf, check_checkpoint
from tune_jobs.engine.store.folder import SweepFolder, new_folder, old_folder, working_files
from tune_jobs.engine.store.lock import LOCK_FILE, SweepLock
from tune_jobs.engine.store.manifest import MANIFEST_FILE, Manifest
from tune_jobs.engine.store.record import Record, folder_name, results_of
from tune_jobs.engine.store.study import STUDY_FILE
from tune_jobs.engine.store.warm_start import (
    enqueue,
    read_configs,
    read_others,
    retry_failed,
)

__all__ = ["OpenSweep", "open_sweep"]

NUM_READERS = 16


@dataclass(frozen=True)
class OpenSweep:
    """A sweep whose folder is held, checked as far as it can be before anything is spent.

    Attributes:
        settings: What the user had set; the data set is the recorded one.
        goal: What is optimised.
        folder: Where the results go.
        lost: Set once another driver has taken the sweep over.
        manifest: What it is started or gone on with.
        earlier: The record as an earlier driver left it; None: there is none.
    """

    settings: Settings
    goal: Goal
    folder: SweepFolder
    lost: threading.Event
    manifest: Manifest
    earlier: Record | None

    def begin(self, data: str | None) -> Record:
        """Make the record, or go on with the earlier one.

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
        elif data != self.manifest.data:
            raise SettingsError(
                f"the sweep cannot be resumed with other data: its data is {self.manifest.data}, "
                f"not {data}."
            )
        else:
            self.manifest.write(self.folder.local)  # with what is asked for now: more trials, say
        # Each once in its life, however often: the driver may have died in the midst of it.
        enqueue(record, self.manifest.configs)
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
    resume, path = settings.resume, settings.storage_path
    files = (STUDY_FILE, MANIFEST_FILE, BEST_FILE) if resume else ()
    found = old_folder(path, name) if resume else new_folder(path, name)
    with (
        found as folder,
        SweepLock(folder.filesystem, f"{folder.path}/{LOCK_FILE}", lost.set),
        working_files(folder, files, lost),
    ):
        if resume:
            yield _reopen(settings, goal, space, folder, lost)
            return
        manifest = Manifest.of(settings, goal, space, *_read_seeds(settings, goal, space))
        # At once: whatever happens from here on, the sweep can be gone on with as it was asked for.
        manifest.write(folder.local)
        folder.publish()
        try:
            yield OpenSweep(settings, goal, folder, lost, manifest, None)
        except SettingsError:
            if not (folder.local / STUDY_FILE).exists():
                folder.unpublish(MANIFEST_FILE)
            raise


def _reopen(
    settings: Settings,
    goal: Goal,
    space: SearchSpace,
    folder: SweepFolder,
    lost: threading.Event,
) -> OpenSweep:
    manifest = _read_manifest(folder)
    configs, _ = _read_seeds(dataclasses.replace(settings, warm_start=None), goal, space)
    asked = Manifest.of(settings, goal, space, manifest.configs + configs, manifest.others)
    manifest.check(asked)
    now = dataclasses.replace(asked, data=manifest.data)
    if not _has_record(folder):
        return OpenSweep(settings, goal, folder, lost, now, None)
    record = Record.open(folder.local, lost)
    _check_checkpoints(record, folder)
    return OpenSweep(_with_data(settings, manifest.data), goal, folder, lost, now, record)


def _read_seeds(
    settings: Settings, goal: Goal, space: SearchSpace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Configs to try first, and trials of another sweep to learn from."""
    configs = read_configs(settings.enqueue, space) if settings.enqueue else []
    other = settings.warm_start
    return configs, read_others(other, goal, space, settings.storage_path) if other else []


def _read_manifest(folder: SweepFolder) -> Manifest:
    try:
        return Manifest.read(folder.local)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{folder.uri} has no {MANIFEST_FILE}: it is no sweep, one that another version of "
            "tune_jobs made, or one that ended before it had begun; nothing has been changed. "
            "Start a new sweep, with another --name unless the folder is empty."
        ) from error


def _has_record(folder: SweepFolder) -> bool:
    """Whether there is a record, or the driver died before its first line."""
    file = folder.local / STUDY_FILE
    if file.exists():
        with file.open("rb") as stream:
            if stream.readline().endswith(b"\n"):
                return True
    infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path))
    return any(info.base_name.startswith("trial_") for info in infos)  # and it is gone


def _with_data(settings: Settings, data: str | None) -> Settings:
    """The settings with the recorded data set, where they leave it open."""
    if data is None or getattr(settings, "data", None) != "auto":
        return settings
    return dataclasses.replace(settings, data=data)  # type: ignore[call-arg]


def _check_checkpoints(record: Record, folder: SweepFolder) -> None:
    """See that unfinished trials can go on.

    Side by side, since promotion leaves hundreds of them, and at a URL each costs round trips.
    """
    unfinished = record.running()
    if not unfinished:
        return
    shelf = Shelf(folder.filesystem, folder.path)
    last = {
        trial.number: kept[max(kept)]
        for trial in unfinished
        if (kept := shelf.of(folder_name(trial.number), results_of(trial)))
    }
    with ThreadPoolExecutor(NUM_READERS) as pool:
        checks = [pool.submit(check_checkpoint, folder.filesystem, path) for path in last.values()]
    for (number, path), check in zip(last.items(), checks, strict=True):
        try:
            check.result()
        except CheckpointError as error:
            raise SettingsError(
                f"trial {number} cannot go on: {error}; nothing has been changed. Put back a copy "
                f"of it, or delete {path}: the trial then goes on from the checkpoint "
                "before, or anew."
            ) from error
