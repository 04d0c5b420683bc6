"""Each trial's results as files: `ResultLogs`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.logger import JsonLoggerCallback

from tune_jobs.engine.goal import epoch_of
from tune_jobs.engine.record import Record, results_of
from tune_jobs.engine.transient import Transient

__all__ = ["ResultLogs", "write_results"]


class ResultLogs(Transient, JsonLoggerCallback):
    """Each trial's results as JSON lines, from which Ray's `ResultGrid` reads its data frames.

    Ray's own leaves the files of trials open that the end of the sweep cut short, and repeats the
    epochs that are trained again after a process has died.

    Args:
        record: The record of the sweep.
    """

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def log_trial_start(self, trial: Any) -> None:
        self.log_trial_end(trial)
        trial.init_local_path()
        self.update_config(trial, trial.config)
        last = trial.latest_checkpoint_result
        results = results_of(self._record.trial(trial.trial_id)) if last is not None else {}
        epoch = epoch_of(last.metrics) if last is not None else 0  # from which it goes on
        write_results(trial, {e: result for e, result in results.items() if e <= epoch})
        file = Path(trial.local_path, EXPR_RESULT_FILE)
        self._trial_files[trial] = file.open("at")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for trial in list(self._trial_files):
            self.log_trial_end(trial)


def write_results(trial: Any, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the file that holds a trial's results anew.

    Args:
        trial: A Tune trial with its folder made.
        results: Epoch -> result, as they are recorded.
    """
    common = {"trial_id": trial.trial_id, "config": trial.config}
    lines = [json.dumps({**result, **common}, default=str) + "\n" for result in results.values()]
    Path(trial.local_path, EXPR_RESULT_FILE).write_text("".join(lines))
