"""What a sweep found, and the files it leaves: `Sweep`, best.json, best.ckpt, trials.csv."""

import csv
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Checkpoint, ResultGrid
from ray.tune.utils import flatten_dict

from tune_jobs.engine.resources import Resources
from tune_jobs.engine.search import best_epoch
from tune_jobs.engine.settings import LightningSettings, Settings
from tune_jobs.engine.trial import CHECKPOINT_FILE, evaluate

__all__ = ["STUDY_FILE", "Sweep", "SweepFailedError", "collect_results", "load_study"]

# A journal: at 300 trials an Optuna call takes a fifth of SQLite's time, and all of it is spent in
# the driver's loop. `optuna-dashboard study.log` opens it.
STUDY_FILE = "study.log"


class SweepFailedError(RuntimeError):
    """No trial succeeded; the message ends with the first trial's own traceback."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        path: The sweep's folder or URL.
        metric: What was optimised.
        mode: "max" or "min".
        max_epochs: Epochs a trial trained at most; None for a plain function.
        best_config: The winner's config.
        best_score: Its best score; validation, where there are epochs.
        best_epoch: The epoch of that score.
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
    metric: str
    mode: str
    max_epochs: int | None
    best_config: dict[str, Any]
    best_score: float
    best_epoch: int
    best_state: str
    best_checkpoint: Checkpoint | None
    test: dict[str, float] | None
    study: optuna.Study = field(repr=False)
    result_grid: ResultGrid = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    logs: dict[int, str] = field(repr=False)
    seconds: float


def load_study(folder: str | Path) -> optuna.Study:
    """Load the study of a finished sweep from its folder."""
    storage = JournalStorage(JournalFileBackend(str(Path(folder, STUDY_FILE))))
    return optuna.load_study(study_name=None, storage=storage)


def collect_results(
    settings: Settings,
    name: str,
    folder: Path,
    metric: str,
    mode: str,
    study: optuna.Study,
    grid: ResultGrid,
    resources: Resources,
    data: Any,
    make_model: Callable[[dict[str, Any], Any], Any] | None,
    make_data: Callable[[dict[str, Any], Any], Any] | None,
    seconds: float,
) -> Sweep:
    """Find the winner, test it once, and write the files.

    Raises:
        SweepFailedError: No trial has a score; trials.csv is written all the same.
    """
    tune_trials = {trial.trial_id: trial for trial in grid._experiment_analysis.trials}
    trials = [(t, tune_trials.get(t.user_attrs.get("trial_id"))) for t in study.get_trials()]
    rows = [_make_row(frozen, trial, mode) for frozen, trial in trials]
    _write_csv(folder / "trials.csv", rows)
    logs = {f.number: t.error_file for f, t in trials if t is not None and t.error_file}
    winner = _find_winner(study, mode)
    if winner is None:
        raise SweepFailedError(_explain_failure(logs, name))
    epoch = best_epoch(winner, mode)
    assert epoch is not None
    trial = tune_trials[winner.user_attrs["trial_id"]]
    checkpoint, test = None, None
    if make_model is not None and make_data is not None:
        checkpoint = _checkpoint_of(trial, epoch)
        with checkpoint.as_directory() as source:
            best_file = folder / "best.ckpt"
            best_file.write_bytes(Path(source, CHECKPOINT_FILE).read_bytes())
        test = _test(str(best_file), trial.config, data, make_model, make_data, resources)
    sweep = Sweep(
        path=f"{settings.storage_path.rstrip('/')}/{name}",
        metric=metric,
        mode=mode,
        max_epochs=settings.max_epochs if isinstance(settings, LightningSettings) else None,
        best_config=trial.config,
        best_score=winner.intermediate_values[epoch],
        best_epoch=epoch,
        best_state=winner.state.name,
        best_checkpoint=checkpoint,
        test=test,
        study=study,
        result_grid=grid,
        rows=rows,
        logs=logs,
        seconds=seconds,
    )
    _write_json(folder / "best.json", sweep, settings, winner, data)
    return sweep


def _find_winner(study: optuna.Study, mode: str) -> FrozenTrial | None:
    """The best complete trial; where none is complete, the stopped one with the best epoch."""
    if any(t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False)):
        return study.best_trial
    stopped = [t for t in study.get_trials() if t.state == TrialState.PRUNED]
    scores = {t.number: t.intermediate_values[e] for t in stopped if (e := best_epoch(t, mode))}
    if not scores:
        return None
    number = (max if mode == "max" else min)(scores, key=lambda number: scores[number])
    return study.get_trials()[number]


def _checkpoint_of(trial: Any, epoch: int) -> Checkpoint:
    for result in trial.run_metadata.checkpoint_manager.best_checkpoint_results:
        if result.metrics["epoch"] == epoch:
            return result.checkpoint
    raise RuntimeError(f"trial {trial.trial_id} has no checkpoint of its best epoch, {epoch}.")


def _test(
    checkpoint_file: str,
    config: dict[str, Any],
    data: Any,
    make_model: Callable[[dict[str, Any], Any], Any],
    make_data: Callable[[dict[str, Any], Any], Any],
    resources: Resources,
) -> dict[str, float] | None:
    def task(data: Any) -> dict[str, float] | None:
        model = make_model(config, data)
        return evaluate(checkpoint_file, model, make_data(config, data), resources)

    if not resources.gpus:
        return task(data)  # here: a new worker would spend seconds on importing Lightning
    remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(task)
    result: dict[str, float] | None = ray.get(remote.remote(data))
    return result


def _make_row(frozen: FrozenTrial, trial: Any, mode: str) -> dict[str, Any]:
    last = (trial.last_result if trial is not None else None) or {}
    epoch = best_epoch(frozen, mode)
    config = flatten_dict(trial.config, prevent_delimiter=False) if trial else frozen.params
    return {
        "trial": frozen.number,
        "state": frozen.state.name,
        "reason": frozen.user_attrs.get("reason"),
        "epochs": last.get("epoch", 0),
        "best_epoch": epoch,
        "score": None if epoch is None else frozen.intermediate_values[epoch],
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


def _write_json(
    path: Path, sweep: Sweep, settings: Settings, winner: FrozenTrial, data: Any
) -> None:
    content = {
        "config": sweep.best_config,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "score": sweep.best_score,
        "epoch": sweep.best_epoch,
        **({} if sweep.test is None else {"test": sweep.test}),
        "trial": winner.number,
        "state": sweep.best_state,
        "data": getattr(data, "name", None),
        "seed": settings.seed,
        "versions": _versions(),
        "commit": _commit(),
        "seconds": round(sweep.seconds, 1),
    }
    path.write_text(json.dumps(content, indent=2, default=lambda number: number.item()) + "\n")


def _versions() -> dict[str, str]:
    packages = ("tune-jobs", "ray", "optuna", "torch", "pytorch-lightning", "lightning")
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), **{p: found[p] for p in packages if p in found}}


def _commit() -> str | None:
    """The commit of the code that ran, "-dirty" if it had changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _explain_failure(logs: dict[int, str], name: str) -> str:
    if not logs:
        return f"sweep {name} ended before any trial had reported a score."
    first = Path(logs[min(logs)]).read_text()
    marker = "MetricNotLoggedError: "
    if marker in first:
        return first.rpartition(marker)[2].strip()
    return f"all {len(logs)} trials failed; the first one:\n{first}"
