"""Where a sweep leaves its results: a new folder, here or at a URL."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pyarrow import fs

from tune_jobs.engine.settings import SettingsError

__all__ = ["downloaded", "is_url", "new_folder", "storage_uri"]


def is_url(path: str) -> bool:
    return "://" in path


def storage_uri(storage_path: str) -> str:
    """The path as Ray takes it: a URL as it is, a folder in full."""
    if is_url(storage_path):
        return storage_path.rstrip("/")
    return str(Path(storage_path).expanduser().resolve())


@contextmanager
def new_folder(storage_path: str, name: str) -> Iterator[Path]:
    """Make the sweep's own folder; where results go to a URL, one that is copied there at the end.

    Where what is done inside fails before anything is written, the folder is taken away again.

    Raises:
        SettingsError: The name is taken, or the path cannot be written.
    """
    if is_url(storage_path):
        yield from _new_remote_folder(storage_path, name)
    else:
        yield from _new_local_folder(storage_path, name)


@contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """A folder that holds a copy of the file at the URL, for as long as the context lasts.

    Raises:
        FileNotFoundError: There is no such file.
    """
    filesystem, path = fs.FileSystem.from_uri(url)
    with tempfile.TemporaryDirectory() as folder:
        with filesystem.open_input_stream(path) as file:
            Path(folder, Path(path).name).write_bytes(file.readall())
        yield Path(folder)


def _new_local_folder(storage_path: str, name: str) -> Iterator[Path]:
    folder = Path(storage_uri(storage_path), name)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError:
        if folder.exists():
            _refuse_name(name, folder)
        _refuse_path(storage_path, "a file is in the way")
    except OSError as error:
        _remove_empty(created)
        _refuse_path(storage_path, error.strerror)
    try:
        yield folder
    finally:
        _remove_empty(created)


def _new_remote_folder(storage_path: str, name: str) -> Iterator[Path]:
    url = f"{storage_uri(storage_path)}/{name}"
    try:
        filesystem, path = fs.FileSystem.from_uri(url)
        if filesystem.get_file_info(path).type != fs.FileType.NotFound:
            _refuse_name(name, url)
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/.probe"):
            pass
        filesystem.delete_file(f"{path}/.probe")
    except (OSError, ValueError) as error:
        _refuse_path(url, str(error))
    local = Path(tempfile.mkdtemp())
    try:
        yield local
    finally:
        if any(local.iterdir()):
            _upload(local, filesystem, path, url)
        elif not filesystem.get_file_info(fs.FileSelector(path)):
            filesystem.delete_dir(path)
        shutil.rmtree(local)


def _upload(local: Path, filesystem: Any, path: str, url: str) -> None:
    try:
        fs.copy_files(str(local), path, destination_filesystem=filesystem)
    except OSError as error:
        raise OSError(f"the results could not be copied to {url}; they are in {local}.") from error


def _remove_empty(folders: list[Path]) -> None:
    """Innermost first; one that holds something stays, and so do those that hold it."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _refuse_name(name: str, folder: Any) -> NoReturn:
    raise SettingsError(f"name {name!r} is taken: {folder} is there; choose another --name.")


def _refuse_path(storage_path: str, reason: str | None) -> NoReturn:
    raise SettingsError(
        f"storage_path {storage_path} cannot be written ({reason}); "
        "choose another with --storage-path."
    )
