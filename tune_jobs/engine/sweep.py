"""Wires search, scheduler and trials to Ray's Tuner: `run_sweep`."""

import inspect
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import optuna
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.logger import JsonLoggerCallback

from tune_jobs.engine.checkpoints import KeepBestCheckpoints
from tune_jobs.engine.ending import SweepStopper
from tune_jobs.engine.resources import cluster_nodes, plan_resources
from tune_jobs.engine.results import STUDY_FILE, Sweep, collect_results
from tune_jobs.engine.scheduler import ASHA, EpochScheduler
from tune_jobs.engine.search import StudySearch
from tune_jobs.engine.settings import LightningSettings, Settings, SettingsError
from tune_jobs.engine.summary import print_trial
from tune_jobs.engine.trial import check_trainer_kwargs, function_trial, lightning_trial

__all__ = ["run_sweep"]

# Read by the driver when Ray and Tune start; a value that the user has set stays.
DRIVER_ENV = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's live table; the engine prints a line a trial instead
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the summary gives the log of each failed trial
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and TensorBoard would say everything thrice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
}

Space = dict[str, Any] | Callable[[optuna.Trial], dict[str, Any] | None]


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
    sampler: optuna.samplers.BaseSampler | None = None,
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
        objective: Maps a config to its score.
        load_data: Maps the settings to the data, once, in the driver; it reaches the trials through
            Ray's object store, which shares NumPy arrays without a copy.
        make_model: Maps a config and the data to a LightningModule.
        make_data: Maps a config and the data to a LightningDataModule.
        sampler: Any Optuna sampler, with its seed; None: TPE, seeded with the settings' seed.
        trainer_kwargs: Options, callbacks and loggers for each trial's Trainer.

    Raises:
        SettingsError: What was asked for cannot be done; nothing has been spent.
        SweepFailedError: No trial succeeded.
    """
    started = time.monotonic()
    trainer_kwargs = dict(trainer_kwargs or {})
    _check_arguments(settings, mode, objective, make_model, make_data, trainer_kwargs)
    name = settings.name or f"{_job_name(objective or make_model)}-{datetime.now():%Y%m%d-%H%M%S}"
    with _new_folder(settings, name) as folder, _running_ray(settings):
        with ThreadPoolExecutor(1) as pool:  # importing and reading overlap with Ray's start
            loading = pool.submit(_load, load_data, settings)
            _start_ray(settings)
            data = loading.result()
        resources = plan_resources(settings, cluster_nodes())
        print(f"Sweep {name}: {settings.num_trials} trials, {resources}", flush=True)
        storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if mode == "max" else "minimize",
            sampler=sampler or optuna.samplers.TPESampler(seed=settings.seed, constant_liar=True),
        )
        scheduler = _make_scheduler(settings, metric, mode)
        stopper = SweepStopper(scheduler, settings.time_budget_s)
        search = StudySearch(
            space, metric, mode, study, partial(_why_ended, scheduler, stopper), print_trial
        )
        if objective is not None:
            trainable = function_trial(objective, metric)
        else:
            assert isinstance(settings, LightningSettings)
            assert make_model is not None
            assert make_data is not None
            trial = lightning_trial(
                metric, settings.max_epochs, settings.seed, resources,
                make_model, make_data, trainer_kwargs,
            )  # fmt: skip
            trainable = tune.with_parameters(trial, data=data)
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
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=_storage(settings),
                verbose=0,
                stop=stopper,
                # Tune keeps the latest besides: it is what a trial resumes from.
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1,
                    checkpoint_score_attribute=metric,
                    checkpoint_score_order=mode,
                ),
                callbacks=[
                    JsonLoggerCallback(),
                    stopper.watcher,
                    KeepBestCheckpoints(settings.keep_checkpoints, metric, mode, scheduler.reasons),
                ],
            ),
        )
        grid = tuner.fit()
        search.tell_unfinished()
        return collect_results(
            settings, name, folder, metric, mode, study, grid, resources, data,
            make_model, make_data, time.monotonic() - started,
        )  # fmt: skip


def _check_arguments(
    settings: Settings,
    mode: str,
    objective: Any,
    make_model: Any,
    make_data: Any,
    trainer_kwargs: Mapping[str, Any],
) -> None:
    if mode not in ("max", "min"):
        raise SettingsError(f"mode must be 'max' or 'min', got {mode!r}.")
    if (objective is None) == (make_model is None or make_data is None):
        raise SettingsError("run_sweep takes either objective, or make_model and make_data.")
    if objective is None and not isinstance(settings, LightningSettings):
        raise SettingsError(
            f"a LightningModule is tuned with LightningSettings, got {type(settings).__name__}."
        )
    check_trainer_kwargs(trainer_kwargs)


def _make_scheduler(settings: Settings, metric: str, mode: str) -> EpochScheduler:
    if not isinstance(settings, LightningSettings):
        return EpochScheduler(metric, mode, stop_at=settings.stop_at)
    return ASHA(
        metric, mode, settings.max_epochs, settings.grace_epochs, settings.reduction_factor,
        settings.stop_at,
    )  # fmt: skip


def _why_ended(scheduler: EpochScheduler, stopper: SweepStopper, trial_id: str) -> str:
    return scheduler.reasons.get(trial_id) or stopper.reason or "ended by itself"


def _load(load_data: Callable[[Any], Any] | None, settings: Settings) -> Any:
    try:
        return load_data(settings) if load_data else None
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from error


@contextmanager
def _running_ray(settings: Settings) -> Iterator[None]:
    """Leave Ray as it was found: ours is shut down, one that the user started goes on."""
    was_running = ray.is_initialized()
    try:
        yield
    finally:
        if not was_running:
            ray.shutdown()


def _start_ray(settings: Settings) -> None:
    for variable, value in DRIVER_ENV.items():
        os.environ.setdefault(variable, value)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    try:
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"no Ray cluster answers at {settings.address!r}: {error}; check --address."
        ) from error


def _storage(settings: Settings) -> str:
    path = settings.storage_path
    return path if "://" in path else str(Path(path).expanduser().resolve())


@contextmanager
def _new_folder(settings: Settings, name: str) -> Iterator[Path]:
    """The sweep's own folder; where results go to a URL, one that is copied there at the end.

    Raises:
        SettingsError: The name is taken, or the path cannot be written.
    """
    if "://" in settings.storage_path:
        with tempfile.TemporaryDirectory() as local:
            yield from _uploaded(Path(local), f"{settings.storage_path.rstrip('/')}/{name}")
        return
    folder = Path(_storage(settings), name)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError:
        _refuse_name(name, folder)
    except OSError as error:
        raise SettingsError(
            f"storage_path {settings.storage_path} cannot be written ({error.strerror}); "
            "choose another with --storage-path."
        ) from error
    try:
        yield folder
    except SettingsError:
        for path in created:
            path.rmdir()
        raise


def _uploaded(local: Path, url: str) -> Iterator[Path]:
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(url)
        taken = filesystem.get_file_info(path).type != fs.FileType.NotFound
    except (OSError, ValueError) as error:
        raise SettingsError(f"storage_path {url} cannot be used: {error}.") from error
    if taken:
        _refuse_name(url.rpartition("/")[2], url)
    try:
        yield local
    finally:
        if any(local.iterdir()):
            fs.copy_files(str(local), path, destination_filesystem=filesystem)


def _refuse_name(name: str, folder: Any) -> NoReturn:
    raise SettingsError(f"name {name!r} is taken: {folder} is there; choose another --name.")


def _job_name(function: Any) -> str:
    """The file that the function was written in; "sweep" for a notebook."""
    try:
        file = Path(inspect.getfile(function))
    except (TypeError, OSError):
        return "sweep"
    main = getattr(sys.modules["__main__"], "__file__", None)
    return file.stem if file.suffix == ".py" and main else "sweep"
