"""The end of a sweep: find the winner, test it once, write the files: `collect_results`."""

import json
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune import Checkpoint, ResultGrid

from tune_jobs.engine.core.errors import SweepFailedError
from tune_jobs.engine.core.goal import Goal, curve_of
from tune_jobs.engine.core.layout import BEST_FILE, CHECKPOINT_FILE, trial_folder
from tune_jobs.engine.core.outcome import Kind, Outcome, has_failed
from tune_jobs.engine.report.failures import describe_failure, explain_failure
from tune_jobs.engine.report.files import (
    epoch_of_score,
    make_row,
    write_best,
    write_checkpoint,
    write_errors,
    write_rows,
)
from tune_jobs.engine.report.result import SweepResult
from tune_jobs.engine.store.configs import config_of
from tune_jobs.engine.store.entries import results_of
from tune_jobs.engine.store.folder import SweepFolder
from tune_jobs.engine.store.opening import OpenSweep
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.store.study import copy_to_memory
from tune_jobs.engine.trainable.evaluation import evaluate
from tune_jobs.engine.trainable.jobs import Workload
from tune_jobs.engine.trainable.lightning import LightningJob

__all__ = ["collect_results"]


def collect_results(
    sweep: OpenSweep,
    record: Record,
    workload: Workload,
    grid: ResultGrid,
    ended: Outcome,
) -> SweepResult:
    """Find the winner, test it once, and write the files.

    Args:
        sweep: The sweep.
        record: What has happened.
        workload: What the trials trained.
        grid: Ray's own results.
        ended: Why the sweep ended.

    Raises:
        SweepFailedError: There is no winner; trials.csv is written nevertheless. Or a file cannot
            be written; its old contents remain.
    """
    folder, goal, trials = sweep.folder, sweep.goal, record.started()
    configs = {trial.number: config_of(trial, sweep.space) for trial in trials}
    rows = [make_row(goal, trial, configs[trial.number], ended) for trial in trials]
    write_rows(folder, rows)
    write_errors(folder, trials)
    winner = _find_winner(goal, trials, ended)
    score = None if winner is None else goal.score(winner)
    if winner is None or score is None:
        message = explain_failure(folder.uri, rows, trials, ended)
        raise SweepFailedError(message, folder.uri, ended)
    best_epoch = goal.best_epoch(curve_of(winner))
    checkpoint, test = _checkpoint_of(winner, best_epoch, folder), None
    job = workload.job
    if job.is_lightning and checkpoint is not None:
        content = _read_checkpoint(checkpoint)
        write_checkpoint(folder, content)
        test = _known_test(folder.local, winner.number, best_epoch)
        if test is None and ended.kind != Kind.INTERRUPTED:
            test = _try_test(content, job, configs[winner.number], workload)
    result = SweepResult(
        path=folder.uri,
        goal=goal,
        settings=sweep.settings,
        resources=workload.resources,
        best_config=configs[winner.number],
        best_score=score,
        best_epoch=epoch_of_score(goal, winner),
        best_trial=winner.number,
        best_state=winner.state.name,
        best_checkpoint=checkpoint,
        test=test,
        # The file on the driver's disk is about to move to its URL.
        study=copy_to_memory(record.storage, sweep.name) if folder.is_remote else record.study,
        result_grid=grid,
        rows=rows,
        foreign=[trial.number for trial in record.foreign()],
        is_lightning=job.is_lightning,
        failures={t.number: describe_failure(folder.uri, t) for t in trials if has_failed(t)},
        seconds=time.monotonic() - sweep.opened,
        ended=ended,
    )
    write_best(folder, result, workload)
    return result


def _find_winner(goal: Goal, trials: list[FrozenTrial], ended: Outcome) -> FrozenTrial | None:
    """The best trial that has ended; if the user ended the sweep, the best so far.

    None if failures ended it: those that were stopped before then are no success.
    """
    if ended.kind in (Kind.INTERRUPTED, Kind.TIME_BUDGET):
        return goal.best(trials)
    if ended.kind == Kind.FAILURES:
        return None
    return goal.best(trial for trial in trials if trial.state.is_finished())


def _checkpoint_of(trial: FrozenTrial, epoch: int | None, folder: SweepFolder) -> Checkpoint | None:
    """The checkpoint of an epoch; None: a function reported none with it."""
    name = None if epoch is None else results_of(trial)[epoch].get("checkpoint_dir_name")
    if name is None:
        return None
    return Checkpoint(f"{folder.path}/{trial_folder(trial.number)}/{name}", folder.filesystem)


def _known_test(folder: Path, trial: int, epoch: int | None) -> dict[str, float] | None:
    """The winner's test, if an earlier driver made it: the test set is read once."""
    try:
        best = json.loads((folder / BEST_FILE).read_text())
    except (OSError, ValueError):
        return None
    if (best.get("trial"), best.get("epoch")) != (trial, epoch):
        return None
    test: dict[str, float] | None = best.get("test")
    return None if test is None else {name: float(value) for name, value in test.items()}


def _read_checkpoint(checkpoint: Checkpoint) -> bytes:
    with checkpoint.as_directory() as local:
        return Path(local, CHECKPOINT_FILE).read_bytes()


def _try_test(
    checkpoint: bytes, job: LightningJob, config: dict[str, Any], workload: Workload
) -> dict[str, float] | None:
    """Test the winner; an error in the test must not cost what the sweep found."""
    try:
        return evaluate(checkpoint, job, config, workload.loaded.data, workload.resources)
    except Exception:
        warnings.warn(
            f"the test of the winner failed; the results are written without it:\n"
            f"{traceback.format_exc()}",
            stacklevel=2,
        )
        return None
