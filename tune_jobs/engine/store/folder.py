"""The folder of a sweep, on this machine or at a URL."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

from pyarrow import fs

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.layout import (
    LEFTOVERS,
    PROBE_FILE,
    draft_name,
    is_drivers,
    is_trial_folder,
)

__all__ = [
    "SweepFolder",
    "downloaded",
    "is_url",
    "new_folder",
    "old_folder",
    "storage_uri",
    "without_password",
    "working_files",
    "write_whole",
]


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep.

    Attributes:
        uri: The folder or URL in full.
        filesystem: Where it is.
        path: Its path there.
        local: Where the driver writes its own files: the same folder, or, for a URL, one on the
            driver's disk, from which they are copied.
    """

    uri: str
    filesystem: Any
    path: str
    local: Path

    @property
    def is_remote(self) -> bool:
        return is_url(self.uri)

    def publish(self) -> None:
        """Copy the driver's files to the URL, if the folder is at one."""
        if self.is_remote:
            fs.copy_files(str(self.local), self.path, destination_filesystem=self.filesystem)

    def clear(self) -> None:
        """Delete what the driver of a sweep wrote that never began, here and at the URL.

        Other files stay, and so do the folders that hold them.

        Raises:
            OSError: A file cannot be deleted.
        """
        _clear(fs.LocalFileSystem(), str(self.local))
        if self.is_remote:
            _clear(self.filesystem, self.path)


def write_whole(file: Path, content: bytes) -> None:
    """Replace a file atomically.

    If the process dies or the disk is full, the old contents remain.

    Raises:
        OSError: It cannot be written.
    """
    draft = file.with_name(draft_name(file.name))
    try:
        draft.write_bytes(content)
        draft.replace(file)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise


def is_url(path: str) -> bool:
    return "://" in path


def without_password(url: str) -> str:
    """The URL with three stars in place of a password; any other text unchanged."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)


def storage_uri(storage_path: str) -> str:
    """The path as Ray takes it: a URL unchanged, a folder as an absolute path."""
    if is_url(storage_path):
        return storage_path.rstrip("/")
    return str(Path(storage_path).expanduser().resolve())


@contextmanager
def new_folder(storage_path: str, name: str) -> Iterator[SweepFolder]:
    """Make the sweep's own folder.

    If the body fails before it has written anything, the folder is deleted again.

    Raises:
        SettingsError: The name is taken, or the path cannot be written.
    """
    if is_url(storage_path):
        yield from _new_remote_folder(storage_path, name)
    else:
        yield from _new_local_folder(storage_path, name)


@contextmanager
def old_folder(storage_path: str, name: str) -> Iterator[SweepFolder]:
    """Find the folder of a sweep to resume.

    Raises:
        SettingsError: There is no such sweep, or it cannot be read.
    """
    uri = f"{storage_uri(storage_path)}/{name}"
    filesystem, path = _filesystem_of(uri)
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        raise SettingsError(
            f"there is no sweep {name!r} in {storage_path} to resume; "
            "start it without --resume, or give its place with --storage-path."
        )
    yield SweepFolder(uri, filesystem, path, _live_folder(uri) if is_url(uri) else Path(path))


@contextmanager
def working_files(folder: SweepFolder, names: Sequence[str], lost: Event) -> Iterator[None]:
    """The files that a driver works on, in `folder.local`. The caller must hold the sweep's lock.

    Files at a URL are fetched, and copied back at the end. If the sweep is refused or lost, both
    copies stay unchanged. If it never began, there is nothing to copy. If a driver that died on
    this machine had appended to a file and not yet copied it, the local copy counts.

    Args:
        folder: The sweep's folder.
        names: The files of an earlier driver; none: it is a new sweep.
        lost: Set once another driver has taken over the sweep.
    """
    if not folder.is_remote:
        yield
        return
    if not names:
        shutil.rmtree(folder.local, ignore_errors=True)  # of a sweep that no longer exists
    folder.local.mkdir(parents=True, exist_ok=True)
    for name in names:
        _fetch(folder, name)
    is_refused = False
    try:
        yield
    except SettingsError:
        is_refused = True
        raise
    finally:
        never_began = not any(folder.local.iterdir())
        if never_began or (is_refused and not names):
            shutil.rmtree(folder.local)
        elif not is_refused and not lost.is_set():
            _upload(folder)
            shutil.rmtree(folder.local)


@contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """A temporary folder that holds a copy of the file at the URL.

    Raises:
        FileNotFoundError: There is no such file.
    """
    filesystem, path = fs.FileSystem.from_uri(url)
    with tempfile.TemporaryDirectory() as folder:
        with filesystem.open_input_stream(path) as file:
            Path(folder, Path(path).name).write_bytes(file.readall())
        yield Path(folder)


def _new_local_folder(storage_path: str, name: str) -> Iterator[SweepFolder]:
    folder = Path(storage_uri(storage_path), name)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError:
        _refuse_path(storage_path, "a file is in the way")
    except OSError as error:
        _remove_empty(created)
        _refuse_path(storage_path, error.strerror)
    if folder not in created:
        _check_free(name, folder, (path.name for path in folder.iterdir()))
    try:
        yield SweepFolder(str(folder), fs.LocalFileSystem(), str(folder), folder)
    finally:
        _remove_empty(created)


def _new_remote_folder(storage_path: str, name: str) -> Iterator[SweepFolder]:
    url = f"{storage_uri(storage_path)}/{name}"
    filesystem, path = _filesystem_of(url)
    try:
        found = filesystem.get_file_info(path).type
        if found == fs.FileType.File:
            _refuse_path(storage_path, "a file is in the way")
        there = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        _check_free(name, url, (info.base_name for info in there))
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/{PROBE_FILE}"):
            pass
        filesystem.delete_file(f"{path}/{PROBE_FILE}")
    except OSError as error:
        _refuse_path(url, str(error))
    try:
        yield SweepFolder(url, filesystem, path, _live_folder(url))
    finally:
        is_empty = not filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if is_empty and found == fs.FileType.NotFound:
            filesystem.delete_dir(path)


def _check_free(name: str, folder: Any, there: Iterable[str]) -> None:
    """Check that the folder holds at most what a driver leaves that died as it began."""
    if not set(there) <= LEFTOVERS:
        raise SettingsError(
            f"sweep {name!r} already exists: {folder}; choose another --name, "
            "or add --resume to continue it."
        )


def _clear(filesystem: Any, path: str) -> None:
    for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if info.type == fs.FileType.File and is_drivers(info.base_name):
            filesystem.delete_file(info.path)
        elif info.type == fs.FileType.Directory and is_trial_folder(info.base_name):
            inside = filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
            if all(item.type == fs.FileType.Directory for item in inside):
                filesystem.delete_dir(info.path)


def _upload(folder: SweepFolder) -> None:
    try:
        folder.publish()
    except OSError as error:
        raise OSError(
            f"the results could not be copied to {folder.uri}; they are in {folder.local}, "
            "and --resume on this machine continues from there."
        ) from error


def _live_folder(uri: str) -> Path:
    """Where drivers on this machine keep their files of a sweep at a URL."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return Path(state, "tune_jobs", f"{uri.rpartition('/')[-1]}-{digest}")


def _fetch(folder: SweepFolder, name: str) -> None:
    remote, local = f"{folder.path}/{name}", folder.local / name
    here = local.read_bytes() if local.exists() else b""
    try:
        with folder.filesystem.open_input_stream(remote) as stream:
            there = stream.readall()
    except FileNotFoundError:
        return
    if here.startswith(there):
        return  # a driver died here after its last copy to the URL
    if not there.startswith(here):
        # Another machine resumed the sweep: its file counts, and this one is kept aside.
        local.replace(local.with_name(f"{name}.{hashlib.sha256(here).hexdigest()[:8]}"))
    local.write_bytes(there)


def _filesystem_of(uri: str) -> tuple[Any, str]:
    if not is_url(uri):
        return fs.LocalFileSystem(), uri
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        _refuse_path(uri, str(error))
    return filesystem, path


def _remove_empty(folders: list[Path]) -> None:
    """Delete empty folders, innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _refuse_path(storage_path: str, reason: str | None) -> NoReturn:
    raise SettingsError(
        f"storage_path {storage_path} cannot be written ({reason}); "
        "choose another with --storage-path."
    )
