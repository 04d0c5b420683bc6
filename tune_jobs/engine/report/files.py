"""The files that a sweep leaves: trials.csv, best.ckpt, best.json."""

import csv
import importlib.metadata
import io
import json
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from pyarrow import fs
from ray.tune.utils import flatten_dict

from tune_jobs.engine.cluster.script import script_of
from tune_jobs.engine.core.errors import SweepFailedError
from tune_jobs.engine.core.goal import LAST_EPOCH_ATTR, Goal, curve_of
from tune_jobs.engine.core.layout import (
    BEST_CHECKPOINT_FILE,
    BEST_FILE,
    ERROR_FILE,
    TRIALS_FILE,
    trial_folder,
)
from tune_jobs.engine.core.outcome import Kind, Outcome, has_failed, outcome_of
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.report.result import SweepResult
from tune_jobs.engine.store.configs import to_json
from tune_jobs.engine.store.entries import duration_of, reports_of, results_of, returned_by
from tune_jobs.engine.store.folder import SweepFolder, write_whole
from tune_jobs.engine.trainable.jobs import Workload

__all__ = [
    "epoch_of_score",
    "make_row",
    "write_best",
    "write_checkpoint",
    "write_errors",
    "write_rows",
]


def make_row(
    goal: Goal, trial: FrozenTrial, config: dict[str, Any], ended: Outcome
) -> dict[str, Any]:
    """A trial's row in trials.csv, column -> value.

    Args:
        goal: What is optimized.
        trial: The recorded trial.
        config: Its config.
        ended: Why the sweep ended, for a trial that it cut short.
    """
    reports = list(reports_of(trial).values())
    outcome = outcome_of(trial) or ended
    return {
        "trial": trial.number,
        "state": "FAIL" if has_failed(trial) else trial.state.name,
        "reason": str(outcome.kind),
        "epochs": num_epochs(trial),
        "best_epoch": epoch_of_score(goal, trial),
        "score": goal.score(trial),
        "duration_s": trial.user_attrs.get("duration_s", duration_of(trial)),
        "node": reports[-1].get("hostname") if reports else None,
        **{f"config/{name}": value for name, value in flatten_dict(readable(config)).items()},
    }


def num_epochs(trial: FrozenTrial) -> int:
    """How many epochs a trial has trained, the one in which it diverged too."""
    last = trial.system_attrs.get(LAST_EPOCH_ATTR) if trial.state.is_finished() else None
    return max((e for e in results_of(trial) if last is None or e <= last), default=0)


def epoch_of_score(goal: Goal, trial: FrozenTrial) -> int | None:
    """The epoch at which a trial reported its score; None: it has none, or was returned."""
    score, curve = goal.score(trial), curve_of(trial)
    epoch = goal.best_epoch(curve)
    is_reported = epoch is not None and curve[epoch] == score
    was_returned = goal.metric in (returned_by(trial) or {})
    return epoch if is_reported and not was_returned else None


def write_rows(folder: SweepFolder, rows: list[dict[str, Any]]) -> None:
    """Write trials.csv.

    Raises:
        SweepFailedError: It cannot be written, here and below; the old contents remain.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    _write(folder, TRIALS_FILE, file.getvalue().encode())


def write_errors(folder: SweepFolder, trials: list[FrozenTrial]) -> None:
    """Write the logs of failed trials that are missing: Tune copies a trial's files when it will,
    and the summary names these."""
    for trial in filter(has_failed, trials):
        path = f"{folder.path}/{trial_folder(trial.number)}"
        file, outcome = f"{path}/{ERROR_FILE}", outcome_of(trial)
        if outcome is None or folder.filesystem.get_file_info(file).type == fs.FileType.File:
            continue
        with suppress(OSError):  # the record has it too
            folder.filesystem.create_dir(path)
            with folder.filesystem.open_output_stream(file) as stream:
                stream.write(f"{outcome.traceback or outcome.message}\n".encode())


def write_checkpoint(folder: SweepFolder, content: bytes) -> None:
    """Write the winner's checkpoint."""
    _write(folder, BEST_CHECKPOINT_FILE, content)


def write_best(folder: SweepFolder, result: SweepResult, workload: Workload) -> None:
    """Write best.json.

    Args:
        folder: The sweep's.
        result: What it found.
        workload: Has what is recorded of the data, and the job, whose commit is looked up.
    """
    script = script_of(workload.job.source)
    content = {
        "config": result.best_config,
        "metric": result.goal.metric,
        "mode": result.goal.mode,
        "score": result.best_score,
        "epoch": result.best_epoch,
        **({} if result.test is None else {"test": result.test}),
        "trial": result.best_trial,
        "state": result.best_state,
        "seed": result.settings.seed,
        "versions": _versions(),
        "commit": _commit(script and script.parent),
        "seconds": round(result.seconds, 1),
    }
    facts = workload.loaded.facts
    content |= {name: fact for name, fact in facts.items() if name == "data"}  # its old place
    content["facts"] = facts
    _write(folder, BEST_FILE, f"{json.dumps(to_json(content), indent=2)}\n".encode())


def _write(folder: SweepFolder, name: str, content: bytes) -> None:
    file = folder.local / name
    try:
        write_whole(file, content)
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}."
        raise SweepFailedError(message, folder.uri, Outcome.of(Kind.STORAGE)) from error


def _versions() -> dict[str, str]:
    packages = ("tune-jobs", "ray", "optuna", "torch", "pytorch-lightning", "lightning")
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{p: found[p] for p in packages if p in found}}


def _commit(folder: Path | None) -> str | None:
    """The commit of the code that ran, with "-dirty" if it had changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
