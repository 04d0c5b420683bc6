"""What Tune calls as trials end: `KeepBestCheckpoints`, `ResultLogs`."""

import heapq
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.logger import JsonLoggerCallback

from tune_jobs.engine.goal import Goal
from tune_jobs.engine.reasons import Reason

__all__ = ["KeepBestCheckpoints", "ResultLogs"]


FAILED, STOPPED, COMPLETE = range(3)


class KeepBestCheckpoints(Callback):
    """Deletes the checkpoints of a finished trial once `num_trials` better ones have theirs.

    Trials are ranked as the winner is found: complete ones, then those that were stopped, each by
    their best score, of equals the earliest; then those that failed, which never win. Trials that
    the end of the sweep cut short keep theirs.

    Args:
        num_trials: Trials that keep their checkpoints.
        goal: What is optimised.
        reasons: Why a trial was ended, by trial id, as the scheduler fills it.
    """

    def __init__(self, num_trials: int, goal: Goal, reasons: Mapping[str, str]) -> None:
        self._num_trials = num_trials
        self._goal = goal
        self._reasons = reasons
        # a heap, the worst trial first: standing, gain, minus the number, trial
        self._kept: list[tuple[int, float, int, Any]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = self._reasons.get(trial.trial_id, Reason.BY_ITSELF)
        self._rank(trials, trial, STOPPED if Reason(reason).is_early else COMPLETE)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._rank(trials, trial, FAILED)

    def _rank(self, trials: list[Any], trial: Any, standing: int) -> None:
        best = trial.run_metadata.checkpoint_manager.best_checkpoint_result
        if best is None:
            return
        gain = self._goal.gain(best.metrics[self._goal.metric])
        # The number settles ties, so that the heap never has to compare trials.
        heapq.heappush(self._kept, (standing, gain, -trials.index(trial), trial))
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


class ResultLogs(JsonLoggerCallback):
    """Each trial's results as JSON lines, from which Ray's `ResultGrid` reads its data frames.

    Ray's own leaves the files of trials open that the end of the sweep cut short.
    """

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for trial in list(self._trial_files):
            self.log_trial_end(trial)
