"""Wires search, scheduler and trials to Ray's Tuner: `run_sweep`; new, resumed, extended.

Of what a sweep leaves behind, one is the authority: the study in `study.log`, an append-only
journal. The scheduler enters a result together with what is about to be done about it, flushed to
the disk, before anything acts on it: before the trial is stopped, an older checkpoint deleted, a
line printed. So whatever was shown is recorded, and whatever is recorded can be gone on from, since
a worker has stored the checkpoint before it reports the result. A resumed sweep is a new one to
Tune: rungs, the sampler's view, Tune's trials with their checkpoints and result files, trials.csv
and best.json are all made anew from the record, and Tune's own snapshots, which are written 10 s
and more apart, are never read. A trial goes on from its last recorded checkpoint; what it had
reported beyond that stays until it is trained again, and is then replaced.
"""

import dataclasses
import importlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState
from ray import tune

from tune_jobs.engine.callbacks import ResultLogs
from tune_jobs.engine.checkpoints import KeepBestCheckpoints, Shelf, check_checkpoint
from tune_jobs.engine.cluster import cluster_nodes, running_ray
from tune_jobs.engine.ending import SweepStopper, interruptible
from tune_jobs.engine.goal import Goal
from tune_jobs.engine.lock import LOCK_FILE, SweepLock
from tune_jobs.engine.manifest import MANIFEST_FILE, Manifest
from tune_jobs.engine.reasons import CheckpointError, Reason
from tune_jobs.engine.record import Record, folder_name, is_started, reason_of, results_of
from tune_jobs.engine.resources import Resources, plan_resources
from tune_jobs.engine.results import BEST_FILE, Sweep, SweepFailedError, collect_results
from tune_jobs.engine.scheduler import ASHA, EpochScheduler
from tune_jobs.engine.search import SearchSpace, Space, StudySearch, convert_space
from tune_jobs.engine.seeding import (
    enqueue,
    keep_others,
    others_of,
    read_configs,
    read_others,
    retry_failed,
)
from tune_jobs.engine.settings import LightningSettings, Settings, SettingsError
from tune_jobs.engine.storage import SweepFolder, new_folder, old_folder, storage_uri
from tune_jobs.engine.study import STUDY_FILE
from tune_jobs.engine.summary import TrialPrinter
from tune_jobs.engine.trial import Recipe, function_trial, lightning_trial
from tune_jobs.engine.trials import TrialQueue

__all__ = ["run_sweep"]


def run_sweep(
    settings: Settings,
    *,
    space: Space,
    metric: str,
    mode: str,
    objective: Callable[[dict[str, Any]], float] | None = None,
    load_data: Callable[[Any], Any] | None = None,
    make_model: Callable[[dict[str, Any], Any], Any] | None = None,
    make_data: Callable[[dict[str, Any], Any], Any] | None = None,
    sampler: BaseSampler | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
) -> Sweep:
    """Search a space and return what was found; also what a notebook calls.

    Give either `objective`, a plain function, or `make_model` and `make_data`, and then settings
    that are `LightningSettings`.

    Args:
        settings: What the user set.
        space: A Tune search space, or a define-by-run function of an Optuna trial.
        metric: What is optimised; the name under which the model logs it.
        mode: "max" or "min".
        objective: Maps a config to its score; may report earlier ones with `ray.tune.report`.
        load_data: Maps the settings to the data, once, in the driver; it reaches the trials through
            Ray's object store, which shares NumPy arrays without a copy.
        make_model: Maps a config and the data to a LightningModule.
        make_data: Maps a config and the data to a LightningDataModule.
        sampler: Any Optuna sampler; None: TPE. What it draws for a trial depends on the settings'
            seed and the trial's number, as its random states are set from these.
        trainer_kwargs: Options, callbacks and loggers for each trial's Trainer. Each trial gets its
            own copies.

    Raises:
        SettingsError: What was asked for cannot be done; nothing has been spent.
        SweepFailedError: No trial succeeded, or the storage failed.
    """
    started = time.monotonic()
    goal = Goal(metric, mode)
    recipe = _make_recipe(settings, objective, load_data, make_model, make_data, trainer_kwargs)
    search_space = convert_space(space)
    source = _source_of(objective or make_model)
    job = source.stem if source else "sweep"
    name = settings.name or f"{job}-{datetime.now():%Y%m%d-%H%M%S}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lost = threading.Event()
    with _locked_folder(settings, name, lost) as folder:
        manifest, record = Manifest.of(settings, goal, search_space), None
        if settings.resume and (earlier := _read_earlier(folder)):
            earlier.check(manifest)
            manifest = earlier
            if earlier.data is not None and getattr(settings, "data", None) == "auto":
                settings = dataclasses.replace(settings, data=earlier.data)  # type: ignore[call-arg]
            record = Record.open(folder.local, lost)
            _check_checkpoints(record, folder)
        configs = read_configs(settings.enqueue, search_space) if settings.enqueue else []
        others = []
        if settings.warm_start and record is None:
            others = read_others(settings.warm_start, goal, search_space, settings.storage_path)
        with running_ray(settings.address):
            resources = plan_resources(settings, cluster_nodes())
            data = load_data(settings) if load_data is not None else None
            data_name = getattr(data, "name", None)
            if record is None:
                dataclasses.replace(manifest, data=data_name).write(folder.local)
                record = Record.create(folder.local, name, goal, lost)
                keep_others(record, others)
            elif data_name != manifest.data:
                raise SettingsError(
                    f"the sweep cannot be resumed with other data: its data is {manifest.data}, "
                    f"not {data_name}."
                )
            enqueue(record, configs)
            if settings.retry_failed:
                retry_failed(record)
            folder.publish()
            print(f"{_headline(name, record, settings)}, {resources}", flush=True)
            if objective is not None:
                trainable = function_trial(objective, metric, resources)
            else:
                trainable = _make_lightning_trainable(recipe, goal, settings, resources, data)
                # While the trials do the same: the winner is tested in this process.
                _import_in_background("pytorch_lightning")
            search, grid, ended = _run_trials(
                trainable,
                record,
                search_space,
                sampler or TPESampler(constant_liar=True),
                goal,
                settings,
                resources,
                folder,
                lost,
            )
            return collect_results(
                settings,
                goal,
                record,
                search,
                grid,
                folder,
                recipe=recipe,
                data=data,
                resources=resources,
                source=source.parent if source else None,
                started=started,
                ended=ended,
            )


@contextmanager
def _locked_folder(settings: Settings, name: str, lost: threading.Event) -> Iterator[SweepFolder]:
    """The sweep's folder, for this driver alone."""
    if settings.resume:
        files = (STUDY_FILE, MANIFEST_FILE, BEST_FILE)
        opened = old_folder(settings.storage_path, name, *files)
    else:
        opened = new_folder(settings.storage_path, name)
    with opened as folder, SweepLock(folder.filesystem, f"{folder.path}/{LOCK_FILE}", lost.set):
        yield folder


def _read_earlier(folder: SweepFolder) -> Manifest | None:
    """What the sweep was started with; None where its driver died before anything was recorded."""
    if (folder.local / MANIFEST_FILE).exists():
        has_record = (folder.local / STUDY_FILE).exists()
        was_started = any(folder.local.glob("trial_*"))
        return Manifest.read(folder.local) if has_record or was_started else None
    if any((folder.local / file).exists() for file in (STUDY_FILE, BEST_FILE)):
        raise SettingsError(
            f"{folder.uri} has no {MANIFEST_FILE}: another version of tune_jobs made it, which "
            "this one cannot go on with; nothing has been changed. Start a new sweep with "
            "another --name; --warm-start needs that file too."
        )
    return None


def _check_checkpoints(record: Record, folder: SweepFolder) -> None:
    """See that unfinished trials can go on, before anything is spent."""
    unfinished = [trial for trial in record.trials() if trial.state == TrialState.RUNNING]
    shelf = Shelf(folder.filesystem, folder.path) if unfinished else None
    for trial in unfinished:
        assert shelf is not None
        kept = shelf.of(folder_name(trial.number), results_of(trial))
        for epoch in sorted(kept)[-1:]:
            try:
                check_checkpoint(folder.filesystem, kept[epoch])
            except CheckpointError as error:
                raise SettingsError(
                    f"trial {trial.number} cannot go on: {error}; nothing has been changed. Put "
                    f"back a copy of it, or delete {kept[epoch]}: the trial then goes on from the "
                    "checkpoint before, or anew."
                ) from error


def _headline(name: str, record: Record, settings: Settings) -> str:
    trials = [trial for trial in record.trials() if is_started(trial)]
    total = _num_trials(record, settings)
    if not trials:
        return f"Sweep {name}: {total} trials"
    finished = sum(trial.state.is_finished() for trial in trials)
    return (
        f"Sweep {name}, resumed: {finished} of {total} trials are finished, "
        f"{len(trials) - finished} go on"
    )


def _num_trials(record: Record, settings: Settings) -> int:
    """Trials in all; those that run a failed one again come on top, and what waits is run."""
    return max(settings.num_trials + record.num_retries, record.num_trials)


def _make_recipe(
    settings: Settings,
    objective: Any,
    load_data: Any,
    make_model: Any,
    make_data: Any,
    trainer_kwargs: Mapping[str, Any] | None,
) -> Recipe | None:
    if (objective is None) == (make_model is None or make_data is None):
        raise SettingsError("run_sweep takes either objective, or make_model and make_data.")
    if objective is not None:
        if make_model or make_data or load_data or trainer_kwargs:
            raise SettingsError(
                "load_data, make_model, make_data and trainer_kwargs go with a LightningModule, "
                "not with objective, which takes the config alone."
            )
        return None
    if not isinstance(settings, LightningSettings):
        raise SettingsError(
            f"a LightningModule is tuned with LightningSettings, got {type(settings).__name__}."
        )
    return Recipe(make_model, make_data, trainer_kwargs or {})


def _make_lightning_trainable(
    recipe: Recipe | None, goal: Goal, settings: Settings, resources: Resources, data: Any
) -> Any:
    assert recipe is not None
    assert isinstance(settings, LightningSettings)
    trial = lightning_trial(recipe, goal.metric, settings, resources)
    return tune.with_parameters(trial, data=data)


def _import_in_background(module: str) -> None:
    threading.Thread(target=importlib.import_module, args=[module]).start()


def _run_trials(
    trainable: Any,
    record: Record,
    space: SearchSpace,
    sampler: BaseSampler,
    goal: Goal,
    settings: Settings,
    resources: Resources,
    folder: SweepFolder,
    lost: threading.Event,
) -> tuple[StudySearch, tune.ResultGrid, Reason | None]:
    """Run the trials that are not finished, each told to the study as it ends.

    Returns:
        The search, Ray's results, and what ended the sweep before its time, or None.

    Raises:
        SweepFailedError: The storage failed, or another driver has taken over.
    """
    record.mend_curves(goal.metric)
    scheduler = _make_scheduler(settings, goal, record)
    stopper = SweepStopper(scheduler, record, lost, settings.time_budget_s)
    keeper = KeepBestCheckpoints(settings.keep_checkpoints, goal, scheduler.endings)
    search = StudySearch(
        space,
        goal,
        record,
        sampler,
        settings.seed,
        scheduler.endings,
        others_of(record),
        TrialPrinter(goal, record.trials()),
        goes_with_snapshots=folder.is_remote,
    )
    for trial in [trial for trial in record.trials() if is_started(trial)]:
        scheduler.replay(trial.user_attrs["trial_id"], trial.intermediate_values)
        reason = reason_of(trial)
        if reason is not None:  # the driver died between the decision and the trial's end
            search.end(trial.user_attrs["trial_id"], reason)
    queue = TrialQueue(
        search,
        [trial for trial in record.trials() if is_started(trial)],
        resources.slots,
        Shelf(folder.filesystem, folder.path),
        keeper.recall,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources.per_trial),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            scheduler=scheduler,
            num_samples=_num_trials(record, settings),
            # Else every trial would start a process and import torch and Lightning anew.
            reuse_actors=True,
            trial_dirname_creator=search.folder_of,
        ),
        run_config=tune.RunConfig(
            name=folder.uri.rpartition("/")[-1],
            storage_path=storage_uri(settings.storage_path),
            verbose=0,
            stop=stopper,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            # Tune keeps the latest besides: it is what a trial resumes from.
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=goal.metric,
                checkpoint_score_order=goal.mode,
            ),
            callbacks=[ResultLogs(record), stopper.watcher, keeper],
        ),
    )
    try:
        with _pending_trials(resources.slots), interruptible(stopper):
            grid = tuner.fit()
    except Exception as error:
        if stopper.reason not in (Reason.STORAGE, Reason.LOCK_LOST):
            raise
        raise SweepFailedError(stopper.trouble, folder.uri, stopper.reason) from error
    if stopper.reason in (Reason.STORAGE, Reason.LOCK_LOST):
        raise SweepFailedError(stopper.trouble, folder.uri, stopper.reason)
    if stopper.reason is not None and not stopper.reason.is_resumable:
        search.end_unfinished(stopper.reason)
    return search, grid, stopper.reason


@contextmanager
def _pending_trials(slots: int) -> Iterator[None]:
    """Let as many trials wait as there are slots: Tune lets one at a time, and slots fill one by
    one, unless its own limiter of concurrency is used, which knows nothing of recorded trials."""
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(name)
    os.environ[name] = before or str(slots)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _make_scheduler(settings: Settings, goal: Goal, record: Record) -> EpochScheduler:
    if not isinstance(settings, LightningSettings):
        return EpochScheduler(goal, stop_at=settings.stop_at, record=record.report)
    return ASHA(
        goal,
        settings.max_epochs,
        settings.grace_epochs,
        settings.reduction_factor,
        settings.stop_at,
        record.report,
    )


def _source_of(function: Any) -> Path | None:
    """The file that the job is written in; None in a notebook."""
    try:
        file = Path(inspect.getfile(function))
    except (TypeError, OSError):
        return None
    # A notebook's cells have files too, which go with it.
    return file if file.is_file() and hasattr(sys.modules["__main__"], "__file__") else None
