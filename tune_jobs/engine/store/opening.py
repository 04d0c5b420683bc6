"""A sweep opened for one driver, new or to be resumed: `open_sweep`."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyarrow import fs

from tune_jobs.engine.core.errors import CheckpointError, SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import (
    BEST_FILE,
    LOCK_FILE,
    MANIFEST_FILE,
    STUDY_FILE,
    is_trial_folder,
    trial_folder,
)
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.space import SearchSpace
from tune_jobs.engine.store.checkpoints import Shelf, check_checkpoint
from tune_jobs.engine.store.entries import reports_of
from tune_jobs.engine.store.folder import SweepFolder, new_folder, old_folder, working_files
from tune_jobs.engine.store.foreign import Source, name_of
from tune_jobs.engine.store.lock import SweepLock
from tune_jobs.engine.store.manifest import FORMAT, Manifest
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.store.replay import check_asked
from tune_jobs.engine.store.warm_start import (
    check_configs,
    enqueue,
    read_configs,
    read_others,
    retry_failed,
)

__all__ = ["OpenSweep", "Request", "open_sweep"]

NUM_READERS = 16


class Request(NamedTuple):
    """What a user asks for.

    Attributes:
        settings: What the user set.
        goal: What is optimized.
        space: What is searched.
        scheduler: The class of the scheduler that takes ASHA's place; None: none does.
        enqueue: Configs to try first, after those of the settings' file.
        warm_start: A study to learn from; None: the settings have it, or there is none.
    """

    settings: Settings
    goal: Goal
    space: SearchSpace
    scheduler: str | None = None
    enqueue: Sequence[Mapping[str, Any]] | None = None
    warm_start: Source | None = None

    @property
    def other_study(self) -> Source | None:
        """The study to learn from.

        Raises:
            SettingsError: It is given twice.
        """
        known, given = self.settings.warm_start, self.warm_start
        if known is not None and given is not None:
            raise SettingsError(
                f"warm_start is given twice: {name_of(known)} in the settings, and "
                f"{name_of(given)} to run_sweep; give one."
            )
        return given if known is None else known


@dataclass
class OpenSweep:
    """A sweep that this driver has locked, and that passed all checks that cost nothing.

    Attributes:
        request: What the user asks for; on resume, with the settings that the data has settled.
        folder: Where the results go.
        lost: Set once another driver has taken over the sweep.
        manifest: What the sweep is started or resumed with.
        record: The record; None: it is not begun yet.
        opened: When this driver opened it, in the seconds of `time.monotonic()`.
    """

    request: Request
    folder: SweepFolder
    lost: threading.Event
    manifest: Manifest
    record: Record | None
    opened: float

    @property
    def settings(self) -> Settings:
        return self.request.settings

    @property
    def goal(self) -> Goal:
        return self.request.goal

    @property
    def space(self) -> SearchSpace:
        return self.request.space

    @property
    def name(self) -> str:
        return self.folder.path.rpartition("/")[-1]

    @property
    def is_kept(self) -> bool:
        """Whether the sweep can be resumed if it ends now: one that was new and has not started a
        trial leaves nothing."""
        if self.settings.resume:
            return True
        try:
            return self.record is not None and bool(self.record.started())
        except OSError:  # what cannot be read is not deleted
            return True

    def begin(self, facts: dict[str, Any]) -> Record:
        """Create the record, or continue the earlier one.

        Args:
            facts: What the job wants recorded of its data.

        Raises:
            SettingsError: The sweep is resumed, and its data had other facts.
        """
        record = self.record
        is_unknown = self.manifest.format == 1 and not facts
        if record is not None and facts != self.manifest.facts and not is_unknown:
            raise SettingsError(
                "the sweep cannot be resumed with other data: load_data recorded "
                f"{_listed(self.manifest.facts)} before, and {_listed(facts)} now. Load the same "
                "data, or start a new sweep with another --name."
            )
        # Also on resume: the request may have changed, for example to more trials.
        dataclasses.replace(self.manifest, facts=facts, format=FORMAT).write(self.folder.local)
        if record is None:
            record = Record.create(self.folder.local, self.name, self.goal, self.lost)
            self.record = record
        # Each config once in a sweep's life: the driver may have died between two of them.
        enqueue(record, self.manifest.configs)
        if self.settings.retry_failed:
            retry_failed(record)
        self.folder.publish()
        return record


@contextmanager
def open_sweep(
    request: Request, name: str, notify: Callable[[str], None] = lambda text: None
) -> Iterator[OpenSweep]:
    """Open a sweep for this driver alone.

    If the body fails before a trial of a new sweep has started, whatever the error, all that was
    written is deleted again: the name is free.

    Args:
        request: What the user asks for.
        name: The name of the sweep.
        notify: Called with a line that tells what happened.

    Raises:
        SettingsError: The request cannot be satisfied; nothing was changed.
    """
    lost = threading.Event()
    opened = time.monotonic()
    settings = request.settings
    files = (STUDY_FILE, MANIFEST_FILE, BEST_FILE) if settings.resume else ()
    find = old_folder if settings.resume else new_folder
    with (
        find(settings.storage_path, name) as folder,
        SweepLock(folder.filesystem, f"{folder.path}/{LOCK_FILE}", lost.set, notify),
        working_files(folder, files, lost),
    ):
        if settings.resume:
            yield _reopen(request, folder, lost, opened)
            return
        sweep = OpenSweep(request, folder, lost, _new_manifest(request, notify), None, opened)
        with _cleared_unless_begun(sweep):
            # At once: after a sudden death, the sweep can be resumed as requested.
            sweep.manifest.write(folder.local)
            folder.publish()
            yield sweep


@contextmanager
def _cleared_unless_begun(sweep: OpenSweep) -> Iterator[None]:
    """Leave the name of a new sweep free if it fails before its first trial."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the error that ended the sweep is the one to be shown
            # The folder of a lost sweep belongs to another driver.
            if not sweep.lost.is_set() and not sweep.is_kept:
                sweep.folder.clear()
        raise


def _new_manifest(request: Request, notify: Callable[[str], None]) -> Manifest:
    settings, goal, space = request.settings, request.goal, request.space
    others = []
    if (source := request.other_study) is not None:
        others = read_others(source, goal, space, settings.storage_path, notify)
    return dataclasses.replace(_manifest_of(request), configs=_configs_of(request), others=others)


def _manifest_of(request: Request) -> Manifest:
    """What is asked for, without the configs and trials that it begins with."""
    manifest = Manifest.of(request.settings, request.goal, request.space, request.scheduler)
    given = request.other_study if request.warm_start is not None else None
    return dataclasses.replace(manifest, warm_start=None if given is None else name_of(given))


def _reopen(
    request: Request, folder: SweepFolder, lost: threading.Event, opened: float
) -> OpenSweep:
    settings = request.settings
    before = _read_manifest(folder)
    now = dataclasses.replace(
        _manifest_of(request),
        facts=before.facts,
        configs=before.configs + [c for c in _configs_of(request) if c not in before.configs],
        others=before.others,
        format=before.format,
    )
    before.check(now, settings)
    now = before.keep_fixed(now, settings)
    record = None
    if _has_record(folder):
        record = Record.open(folder.local, lost)
        if request.space.define is not None:
            check_asked(request.space.define, record.started(), settings.seed)
        _check_checkpoints(record, folder)
    settled = request._replace(settings=before.settle(settings))
    return OpenSweep(settled, folder, lost, now, record, opened)


def _configs_of(request: Request) -> list[dict[str, Any]]:
    file, space = request.settings.enqueue, request.space
    of_file = read_configs(file, space) if file else []
    given = () if request.enqueue is None else request.enqueue
    return of_file + check_configs(given, space)


def _read_manifest(folder: SweepFolder) -> Manifest:
    try:
        return Manifest.read(folder.local)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{folder.uri} has no {MANIFEST_FILE}: it is no sweep, or one of an older version, and "
            "cannot be resumed; nothing was changed. Start a new sweep, with another --name unless "
            "the folder is empty."
        ) from error


def _has_record(folder: SweepFolder) -> bool:
    """Whether there is a record, or the driver died before its first line."""
    file = folder.local / STUDY_FILE
    if file.exists():
        with file.open("rb") as stream:
            if stream.readline().endswith(b"\n"):
                return True
    infos = folder.filesystem.get_file_info(fs.FileSelector(folder.path))
    return any(is_trial_folder(info.base_name) for info in infos)  # the file was deleted


def _check_checkpoints(record: Record, folder: SweepFolder) -> None:
    """Check that unfinished trials can be resumed.

    In parallel, since promotion leaves hundreds of them, and at a URL each costs round trips.
    """
    unfinished = record.running()
    if not unfinished:
        return
    shelf = Shelf(folder.filesystem, folder.path)
    last = {
        trial.number: kept[max(kept)]
        for trial in unfinished
        if (kept := shelf.of(trial_folder(trial.number), reports_of(trial)))
    }
    with ThreadPoolExecutor(NUM_READERS) as pool:
        checks = [pool.submit(check_checkpoint, folder.filesystem, path) for path in last.values()]
    for (number, path), check in zip(last.items(), checks, strict=True):
        try:
            check.result()
        except CheckpointError as error:
            raise SettingsError(
                f"trial {number} cannot be resumed: {error}; nothing was changed. Restore a copy "
                f"of it, or delete {path}: the trial then resumes from the checkpoint before, "
                "or starts again."
            ) from error


def _listed(facts: dict[str, Any] | None) -> str:
    return ", ".join(f"{name}={fact!r}" for name, fact in (facts or {}).items()) or "nothing"
