"""What a sweep found, and the files it leaves: `Sweep`, best.json, best.ckpt, trials.csv."""

import csv
import importlib.metadata
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
from ray.tune import Checkpoint, ResultGrid
from ray.tune.utils import flatten_dict

from tune_jobs.engine.evaluation import evaluate
from tune_jobs.engine.goal import Goal, epoch_of
from tune_jobs.engine.reasons import failure_of
from tune_jobs.engine.resources import Resources
from tune_jobs.engine.settings import LightningSettings, Settings
from tune_jobs.engine.storage import is_url, storage_uri
from tune_jobs.engine.study import copy_to_memory
from tune_jobs.engine.trial import CHECKPOINT_FILE, MetricNotLoggedError, Recipe

__all__ = ["Sweep", "SweepFailedError", "collect_results"]


class SweepFailedError(RuntimeError):
    """No trial succeeded; the message ends with the first trial's own traceback."""


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
        best_state: "COMPLETE"; "PRUNED" where no trial was complete.
        best_checkpoint: Its checkpoint of that epoch; None for a plain function.
        test: The winner's test, metric -> value; None where there is none.
        study: The Optuna study; `best_params` and `best_value` agree with the above.
        result_grid: Ray's own results.
        rows: The rows of trials.csv.
        logs: The error logs of failed trials, by trial number.
        seconds: Wall clock of the whole sweep.
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

    @property
    def max_epochs(self) -> int | None:
        """Epochs that a trial trained at most; None for a plain function."""
        return self.settings.max_epochs if isinstance(self.settings, LightningSettings) else None


def collect_results(
    settings: Settings,
    goal: Goal,
    study: optuna.Study,
    grid: ResultGrid,
    folder: Path,
    *,
    recipe: Recipe | None,
    data: Any,
    resources: Resources,
    source: Path | None,
    started: float,
) -> Sweep:
    """Find the winner, test it once, and write the files.

    Args:
        settings: What the user had set.
        goal: What was optimised.
        study: The study, every trial told.
        grid: Ray's own results.
        folder: Where the files go.
        recipe: What a Lightning trial was made of; None for a plain function.
        data: What the trials were given.
        resources: What each trial held.
        source: The folder of the job's code; None in a notebook.
        started: `time.monotonic()` at the sweep's start.

    Raises:
        SweepFailedError: No trial has a score; trials.csv is written all the same.
    """
    path = f"{storage_uri(settings.storage_path)}/{study.study_name}"
    by_id = {trial.trial_id: trial for trial in grid._experiment_analysis.trials}
    trials = [(t, by_id.get(t.user_attrs.get("trial_id"))) for t in study.get_trials()]
    rows = [_make_row(goal, frozen, trial) for frozen, trial in trials]
    _write_csv(folder / "trials.csv", rows)
    failed = {frozen.number: t for frozen, t in trials if t is not None and t.error_file}
    winner = _find_winner(study, goal)
    if winner is None:
        raise SweepFailedError(_explain_failure(path, rows, list(failed.values())))
    best_epoch = goal.best_epoch(winner.intermediate_values)
    assert best_epoch is not None
    trial = by_id[winner.user_attrs["trial_id"]]
    checkpoint, test = None, None
    if recipe is not None:
        checkpoint = _checkpoint_of(trial, best_epoch)
        content = _copy_checkpoint(checkpoint, folder / "best.ckpt")
        test = _try_test(content, recipe, trial.config, data, resources)
    sweep = Sweep(
        path=path,
        goal=goal,
        settings=settings,
        resources=resources,
        best_config=trial.config,
        best_score=winner.intermediate_values[best_epoch],
        best_epoch=best_epoch,
        best_trial=winner.number,
        best_state=winner.state.name,
        best_checkpoint=checkpoint,
        test=test,
        study=copy_to_memory(study) if is_url(path) else study,  # the file is about to move there
        result_grid=grid,
        rows=rows,
        logs={number: f"{path}/{_log_of(trial)}" for number, trial in failed.items()},
        seconds=time.monotonic() - started,
    )
    _write_json(folder / "best.json", sweep, data, source)
    return sweep


def _find_winner(study: optuna.Study, goal: Goal) -> FrozenTrial | None:
    """The best complete trial; where none is complete, the stopped one with the best epoch."""
    trials = study.get_trials()
    if any(t.state == TrialState.COMPLETE for t in trials):
        return study.best_trial

    def best_gain(trial: FrozenTrial) -> float:
        return max(goal.gain(score) for score in trial.intermediate_values.values())

    stopped = [t for t in trials if t.state == TrialState.PRUNED and t.intermediate_values]
    return max(stopped, key=best_gain, default=None)


def _checkpoint_of(trial: Any, epoch: int | None) -> Checkpoint:
    for result in trial.run_metadata.checkpoint_manager.best_checkpoint_results:
        if result.metrics["epoch"] == epoch:
            return result.checkpoint
    raise RuntimeError(f"trial {trial.trial_id} has no checkpoint of its best epoch, {epoch}.")


def _copy_checkpoint(checkpoint: Checkpoint, file: Path) -> bytes:
    with checkpoint.as_directory() as folder:
        content = Path(folder, CHECKPOINT_FILE).read_bytes()
    file.write_bytes(content)
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


def _make_row(goal: Goal, frozen: FrozenTrial, trial: Any) -> dict[str, Any]:
    last = (trial.last_result if trial is not None else None) or {}
    curve = frozen.intermediate_values
    best_epoch = goal.best_epoch(curve)
    config = flatten_dict(trial.config) if trial is not None else frozen.params
    return {
        "trial": frozen.number,
        "state": frozen.state.name,
        "reason": frozen.user_attrs.get("reason"),
        "epochs": epoch_of(last),
        "best_epoch": best_epoch,
        "score": None if best_epoch is None else curve[best_epoch],
        "seconds": round(last.get("time_total_s", 0.0), 3),
        "node": last.get("hostname"),
        **{f"config/{name}": value for name, value in config.items()},
    }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, sweep: Sweep, data: Any, source: Path | None) -> None:
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
    path.write_text(json.dumps(content, indent=2, default=_to_json) + "\n")


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


def _log_of(trial: Any) -> str:
    """The error log of a failed trial, below the sweep's folder."""
    return f"{trial.storage.trial_dir_name}/{Path(trial.error_file).name}"


def _explain_failure(path: str, rows: list[dict[str, Any]], failed: list[Any]) -> str:
    if not failed:
        reasons = Counter(row["reason"] for row in rows)
        counts = ", ".join(f"{count} ended by {reason}" for reason, count in reasons.items())
        return f"no trial of {path} has a score: {counts or 'none was started'}."
    error = failure_of(failed[0])
    if isinstance(error, MetricNotLoggedError):
        return str(error)
    text = _own_traceback(Path(failed[0].error_file).read_text())
    head = f"no trial succeeded, {len(failed)} failed; the first one, {path}/{_log_of(failed[0])}:"
    return f"{head}\n{text}"


def _own_traceback(log: str) -> str:
    """The part of a Ray error log below the engine: the user's frames, and Lightning's."""
    _, *frames = re.split(r'^(?=  File ")', log, flags=re.MULTILINE)
    ours = [n for n, frame in enumerate(frames) if "engine/trial.py" in frame.splitlines()[0]]
    is_chained = "\n\nDuring handling of" in log or "\n\nThe above exception was" in log
    if is_chained or not ours or ours[-1] == len(frames) - 1:
        return log.rstrip()
    return "".join(["Traceback (most recent call last):\n", *frames[ours[-1] + 1 :]]).rstrip()
