"""The checkpoints in a sweep's folder: which are there, and which can be read."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from tune_jobs.engine.core.errors import CheckpointError
from tune_jobs.engine.core.layout import CHECKPOINT_FILE, CHECKPOINT_FOLDER

__all__ = ["Shelf", "check_checkpoint"]


class Shelf:
    """The checkpoints that a sweep's folder held when the sweep was resumed.

    Args:
        filesystem: Where the sweep's folder is.
        path: Its path there.
    """

    def __init__(self, filesystem: Any, path: str) -> None:
        self.filesystem = filesystem
        self._found: dict[str, set[str]] = {}  # folder of a trial -> paths
        # One listing of all: at a URL, each listing costs a round trip.
        for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
            parent = PurePosixPath(info.path).parent
            is_ours = parent.parent == PurePosixPath(path)
            is_ours &= CHECKPOINT_FOLDER.fullmatch(info.base_name) is not None
            if info.type == fs.FileType.Directory and is_ours:
                self._found.setdefault(parent.name, set()).add(info.path)

    def of(self, folder: str, results: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
        """The checkpoints of a trial that are both recorded and there: epoch -> path, in order."""
        paths = {PurePosixPath(path).name: path for path in self._found.get(folder, ())}
        names = {epoch: result.get("checkpoint_dir_name") for epoch, result in results.items()}
        return {epoch: paths[name] for epoch, name in sorted(names.items()) if name in paths}

    def remove_others(self, folder: str, recorded: Iterable[str]) -> None:
        """Delete checkpoints that a worker wrote, but had not reported when it died."""
        for path in self._found.get(folder, set()) - set(recorded):
            self.filesystem.delete_dir(path)


def check_checkpoint(filesystem: Any, path: str) -> None:
    """Check that a checkpoint can be read; needs no torch.

    Args:
        filesystem: Where it is.
        path: The path of its folder there.

    Raises:
        CheckpointError: It is missing, or cut off.
    """
    file = f"{path}/{CHECKPOINT_FILE}"
    if _is_of_function(filesystem, path):
        return
    try:
        with filesystem.open_input_file(file) as stream:
            # torch writes a zip archive, whose index is at its end.
            is_whole = stream.size() > 0 and zipfile.is_zipfile(stream)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except ValueError:  # pyarrow's, where there is no room for an index
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{file} is damaged: it ends too early")


def _is_of_function(filesystem: Any, path: str) -> bool:
    """Whether it is a plain function's checkpoint, which holds files of the function's own."""
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = {info.base_name for info in infos}
    return bool(names) and CHECKPOINT_FILE not in names
