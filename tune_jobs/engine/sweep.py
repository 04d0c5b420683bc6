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

import importlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState
from ray import tune

from tune_jobs.engine.cluster.connection import (
    check_shared,
    read_autoscaler,
    read_capacity,
    running_ray,
    wait_for_workers,
)
from tune_jobs.engine.cluster.monitor import ClusterWatch
from tune_jobs.engine.cluster.runtime_env import check_kept
from tune_jobs.engine.cluster.slots import Resources, plan_resources
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Reason
from tune_jobs.engine.core.settings import LightningSettings, Settings, SettingsError
from tune_jobs.engine.execution.callbacks import ResultLogs
from tune_jobs.engine.execution.queue import TrialQueue
from tune_jobs.engine.execution.stopper import SweepStopper, interruptible
from tune_jobs.engine.report.results import Sweep, SweepFailedError, collect_results
from tune_jobs.engine.report.summary import TrialPrinter
from tune_jobs.engine.search.asha import EpochScheduler, PromotionASHA, StoppingASHA
from tune_jobs.engine.search.study_search import SearchSpace, Space, StudySearch, convert_space
from tune_jobs.engine.store.checkpoints import KeepBestCheckpoints, Shelf
from tune_jobs.engine.store.folder import SweepFolder, storage_uri
from tune_jobs.engine.store.opening import OpenSweep, open_sweep
from tune_jobs.engine.store.record import Record, id_of, promoted_from
from tune_jobs.engine.store.warm_start import others_of
from tune_jobs.engine.trainable.lightning import Recipe, function_trial, lightning_trial

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
    check_kept(storage_uri(settings.storage_path))
    goal = Goal(metric, mode)
    recipe = _make_recipe(settings, objective, load_data, make_model, make_data, trainer_kwargs)
    search_space = convert_space(space)
    source = _source_of(objective or make_model)
    job = source.stem if source else "sweep"
    name = settings.name or f"{job}-{datetime.now():%Y%m%d-%H%M%S}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with (
        open_sweep(settings, name, goal, search_space) as sweep,
        _interruptions_told(sweep.folder.uri),
        running_ray(settings.address, source and source.parent),
    ):
        settings = sweep.settings
        resources, watch = _look_at_cluster(settings, sweep.folder)
        data = load_data(settings) if load_data is not None else None
        record = sweep.begin(getattr(data, "name", None))
        print(f"{_headline(name, record, settings)}, {resources}", flush=True)
        watch.print_wait(_num_trials(record, settings) - _num_finished(record))
        if objective is not None:
            trainable = function_trial(objective, metric, resources)
        else:
            trainable = _make_lightning_trainable(recipe, goal, settings, resources, data)
            # While the trials do the same: the winner is tested in this process.
            _import_in_background("pytorch_lightning")
        driver = _Driver(sweep, record, search_space, sampler or TPESampler())
        grid = driver.run(trainable, resources, watch)
        return collect_results(
            settings,
            goal,
            record,
            driver.search,
            grid,
            sweep.folder,
            recipe=recipe,
            data=data,
            resources=resources,
            source=source.parent if source else None,
            started=started,
            ended=driver.stopper.reason,
        )


def _look_at_cluster(settings: Settings, folder: SweepFolder) -> tuple[Resources, ClusterWatch]:
    """Plan with what there is and what may come, and check that the folder is there for all.

    Raises:
        SettingsError: No node could ever hold a trial, or one does not see the folder.
    """
    autoscaler = read_autoscaler()
    wait_for_workers(autoscaler)
    read = partial(read_capacity, autoscaler)
    resources = plan_resources(settings, read().nodes)
    if not folder.is_remote:
        check_shared(folder.path, resources)
    return resources, ClusterWatch(resources, settings.max_concurrent, read)


@contextmanager
def _interruptions_told(path: str) -> Iterator[None]:
    """Say of a Ctrl-C before or after the trials, too, which sweep can be gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise SweepFailedError("interrupted.", path, Reason.INTERRUPTED) from None


class _Driver:
    """Drives the trials of a sweep that are not finished.

    Args:
        sweep: The sweep.
        record: Its record.
        space: What is searched.
        sampler: Any Optuna sampler.

    Attributes:
        search: Gives the configs, and is told how trials end.
        stopper: Knows what ended the sweep before its time.
    """

    def __init__(
        self, sweep: OpenSweep, record: Record, space: SearchSpace, sampler: BaseSampler
    ) -> None:
        self._settings, self._goal, self._folder = sweep.settings, sweep.goal, sweep.folder
        self._record = record
        record.mend_curves(self._goal.metric)
        printer = TrialPrinter(self._goal, record.trials())
        self._scheduler = _make_scheduler(
            self._settings,
            self._goal,
            record,
            lambda trial_id: printer.pause(record.trial(trial_id)),
        )
        self.stopper = SweepStopper(
            self._scheduler, record, sweep.lost, self._settings.time_budget_s
        )
        self.search = StudySearch(
            space,
            self._goal,
            record,
            sampler,
            self._settings.seed,
            self._scheduler.endings,
            others_of(sweep.manifest.others),
            printer,
            self._scheduler.rungs,
            self._scheduler.has_to_wait,
            goes_with_snapshots=self._folder.is_remote,
        )
        for trial in record.started():
            is_complete = trial.state == TrialState.COMPLETE
            curve = trial.intermediate_values
            self._scheduler.replay(id_of(trial), curve, promoted_from(trial), is_complete)
        self.search.end_decided()

    def run(self, trainable: Any, resources: Resources, watch: ClusterWatch) -> tune.ResultGrid:
        """Run them, each told to the study as it ends.

        Raises:
            SweepFailedError: The storage failed, or another driver has taken over.
        """
        stopper = self.stopper
        tuner = self._make_tuner(trainable, resources, watch)
        try:
            with _pending_trials(), interruptible(stopper):
                grid = tuner.fit()
        except Exception as error:
            if stopper.trouble is None:
                raise
            raise SweepFailedError(stopper.trouble, self._folder.uri, stopper.reason) from error
        if stopper.trouble is not None:
            raise SweepFailedError(stopper.trouble, self._folder.uri, stopper.reason)
        if stopper.reason is not None and not stopper.reason.is_resumable:
            self.search.end_unfinished(stopper.reason)
        return grid

    def _make_tuner(self, trainable: Any, resources: Resources, watch: ClusterWatch) -> tune.Tuner:
        settings, goal = self._settings, self._goal
        keeper = KeepBestCheckpoints(settings.keep_checkpoints, goal, self._scheduler.endings)
        queue = TrialQueue(
            self.search,
            self._scheduler,
            self._record.started(),
            lambda: watch.slots,
            lambda: self.stopper.reason is not None,
            Shelf(self._folder.filesystem, self._folder.path),
            keeper.recall,
        )
        return tune.Tuner(
            tune.with_resources(trainable, resources.per_trial),
            tune_config=tune.TuneConfig(
                search_alg=queue,
                scheduler=self._scheduler,
                num_samples=_num_trials(self._record, settings),
                # Else every trial would start a process and import torch and Lightning anew.
                reuse_actors=True,
                trial_dirname_creator=self.search.folder_of,
            ),
            run_config=tune.RunConfig(
                name=self._folder.path.rpartition("/")[-1],
                storage_path=storage_uri(settings.storage_path),
                verbose=0,
                stop=self.stopper,
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                # Tune keeps the latest besides: it is what a trial resumes from.
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1,
                    checkpoint_score_attribute=goal.metric,
                    checkpoint_score_order=goal.mode,
                ),
                callbacks=[ResultLogs(self._record), self.stopper.watcher, keeper, watch],
            ),
        )


def _headline(name: str, record: Record, settings: Settings) -> str:
    trials, total = record.started(), _num_trials(record, settings)
    if not trials:
        return f"Sweep {name}: {total} trials"
    finished = _num_finished(record)
    return (
        f"Sweep {name}, resumed: {finished} of {total} trials are finished, "
        f"{len(trials) - finished} wait or go on"
    )


def _num_finished(record: Record) -> int:
    return sum(trial.state.is_finished() for trial in record.started())


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
        if isinstance(settings, LightningSettings) and settings.asha == "promotion":
            raise SettingsError(
                "objective keeps no checkpoint from which promotion could let it go on; give "
                "asha='stopping', or Settings, which has no ASHA."
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


@contextmanager
def _pending_trials() -> Iterator[None]:
    """Let all trials wait that `TrialQueue` hands out: Tune lets one at a time, and slots fill one
    by one, unless its own limiter of concurrency is used, which knows nothing of recorded ones."""
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(name)
    os.environ[name] = before or str(sys.maxsize)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _make_scheduler(
    settings: Settings, goal: Goal, record: Record, on_pause: Callable[[str], None]
) -> EpochScheduler:
    if not isinstance(settings, LightningSettings):
        return EpochScheduler(goal, stop_at=settings.stop_at, record=record)
    rule = (settings.max_epochs, settings.grace_epochs, settings.reduction_factor)
    if settings.asha == "stopping":
        return StoppingASHA(goal, *rule, settings.stop_at, record)
    return PromotionASHA(goal, *rule, settings.stop_at, record, on_pause)


def _source_of(function: Any) -> Path | None:
    """The file that the job is written in; None in a notebook."""
    try:
        file = Path(inspect.getfile(function))
    except (TypeError, OSError):
        return None
    # A notebook's cells have files too, which go with it.
    return file if file.is_file() and hasattr(sys.modules["__main__"], "__file__") else None
