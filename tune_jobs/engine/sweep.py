"""The story of a sweep: `run_sweep`; new, resumed, extended.

One part of what a sweep leaves behind is the authority: the study in `study.log`, an append-only
journal. The scheduler records a result together with the decision on it, flushed to disk, before
anything acts on it: before the trial stops, an older checkpoint is deleted or a line is printed. So
whatever was shown is recorded. Whatever is recorded can be resumed from, since a worker stores its
checkpoint before it reports the result.

To Tune, a resumed sweep is a new one: rungs, the sampler's view, Tune's trials with checkpoints and
result files, trials.csv and best.json are all made again from the record. Tune's own snapshots,
written 10 s and more apart, are never read. A trial resumes from its last recorded checkpoint; what
it had reported beyond that stays until it is trained again, and is then replaced.
"""

import copy
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from ray import tune
from ray.tune.schedulers import TrialScheduler

from tune_jobs.engine.cluster.capacity import (
    Autoscaler,
    check_shared,
    read_autoscaler,
    read_capacity,
    wait_for_workers,
)
from tune_jobs.engine.cluster.connection import running_ray
from tune_jobs.engine.cluster.monitor import ClusterMonitor
from tune_jobs.engine.cluster.runtime_env import check_kept
from tune_jobs.engine.cluster.script import script_of
from tune_jobs.engine.cluster.slots import plan_resources
from tune_jobs.engine.core.errors import SweepFailedError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.loaded import Loaded
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.progress import Guarded, Progress, Silent
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.space import Space, check_grid, convert_space
from tune_jobs.engine.execution.driver import Driver, Parts
from tune_jobs.engine.execution.progress import LineProgress
from tune_jobs.engine.report.collect import collect_results
from tune_jobs.engine.report.result import SweepResult
from tune_jobs.engine.search.samplers import check_sampler
from tune_jobs.engine.search.stock import check_scheduler
from tune_jobs.engine.store.folder import storage_uri
from tune_jobs.engine.store.opening import OpenSweep, Request, open_sweep
from tune_jobs.engine.trainable.jobs import Job, Workload, make_job
from tune_jobs.engine.trainable.sendable import check_functions, check_parts, sending

__all__ = ["run_sweep"]

LINES = LineProgress()


def run_sweep(
    settings: Settings,
    *,
    space: Space | None = None,
    metric: str,
    mode: str,
    objective: Callable[..., Any] | None = None,
    load_data: Callable[[Any], Any] | None = None,
    make_model: Callable[[dict[str, Any], Any], Any] | None = None,
    make_data: Callable[[dict[str, Any], Any], Any] | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    sampler: BaseSampler | None = None,
    scheduler: TrialScheduler | None = None,
    callbacks: Sequence[tune.Callback] = (),
    progress: Progress | None = LINES,
    enqueue: Sequence[Mapping[str, Any]] | None = None,
    warm_start: str | Path | optuna.Study | None = None,
) -> SweepResult:
    """Search a space and return what was found; for scripts and notebooks.

    Give either `objective`, a plain function, or `make_model` and `make_data`, and then
    settings with `max_epochs`, such as `LightningSettings`.

    Args:
        settings: What the user set.
        space: A Tune search space, or a define-by-run function of an Optuna trial.
        metric: What is optimized; the name under which the model logs it.
        mode: "max" or "min".
        objective: Maps a config to its score; with `load_data`, a config and the data. It returns
            a number, or a dict with the metric, or reports epochs with `ray.tune.report`; or both,
            and then what it returns is the trial's score.
        load_data: Maps the settings to the data, or to `Loaded(data, ...)` to have facts about it
            recorded. It is called once, in the driver. The data reaches the trials through Ray's
            object store, which shares NumPy arrays without a copy.
        make_model: Maps a config and the data to a LightningModule.
        make_data: Maps a config and the data to a LightningDataModule.
        trainer_kwargs: Options, callbacks and loggers for each trial's Trainer. Each trial gets its
            own copies.
        sampler: Any Optuna sampler; None: TPE. What it draws for a trial depends on the settings'
            seed and the trial's number alone.
        scheduler: A Tune scheduler that only continues or stops trials (ASHAScheduler,
            MedianStoppingRule, FIFOScheduler); it takes the place of ASHA and its settings. Results
            give it the epoch as `epoch` and as `training_iteration`. The default is ASHA, if
            the settings have epochs.
        callbacks: Tune callbacks.
        progress: Listens to the sweep; the default prints a line for each trial, None is silent.
        enqueue: Configs, or parts of configs, to try first, after those of the settings' file; each
            once in the life of the sweep.
        warm_start: A study whose trials the search learns from, instead of the settings': another
            sweep (its folder, URL or name), an Optuna journal, a SQLite file, the URL of an Optuna
            storage, or a Study. `...#name` chooses one of several studies in a storage.

    Returns:
        What was found.

    Raises:
        SettingsError: The arguments cannot be satisfied; nothing was spent.
        SweepFailedError: No trial has a score, the storage failed, another driver took over, or the
            sweep was interrupted before it had a result.
    """
    check_kept(storage_uri(settings.storage_path))
    goal = Goal(metric, mode)
    sampler = TPESampler() if sampler is None else sampler
    check_sampler(sampler)
    job = make_job(settings, objective, load_data, make_model, make_data, trainer_kwargs)
    check_functions(
        objective=objective, make_model=make_model, make_data=make_data,
        trainer_kwargs=trainer_kwargs,
    )  # fmt: skip
    check_parts(callbacks=callbacks, scheduler=scheduler)
    if scheduler is not None:
        check_scheduler(scheduler, goal)
    stock = None if scheduler is None else type(scheduler).__name__
    request = Request(settings, goal, convert_space(space), stock, enqueue, warm_start)
    check_grid(request.space, settings)
    script = script_of(job.source)
    name = settings.name or _name_after(script)
    listener = Guarded(progress or Silent())
    # A scheduler keeps the trials it has seen: the caller's own is left as it is.
    parts = Parts(sampler, copy.deepcopy(scheduler), callbacks, listener)
    with (
        _quiet_optuna(),
        open_sweep(request, name, parts.progress.on_notice) as sweep,
        _failures_reported(sweep),
        running_ray(settings.address, script and script.parent) as joined,
    ):
        return _run(sweep, job, load_data, parts, read_autoscaler() if joined else Autoscaler())


def _run(
    sweep: OpenSweep,
    job: Job,
    load_data: Callable[[Any], Any] | None,
    parts: Parts,
    autoscaler: Autoscaler,
) -> SweepResult:
    """Plan, load, train, collect."""
    settings, progress = sweep.settings, parts.progress
    wait_for_workers(autoscaler, progress.on_notice)
    read = partial(read_capacity, autoscaler)
    resources = plan_resources(settings, read().nodes)
    if not sweep.folder.is_remote:
        check_shared(sweep.folder.path, resources)
    monitor = ClusterMonitor(resources, settings.max_concurrent, read, progress.on_notice)

    data = load_data(settings) if load_data is not None else None
    loaded = data if isinstance(data, Loaded) else Loaded(data)
    with sending(loaded.data):
        trainable = job.make_trainable(sweep.goal.metric, resources, loaded.data)
    record = sweep.begin(loaded.facts)
    driver = Driver(sweep, record, parts)
    progress.on_start(f"{_headline(sweep.name, driver)}, {resources}")
    for note in sweep.space.notes:
        progress.on_notice(note)
    monitor.tell_wait(driver.num_trials - driver.num_finished)

    workload = Workload(job, loaded, resources)
    if job.is_lightning:
        # While the trials do the same: the winner is tested in this process.
        threading.Thread(target=importlib.import_module, args=["pytorch_lightning"]).start()
    grid = driver.run(trainable, resources, monitor)
    return collect_results(sweep, record, workload, grid, driver.ended)


def _headline(name: str, driver: Driver) -> str:
    total, finished, unfinished = driver.num_trials, driver.num_finished, driver.num_unfinished
    if not finished + unfinished:
        return f"Sweep {name}: {total} trials"
    return f"Resuming sweep {name}: {finished} of {total} trials finished, {unfinished} in progress"


def _name_after(script: Path | None) -> str:
    """The name of a sweep that was given none: job and time."""
    job = "sweep"
    if script is not None:
        job = script.parent.name if script.stem == "__main__" else script.stem
    return f"{job}-{datetime.now():%Y%m%d-%H%M%S}"


@contextmanager
def _failures_reported(sweep: OpenSweep) -> Iterator[None]:
    """Turn a Ctrl-C before or after the trials into an error that names the sweep to resume; where
    there is nothing to resume, no error says that there is."""
    try:
        yield
    except KeyboardInterrupt:
        if not sweep.is_kept:
            raise
        path = sweep.folder.uri
        raise SweepFailedError("interrupted.", path, Outcome.of(Kind.INTERRUPTED)) from None
    except SweepFailedError as error:
        if sweep.is_kept:
            raise
        if error.ended.kind == Kind.INTERRUPTED:
            raise KeyboardInterrupt from None
        never_began = Outcome.of(Kind.NEVER_BEGAN, error.ended.message)
        raise SweepFailedError(str(error), error.path, never_began) from error.__cause__


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Silence Optuna's line per trial, and restore its verbosity."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
