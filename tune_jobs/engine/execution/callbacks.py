"""Tune callbacks that write files of trials and delete checkpoints."""

import heapq
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.utils.util import SafeFallbackEncoder

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import RESULT_FILE
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.store.entries import reports_of
from tune_jobs.engine.store.record import Record

__all__ = ["KeepBestCheckpoints", "ResultLogs", "write_results"]


class ResultLogs(Transient, JsonLoggerCallback):
    """Writes each trial's results as JSON lines, which Ray's `ResultGrid` reads as data frames.

    Ray's own keeps a file open for each trial that has not ended; there may be more paused trials
    than a process may have open files. It also repeats epochs that are trained again.

    Args:
        record: The record of the sweep.
    """

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def log_trial_start(self, trial: Any) -> None:
        trial.init_local_path()
        self.update_config(trial, readable(trial.config))
        last = trial.latest_checkpoint_result  # from which it resumes
        reports = reports_of(self._record.trial(trial.trial_id)) if last is not None else {}
        number = last.metrics["training_iteration"] if last is not None else 0
        write_results(trial, [report for n, report in reports.items() if n <= number])

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        result = {**result, "config": readable(trial.config)}
        with Path(trial.local_path, RESULT_FILE).open("at") as file:
            json.dump(result, file, cls=SafeFallbackEncoder)
            file.write("\n")


def write_results(trial: Any, results: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file that holds a trial's results.

    Args:
        trial: A Tune trial whose folder exists.
        results: The recorded ones, in order.
    """
    common = {"trial_id": trial.trial_id, "config": readable(trial.config)}
    lines = [json.dumps({**result, **common}, default=str) + "\n" for result in results]
    Path(trial.local_path, RESULT_FILE).write_text("".join(lines))


class KeepBestCheckpoints(Transient, Callback):
    """Deletes the checkpoints of a finished trial once `num_trials` better trials have theirs.

    Trials are ranked as the winner is. Trials that the end of the sweep cut short keep theirs.

    Args:
        num_trials: Trials that keep their checkpoints.
        goal: Ranks the trials.
        record: The record of the sweep.
    """

    def __init__(self, num_trials: int, goal: Goal, record: Record) -> None:
        self._num_trials = num_trials
        self._goal = goal
        self._record = record
        self._seen: set[str] = set()
        # a heap, the worst trial first; ranks are unique, so that it never compares trials
        self._kept: list[tuple[tuple[int, float, int], Any]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # The first time, also the trials that finished under earlier drivers.
        for finished in [trial] if self._seen else trials:
            self._rank(finished)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for trial in trials:
            self._rank(trial)

    def _rank(self, trial: Trial) -> None:
        recorded = self._record.trial(trial.trial_id)
        if not recorded.state.is_finished() or trial.trial_id in self._seen:
            return
        self._seen.add(trial.trial_id)
        if trial.run_metadata.checkpoint_manager.best_checkpoint_result is None:
            return
        heapq.heappush(self._kept, (self._goal.rank(recorded), trial))
        if len(self._kept) > self._num_trials:
            _delete_checkpoints(heapq.heappop(self._kept)[-1])


def _delete_checkpoints(trial: Trial) -> None:
    manager = trial.run_metadata.checkpoint_manager
    # The latest one may be one of the best, or not.
    kept = {*manager.best_checkpoint_results, manager.latest_checkpoint_result}
    for result in kept:
        result.checkpoint.filesystem.delete_dir(result.checkpoint.path)
    # An empty manager: no result may point at a deleted checkpoint.
    trial.run_metadata.checkpoint_manager = type(manager)(manager.checkpoint_config)
