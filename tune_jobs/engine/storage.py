"""Where a sweep leaves its results: `new_folder`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tune_jobs.engine.settings import SettingsError

__all__ = ["new_folder", "storage_uri"]


def storage_uri(storage_path: str) -> str:
    """The path as Ray takes it: a URL as it is, a folder in full."""
    return storage_path if "://" in storage_path else str(Path(storage_path).expanduser().resolve())


@contextmanager
def new_folder(storage_path: str, name: str) -> Iterator[Path]:
    """Make the sweep's own folder; where results go to a URL, one that is copied there at the end.

    Where what is done inside fails before anything is written, the folder is taken away again.

    Raises:
        SettingsError: The name is taken, or the path cannot be written.
    """
    if "://" in storage_path:
        with tempfile.TemporaryDirectory() as local:
            yield from _uploaded(Path(local), f"{storage_path.rstrip('/')}/{name}")
        return
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


def _uploaded(local: Path, url: str) -> Iterator[Path]:
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(url)
        taken = filesystem.get_file_info(path).type != fs.FileType.NotFound
    except (OSError, ValueError) as error:
        _refuse_path(url, str(error))
    if taken:
        _refuse_name(url.rpartition("/")[2], url)
    try:
        yield local
    finally:
        if any(local.iterdir()):
            filesystem.create_dir(path)
            fs.copy_files(str(local), path, destination_filesystem=filesystem)


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
