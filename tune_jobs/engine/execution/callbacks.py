"""Each trial's results as files: `ResultLogs`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.logger import JsonLoggerCallback
from ray.tune.utils.util import SafeFallbackEncoder

from tune_jobs.engine.core.goal import epoch_of
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.store.record import Record, results_of

__all__ = ["ResultLogs", "write_results"]


class ResultLogs(Transient, JsonLoggerCallback):
    """Each trial's results as JSON lines, from which Ray's `ResultGrid` reads its data frames.

    Ray's own holds a file open for each trial that has not ended, of which paused ones may be more
    than a process may have, and repeats the epochs that are trained again after a process has died.

    Args:
        record: The record of the sweep.
    """

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def log_trial_start(self, trial: Any) -> None:
        trial.init_local_path()
        self.update_config(trial, trial.config)
        last = trial.latest_checkpoint_result
        results = results_of(self._record.trial(trial.trial_id)) if last is not None else {}
        epoch = epoch_of(last.metrics) if last is not None else 0  # from which it goes on
        write_results(trial, {e: result for e, result in results.items() if e <= epoch})

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        with Path(trial.local_path, EXPR_RESULT_FILE).open("at") as file:
            json.dump(result, file, cls=SafeFallbackEncoder)
            file.write("\n")


def write_results(trial: Any, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Write the file that holds a trial's results anew.

    Args:
        trial: A Tune trial with its folder made.
        results: Epoch -> result, as they are recorded.
    """
    common = {"trial_id": trial.trial_id, "config": trial.config}
    lines = [json.dumps({**result, **common}, default=str) + "\n" for result in results.values()]
    Path(trial.local_path, EXPR_RESULT_FILE).write_text("".join(lines))
