"""Only the best trials keep their checkpoints: `KeepBestCheckpoints`."""

import heapq
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback

__all__ = ["KeepBestCheckpoints"]


class KeepBestCheckpoints(Callback):
    """Deletes the checkpoints of a finished trial once `num_trials` better ones have theirs.

    Trials are ranked as the winner is: complete ones first, then by their best score.

    Args:
        num_trials: Trials that keep their checkpoints.
        metric: The name under which trials report their score.
        mode: "max" or "min".
        reasons: Why a trial was ended, by trial id, as the scheduler fills it.
    """

    def __init__(self, num_trials: int, metric: str, mode: str, reasons: Mapping[str, str]) -> None:
        self._num_trials = num_trials
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._reasons = reasons
        self._kept: list[tuple[bool, float, int, Any]] = []  # a heap, the worst trial first
        self._num_finished = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        best = trial.run_metadata.checkpoint_manager.best_checkpoint_result
        if best is None:
            return
        complete = self._reasons.get(trial.trial_id) not in ("asha", "nan")
        self._num_finished += 1  # settles ties, so that the heap never compares trials
        rank = (complete, self._sign * best.metrics[self._metric], self._num_finished, trial)
        heapq.heappush(self._kept, rank)
        if len(self._kept) > self._num_trials:
            _delete_checkpoints(heapq.heappop(self._kept)[-1])


def _delete_checkpoints(trial: Any) -> None:
    manager = trial.run_metadata.checkpoint_manager
    for result in manager.best_checkpoint_results:
        result.checkpoint.filesystem.delete_dir(result.checkpoint.path)
    # An empty manager: no result may point at a checkpoint that is gone.
    trial.run_metadata.checkpoint_manager = type(manager)(manager.checkpoint_config)
