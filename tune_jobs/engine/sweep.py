"""Wires search, scheduler and trials to Ray's Tuner: `run_sweep`."""

import importlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from ray import tune

from tune_jobs.engine.callbacks import KeepBestCheckpoints, ResultLogs
from tune_jobs.engine.cluster import cluster_nodes, running_ray
from tune_jobs.engine.ending import SweepStopper
from tune_jobs.engine.goal import Goal
from tune_jobs.engine.reasons import Reason
from tune_jobs.engine.resources import Resources, plan_resources
from tune_jobs.engine.results import Sweep, collect_results
from tune_jobs.engine.scheduler import ASHA, EpochScheduler
from tune_jobs.engine.search import SearchSpace, Space, StudySearch, convert_space
from tune_jobs.engine.settings import LightningSettings, Settings, SettingsError
from tune_jobs.engine.storage import new_folder, storage_uri
from tune_jobs.engine.study import study_storage
from tune_jobs.engine.summary import print_trial
from tune_jobs.engine.trial import Recipe, function_trial, lightning_trial

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
        sampler: Any Optuna sampler, with its seed; None: TPE, seeded with the settings' seed.
        trainer_kwargs: Options, callbacks and loggers for each trial's Trainer. Each trial gets its
            own copies.

    Raises:
        SettingsError: What was asked for cannot be done; nothing has been spent.
        SweepFailedError: No trial succeeded.
    """
    started = time.monotonic()
    goal = Goal(metric, mode)
    recipe = _make_recipe(settings, objective, load_data, make_model, make_data, trainer_kwargs)
    search_space = convert_space(space)
    source = _source_of(objective or make_model)
    job = source.stem if source else "sweep"
    name = settings.name or f"{job}-{datetime.now():%Y%m%d-%H%M%S}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with new_folder(settings.storage_path, name) as folder, running_ray(settings.address):
        resources = plan_resources(settings, cluster_nodes())
        data = load_data(settings) if load_data is not None else None
        print(f"Sweep {name}: {settings.num_trials} trials, {resources}", flush=True)
        study = optuna.create_study(
            storage=study_storage(folder),
            study_name=name,
            direction=goal.direction,
            sampler=sampler or TPESampler(seed=settings.seed, constant_liar=True),
        )
        if objective is not None:
            trainable = function_trial(objective, metric, resources)
        else:
            trainable = _make_lightning_trainable(recipe, goal, settings, resources, data)
            # While the trials do the same: the winner is tested in this process.
            _import_in_background("pytorch_lightning")
        grid = _run_trials(trainable, study, search_space, goal, settings, resources)
        return collect_results(
            settings,
            goal,
            study,
            grid,
            folder,
            recipe=recipe,
            data=data,
            resources=resources,
            source=source.parent if source else None,
            started=started,
        )


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
    study: optuna.Study,
    space: SearchSpace,
    goal: Goal,
    settings: Settings,
    resources: Resources,
) -> tune.ResultGrid:
    """Run the trials, each told to the study as it ends, those that the end cuts short included."""
    scheduler = _make_scheduler(settings, goal)
    stopper = SweepStopper(scheduler, settings.time_budget_s)
    search = StudySearch(space, goal, study, scheduler.reasons, partial(print_trial, goal))
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources.per_trial),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=settings.num_trials,
            # Unset, Tune lets one trial wait at a time and slots fill one by one.
            max_concurrent_trials=resources.slots,
            # Else every trial would start a process and import torch and Lightning anew.
            reuse_actors=True,
            trial_dirname_creator=search.folder_of,
        ),
        run_config=tune.RunConfig(
            name=study.study_name,
            storage_path=storage_uri(settings.storage_path),
            verbose=0,
            stop=stopper,
            # Tune keeps the latest besides: it is what a trial resumes from.
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=goal.metric,
                checkpoint_score_order=goal.mode,
            ),
            callbacks=[
                ResultLogs(),
                stopper.watcher,
                KeepBestCheckpoints(settings.keep_checkpoints, goal, scheduler.reasons),
            ],
        ),
    )
    grid = tuner.fit()
    search.tell_unfinished(stopper.reason or Reason.INTERRUPTED)
    return grid


def _make_scheduler(settings: Settings, goal: Goal) -> EpochScheduler:
    if not isinstance(settings, LightningSettings):
        return EpochScheduler(goal, stop_at=settings.stop_at)
    return ASHA(
        goal,
        settings.max_epochs,
        settings.grace_epochs,
        settings.reduction_factor,
        settings.stop_at,
    )


def _source_of(function: Any) -> Path | None:
    """The file that the job is written in; None in a notebook."""
    try:
        file = Path(inspect.getfile(function))
    except (TypeError, OSError):
        return None
    # A notebook's cells have files too, which go with it.
    return file if file.is_file() and hasattr(sys.modules["__main__"], "__file__") else None
