"""What a sweep found, and the files it leaves: `Sweep`, best.json, best.ckpt, trials.csv."""

import csv
import importlib.metadata
import io
import json
import platform
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.air.constants import EXPR_ERROR_FILE
from ray.tune import Checkpoint, ResultGrid
from ray.tune.utils import flatten_dict

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Reason
from tune_jobs.engine.core.settings import LightningSettings, Settings
from tune_jobs.engine.search.study_search import StudySearch
from tune_jobs.engine.store.checkpoints import CHECKPOINT_FILE
from tune_jobs.engine.store.folder import SweepFolder, write_whole
from tune_jobs.engine.store.record import (
    Record,
    failure_in,
    folder_name,
    is_failed,
    reason_of,
    results_of,
)
from tune_jobs.engine.store.study import copy_to_memory
from tune_jobs.engine.trainable.evaluation import evaluate
from tune_jobs.engine.trainable.lightning import MetricNotLoggedError, Recipe

__all__ = ["BEST_FILE", "Sweep", "SweepFailedError", "collect_results"]

BEST_FILE = "best.json"


class SweepFailedError(RuntimeError):
    """The sweep has no result; the message says why, if by a trial's failure with its traceback.

    Attributes:
        path: The sweep's folder or URL.
        ended: What ended the sweep before its time; None: nothing.
    """

    def __init__(self, message: str, path: str, ended: Reason | None) -> None:
        super().__init__(message)
        self.path = path
        self.ended = ended


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        path: The sweep's folder or URL.
        goal: What was optimised.
        settings: What the user had set.
        resources: What each trial held.
        best_config: The winner's config.
        best_score: Its best score; validation, where there are epochs.
        best_epoch: The epoch of that score.
        best_trial: Its number.
        best_state: "COMPLETE"; where no trial was, "PRUNED", or "RUNNING" if it can be resumed.
        best_checkpoint: Its checkpoint of that epoch; None for a plain function.
        test: The winner's test, metric -> value; None where there is none.
        study: The Optuna study; `best_params` and `best_value` agree with the above.
        result_grid: Ray's own results.
        rows: The rows of trials.csv.
        logs: What failed trials died of and the paths of their logs, by trial number.
        seconds: Wall clock of this driver.
        ended: What ended the sweep before its time; None: nothing.
    """

    path: str
    goal: Goal
    settings: Settings
    resources: Resources
    best_config: dict[str, Any]
    best_score: float
    best_epoch: int
    best_trial: int
    best_state: str
    best_checkpoint: Checkpoint | None
    test: dict[str, float] | None
    study: optuna.Study = field(repr=False)
    result_grid: ResultGrid = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    logs: dict[int, str] = field(repr=False)
    seconds: float
    ended: Reason | None = None

    @property
    def max_epochs(self) -> int | None:
        """Epochs that a trial trained at most; None for a plain function."""
        return self.settings.max_epochs if isinstance(self.settings, LightningSettings) else None

    @property
    def is_resumable(self) -> bool:
        """Whether there are trials left that `--resume` would run."""
        return self.ended is not None and self.ended.is_resumable


def collect_results(
    settings: Settings,
    goal: Goal,
    record: Record,
    search: StudySearch,
    grid: ResultGrid,
    folder: SweepFolder,
    *,
    recipe: Recipe | None,
    data: Any,
    resources: Resources,
    source: Path | None,
    started: float,
    ended: Reason | None,
) -> Sweep:
    """Find the winner, test it once, and write the files.

    Args:
        settings: What the user had set.
        goal: What was optimised.
        record: What has happened.
        search: Knows the configs.
        grid: Ray's own results.
        folder: Where the files go.
        recipe: What a Lightning trial was made of; None for a plain function.
        data: What the trials were given.
        resources: What each trial held.
        source: The folder of the job's code; None in a notebook.
        started: `time.monotonic()` at the sweep's start.
        ended: What ended the sweep before its time; None: nothing.

    Raises:
        SweepFailedError: No trial has a score; trials.csv is written all the same. Or a file cannot
            be written; what was there is left.
    """
    trials = record.started()
    configs = {trial.number: search.config_of(trial) for trial in trials}
    rows = [_make_row(goal, trial, configs[trial.number], ended) for trial in trials]
    _write_csv(folder, rows)
    winner = _find_winner(trials, goal)
    if winner is None:
        raise SweepFailedError(_explain_failure(folder.uri, rows, trials), folder.uri, ended)
    config, best_epoch = configs[winner.number], goal.best_epoch(winner.intermediate_values)
    assert best_epoch is not None
    checkpoint, test = None, None
    if recipe is not None:
        checkpoint = _checkpoint_of(winner, best_epoch, folder)
        content = _copy_checkpoint(checkpoint, folder)
        test = _known_test(folder.local, winner.number, best_epoch)
        if test is None and ended != Reason.INTERRUPTED:
            test = _try_test(content, recipe, config, data, resources)
    sweep = Sweep(
        path=folder.uri,
        goal=goal,
        settings=settings,
        resources=resources,
        best_config=config,
        best_score=winner.intermediate_values[best_epoch],
        best_epoch=best_epoch,
        best_trial=winner.number,
        best_state=winner.state.name,
        best_checkpoint=checkpoint,
        test=test,
        # A file on the driver's disk is about to move to its URL.
        study=copy_to_memory(record.study) if folder.is_remote else record.study,
        result_grid=grid,
        rows=rows,
        logs={t.number: _log_of(folder.uri, t) for t in trials if is_failed(t)},
        seconds=time.monotonic() - started,
        ended=ended,
    )
    _write_json(folder, sweep, data, source)
    return sweep


def _find_winner(trials: list[FrozenTrial], goal: Goal) -> FrozenTrial | None:
    """The best complete trial; where none is complete, the unfinished one with the best epoch."""

    def best_gain(trial: FrozenTrial) -> float:
        return max(goal.gain(score) for score in trial.intermediate_values.values())

    with_scores = [t for t in trials if t.intermediate_values and not is_failed(t)]
    complete = [t for t in with_scores if t.state == TrialState.COMPLETE]
    return max(complete or with_scores, key=best_gain, default=None)


def _checkpoint_of(trial: FrozenTrial, epoch: int, folder: SweepFolder) -> Checkpoint:
    name = results_of(trial)[epoch]["checkpoint_dir_name"]
    path = f"{folder.path}/{folder_name(trial.number)}/{name}"
    return Checkpoint(path, folder.filesystem)


def _known_test(folder: Path, trial: int, epoch: int) -> dict[str, float] | None:
    """The winner's test, where an earlier driver has made it: the test set is read once."""
    try:
        best = json.loads((folder / BEST_FILE).read_text())
    except (OSError, ValueError):
        return None
    if (best.get("trial"), best.get("epoch")) != (trial, epoch):
        return None
    test: dict[str, float] | None = best.get("test")
    return test


def _copy_checkpoint(checkpoint: Checkpoint, folder: SweepFolder) -> bytes:
    with checkpoint.as_directory() as local:
        content = Path(local, CHECKPOINT_FILE).read_bytes()
    _write(folder, "best.ckpt", content)
    return content


def _try_test(
    checkpoint: bytes, recipe: Recipe, config: dict[str, Any], data: Any, resources: Resources
) -> dict[str, float] | None:
    """Test the winner; what fails here must not take along what the sweep has found."""
    try:
        return evaluate(checkpoint, recipe, config, data, resources)
    except Exception:
        traceback.print_exc()
        print("The test failed; the results are written without it.", file=sys.stderr)
        return None


def _make_row(
    goal: Goal, trial: FrozenTrial, config: dict[str, Any], ended: Reason | None
) -> dict[str, Any]:
    results, curve = results_of(trial), trial.intermediate_values
    last = results[max(results)] if results else {}
    best_epoch = goal.best_epoch(curve)
    return {
        "trial": trial.number,
        "state": "FAIL" if is_failed(trial) else trial.state.name,
        "reason": trial.user_attrs.get("reason") or ended,
        "epochs": max(results, default=0),
        "best_epoch": best_epoch,
        "score": None if best_epoch is None else curve[best_epoch],
        "seconds": round(last.get("time_total_s", 0.0), 3),
        "node": last.get("hostname"),
        **{f"config/{name}": value for name, value in flatten_dict(config).items()},
    }


def _write_csv(folder: SweepFolder, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    _write(folder, "trials.csv", file.getvalue().encode())


def _write(folder: SweepFolder, name: str, content: bytes) -> None:
    file = folder.local / name
    try:
        write_whole(file, content)
    except OSError as error:
        reason = f"{file} cannot be written: {error.strerror}."
        raise SweepFailedError(reason, folder.uri, Reason.STORAGE) from error


def _write_json(folder: SweepFolder, sweep: Sweep, data: Any, source: Path | None) -> None:
    content = {
        "config": sweep.best_config,
        "metric": sweep.goal.metric,
        "mode": sweep.goal.mode,
        "score": sweep.best_score,
        "epoch": sweep.best_epoch,
        **({} if sweep.test is None else {"test": sweep.test}),
        "trial": sweep.best_trial,
        "state": sweep.best_state,
        **({"data": data.name} if hasattr(data, "name") else {}),
        "seed": sweep.settings.seed,
        "versions": _versions(),
        "commit": _commit(source),
        "seconds": round(sweep.seconds, 1),
    }
    _write(folder, BEST_FILE, f"{json.dumps(content, indent=2, default=_to_json)}\n".encode())


def _to_json(value: Any) -> Any:
    """What a config may hold besides JSON's own types: NumPy's numbers, or anything at all."""
    return value.item() if hasattr(value, "item") else str(value)


def _versions() -> dict[str, str]:
    packages = ("tune-jobs", "ray", "optuna", "torch", "pytorch-lightning", "lightning")
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{p: found[p] for p in packages if p in found}}


def _commit(source: Path | None) -> str | None:
    """The commit of the code that ran, "-dirty" if it had changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=source, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _log_of(path: str, trial: FrozenTrial) -> str:
    """What a failed trial died of, where that helps, and the path of its log."""
    log = f"{path}/{folder_name(trial.number)}/{EXPR_ERROR_FILE}"
    is_oom = reason_of(trial) == Reason.OUT_OF_MEMORY
    return f"{log}\n    {trial.user_attrs['error']}" if is_oom else log


def _explain_failure(path: str, rows: list[dict[str, Any]], trials: list[FrozenTrial]) -> str:
    failed = [trial for trial in trials if is_failed(trial)]
    if not failed:
        reasons = Counter(
            f"unfinished ({row['reason']})"
            if row["state"] == "RUNNING"
            else f"ended by {row['reason']}"
            for row in rows
        )
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return f"no trial of {path} has a score: {counts or 'none was started'}."
    first = failed[0]
    if reason_of(first) == MetricNotLoggedError.__name__:
        return str(first.user_attrs["error"]).partition(": ")[2]
    failure = failure_in(first)
    text = _own_traceback((failure and failure.text) or str(first.user_attrs["error"]))
    head = f"no trial succeeded, {len(failed)} failed; the first one, {_log_of(path, first)}:"
    return f"{head}\n{text}"


def _own_traceback(log: str) -> str:
    """The part of a Ray error log below the engine: the user's frames, and Lightning's."""
    _, *frames = re.split(r'^(?=  File ")', log, flags=re.MULTILINE)
    ours = [n for n, frame in enumerate(frames) if "engine/trainable/" in frame.splitlines()[0]]
    is_chained = "\n\nDuring handling of" in log or "\n\nThe above exception was" in log
    if is_chained or not ours or ours[-1] == len(frames) - 1:
        return log.rstrip()
    return "".join(["Traceback (most recent call last):\n", *frames[ours[-1] + 1 :]]).rstrip()
