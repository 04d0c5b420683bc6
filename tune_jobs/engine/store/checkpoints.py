"""The checkpoints of trials: which are there, which can be read, which stay."""

import heapq
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pyarrow import fs
from ray.tune import Callback

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import CheckpointError, Endings, Reason
from tune_jobs.engine.store.record import is_failed

__all__ = [
    "CHECKPOINT_FILE",
    "KeepBestCheckpoints",
    "Shelf",
    "check_checkpoint",
]

CHECKPOINT_FILE = "checkpoint.ckpt"
FOLDER_NAME = re.compile(r"checkpoint_\d{6}")  # Ray's

FAILED, STOPPED, COMPLETE = range(3)


class Shelf:
    """The checkpoints that a sweep's folder holds, as they were found when it was gone on with.

    Args:
        filesystem: Where the sweep's folder is.
        path: Its path there.
    """

    def __init__(self, filesystem: Any, path: str) -> None:
        self.filesystem = filesystem
        self._found: dict[str, set[str]] = {}  # folder of a trial -> paths
        # One listing of all: at a URL each costs a round trip.
        for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
            parent = PurePosixPath(info.path).parent
            is_ours = parent.parent == PurePosixPath(path) and FOLDER_NAME.fullmatch(info.base_name)
            if info.type == fs.FileType.Directory and is_ours:
                self._found.setdefault(parent.name, set()).add(info.path)

    def of(self, folder: str, results: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
        """The checkpoints of a trial that are recorded and there, epoch -> path, in order."""
        paths = {PurePosixPath(path).name: path for path in self._found.get(folder, ())}
        names = {epoch: result.get("checkpoint_dir_name") for epoch, result in results.items()}
        return {epoch: paths[name] for epoch, name in sorted(names.items()) if name in paths}

    def remove_others(self, folder: str, recorded: Iterable[str]) -> None:
        """Delete what a worker was writing, or had written and not yet told, as it died."""
        for path in self._found.get(folder, set()) - set(recorded):
            self.filesystem.delete_dir(path)


def check_checkpoint(filesystem: Any, path: str) -> None:
    """See that a checkpoint can be read, without torch.

    Args:
        filesystem: Where it is.
        path: The path of its folder there.

    Raises:
        CheckpointError: It is missing, or was cut off.
    """
    file = f"{path}/{CHECKPOINT_FILE}"
    if _is_of_a_function(filesystem, path):
        return
    try:
        with filesystem.open_input_file(file) as stream:
            # A file of torch's is a zip archive, whose index is at its end.
            is_whole = stream.size() > 0 and zipfile.is_zipfile(stream)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except ValueError:  # pyarrow's, where there is no room for an index
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{file} is damaged: it ends too early")


def _is_of_a_function(filesystem: Any, path: str) -> bool:
    """A plain function's checkpoint holds files of its own."""
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = {info.base_name for info in infos}
    return bool(names) and CHECKPOINT_FILE not in names


class KeepBestCheckpoints(Callback):
    """Deletes the checkpoints of a finished trial once `num_trials` better ones have theirs.

    Trials are ranked as the winner is found: complete ones, then those that were stopped, each by
    their best score, of equals the earliest; then those that failed, which never win. Trials that
    the end of the sweep cut short keep theirs.

    Args:
        num_trials: Trials that keep their checkpoints.
        goal: What is optimised.
        endings: Why trials were ended, as the scheduler fills it.
    """

    def __init__(self, num_trials: int, goal: Goal, endings: Endings) -> None:
        self._num_trials = num_trials
        self._goal = goal
        self._endings = endings
        # a heap, the worst trial first: standing, gain, minus the number, trial
        self._kept: list[tuple[int, float, int, Any]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = self._endings.reasons.get(trial.trial_id, Reason.BY_ITSELF)
        self._rank(trial, STOPPED if reason.is_early else COMPLETE)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._rank(trial, FAILED)

    def recall(self, trial: Any, recorded: FrozenTrial) -> None:
        """Rank a trial that had finished before the sweep was gone on with."""
        if is_failed(recorded):
            self._rank(trial, FAILED)
        else:
            self._rank(trial, COMPLETE if recorded.state == TrialState.COMPLETE else STOPPED)

    def _rank(self, trial: Any, standing: int) -> None:
        best = trial.run_metadata.checkpoint_manager.best_checkpoint_result
        if best is None:
            return
        gain = self._goal.gain(best.metrics[self._goal.metric])
        number = int(trial.storage.trial_dir_name.rpartition("_")[-1])
        # The number settles ties, so that the heap never has to compare trials.
        heapq.heappush(self._kept, (standing, gain, -number, trial))
        if len(self._kept) > self._num_trials:
            _delete_checkpoints(heapq.heappop(self._kept)[-1])


def _delete_checkpoints(trial: Any) -> None:
    manager = trial.run_metadata.checkpoint_manager
    # The latest one is not among the best, unless it is one.
    kept = {*manager.best_checkpoint_results, manager.latest_checkpoint_result}
    for result in kept:
        result.checkpoint.filesystem.delete_dir(result.checkpoint.path)
    # An empty manager: no result may point at a checkpoint that is gone.
    trial.run_metadata.checkpoint_manager = type(manager)(manager.checkpoint_config)
