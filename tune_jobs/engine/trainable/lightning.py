"""The job that trains a LightningModule: `LightningJob`, its trial, and the Trainer of both.

Modules of both Lightning packages work. The Trainer and the report callback come from the module's
own package, since a Trainer refuses the callbacks of the other package.
"""

import copy
import difflib
import importlib
import inspect
import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import ray
from pyarrow import fs
from ray import tune

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.errors import CheckpointError, MetricNotLoggedError, SettingsError
from tune_jobs.engine.core.layout import CHECKPOINT_FILE
from tune_jobs.engine.core.result import ENDS_ITSELF
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.store.checkpoints import check_checkpoint
from tune_jobs.engine.trainable.internals import name_version, version_of
from tune_jobs.engine.trainable.process import (
    OrderlyTrial,
    check_storage,
    get_random_states,
    prepare_device,
    set_random_states,
)
from tune_jobs.engine.trainable.users_code import run_users_code

__all__ = ["LightningJob", "lightning_package", "make_trainer"]

# The engine sets these from the settings; a second value for one of them would make settings lie.
ENGINE_KWARGS = {
    "accelerator": "--gpus-per-trial",
    "devices": "--gpus-per-trial",
    "num_nodes": "--gpus-per-trial",
    "strategy": "--gpus-per-trial",
    "max_epochs": "--max-epochs",
    "min_epochs": "--grace-epochs",
    "min_steps": "--grace-epochs",
    "max_steps": "--max-epochs",
    "max_time": "--time-budget-s",
    "fast_dev_run": "--max-epochs 1 and limit_train_batches",
    "enable_checkpointing": "--keep-checkpoints",
    "barebones": "the single options that it turns off",
}
# Lightning's own logs and bars repeat what Tune keeps; a user may turn them on again.
QUIET_KWARGS = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

# The key of the report callback's state in a checkpoint, and the one in checkpoints of 0.1.0's
# development, which were named after a local class. Both hold the random states.
STATE_KEY = "tune_jobs.random_states"
OLD_STATE_KEY = "_make_report_callback.<locals>.ReportCallback"


@dataclass(frozen=True)
class LightningJob:
    """Trains a LightningModule.

    Attributes:
        make_model: Maps a config and the data to a LightningModule.
        make_data: Maps a config and the data to a LightningDataModule.
        halving: Says how many epochs a trial trains at most.
        seed: Of every trial.
        trainer_kwargs: Options, callbacks and loggers for each trial's Trainer.

    Raises:
        SettingsError: An option of the Trainer is unknown, or the engine sets it.
    """

    make_model: Callable[[dict[str, Any], Any], Any]
    make_data: Callable[[dict[str, Any], Any], Any]
    halving: Halving
    seed: int = 0
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    is_lightning: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        if not self.trainer_kwargs:
            return
        from pytorch_lightning import Trainer  # here: it takes seconds, and few jobs need it

        known = inspect.signature(Trainer.__init__).parameters
        for name in self.trainer_kwargs:
            if name in ENGINE_KWARGS:
                raise SettingsError(
                    f"trainer_kwargs must not hold {name!r}, which the engine sets; "
                    f"use {ENGINE_KWARGS[name]}."
                )
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
                raise SettingsError(f"trainer_kwargs holds {name!r}, no option of Trainer{hint}")

    @property
    def source(self) -> Callable[..., Any]:
        """The function by which the job's own code is found."""
        return self.make_model

    def make_trainable(self, metric: str, resources: Resources, data: Any) -> Any:
        """What Tune runs: a trial that trains the model and reports each validated epoch."""

        def trial(config: dict[str, Any], data: Any) -> None:
            run_users_code(partial(_train, self, config, data, metric, resources))

        trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
        # By reference: of data that cannot be sent, Tune would keep a part that fails `ray.init`.
        return tune.with_parameters(trial, data=ray.put(data))


def make_trainer(model: Any, resources: Resources, **kwargs: Any) -> Any:
    """A quiet Trainer of the model's own Lightning package, on the trial's device.

    Args:
        model: A LightningModule.
        resources: What the trial holds; a share of a GPU means that GPU.
        kwargs: Further options, which override the quiet ones.
    """
    import torch

    # Logical GPUs (`ray start --num-gpus`) let a user rehearse a cluster without one.
    on_gpu = resources.gpus > 0 and torch.cuda.is_available()
    accelerator = "gpu" if on_gpu else "cpu"  # never "auto", which would take a laptop's own
    trainer_type = lightning_package(model).Trainer
    return trainer_type(accelerator=accelerator, devices=1, **{**QUIET_KWARGS, **kwargs})


def lightning_package(module: Any) -> Any:
    """`lightning.pytorch` or `pytorch_lightning`, whichever the module is built on.

    Raises:
        TypeError: It is a LightningModule of neither.
    """
    for base in type(module).__mro__:
        if base.__name__ == "LightningModule":
            package = base.__module__.partition(".")[0]
            name = "lightning.pytorch" if package == "lightning" else package
            return importlib.import_module(name)
    raise TypeError(f"make_model must return a LightningModule, got {type(module).__name__}.")


def _train(
    job: LightningJob, config: dict[str, Any], data: Any, metric: str, resources: Resources
) -> None:
    check_storage()
    prepare_device(resources)
    from lightning_fabric import seed_everything  # the seeds are global: for either package

    seed_everything(job.seed, workers=True, verbose=False)
    model = job.make_model(config, data)
    pl = lightning_package(model)
    report = _make_report_callback(pl, metric)
    # Callbacks keep state and the process serves many trials: each trial gets its own copies.
    kwargs = copy.deepcopy(dict(job.trainer_kwargs))
    kwargs["callbacks"] = [*_as_list(kwargs.get("callbacks")), report]
    trial_folder = Path(tune.get_context().get_trial_dir()).name
    _name_versions(pl, _as_list(kwargs.get("logger")), trial_folder)
    trainer = make_trainer(model, resources, max_epochs=job.halving.max_epochs, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _resume_from(folder)
        trainer.fit(
            model,
            job.make_data(config, data),
            ckpt_path=checkpoint,
            weights_only=checkpoint is None or _is_plain(checkpoint),
        )
    if report.stopped:
        sys.exit(0)  # as Ray's own stop does, but after Lightning has ended cleanly
    if not report.has_reported:
        raise MetricNotLoggedError(
            f"the model never logs {metric!r}: it was never validated in its "
            f"{trainer.current_epoch} epochs."
        )


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value] if value else []


def _name_versions(pl: Any, loggers: list[Any], trial_folder: str) -> None:
    """Give each trial its own folder below a file logger's, and each stretch of a resumed trial.

    Two trials in parallel would both find the same next number free, and overwrite each other's
    files. A CSVLogger deletes what it finds in its folder.
    """
    for logger in loggers:
        is_csv = isinstance(logger, pl.loggers.CSVLogger)
        is_of_files = is_csv or isinstance(logger, pl.loggers.TensorBoardLogger)
        if not is_of_files or version_of(logger) is not None:
            continue
        name_version(logger, trial_folder)
        parts = itertools.count(2)
        while is_csv and Path(logger.log_dir).exists():
            name_version(logger, f"{trial_folder}_part_{next(parts)}")


def _resume_from(folder: str) -> str | None:
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    checkpoint.to_directory(folder)
    check_checkpoint(fs.LocalFileSystem(), folder)
    return str(Path(folder, CHECKPOINT_FILE))


def _is_plain(checkpoint: str) -> bool:
    """Whether it holds nothing that needs unpickling; a user's hyperparameters may."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    return not get_unsafe_globals_in_checkpoint(checkpoint)


def _make_report_callback(pl: Any, metric: str) -> Any:
    class ReportCallback(pl.callbacks.Checkpoint):
        """Reports each validated epoch to Tune with a checkpoint, and stops when Tune says so.

        It reports at the end of the training epoch: at the end of the validation before it, the
        first epoch has no training metrics yet. It is a `Checkpoint`, which Lightning calls after
        the module's own `on_train_epoch_end`, so that it sees what is logged there.
        """

        state_key = STATE_KEY

        def __init__(self) -> None:
            self.has_reported = False
            self.stopped = False
            self._validated = False

        def state_dict(self) -> dict[str, Any]:
            return get_random_states()

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
            states = checkpoint.get("callbacks", {})
            if OLD_STATE_KEY in states:
                states[STATE_KEY] = states.pop(OLD_STATE_KEY)

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            # Here: by `on_train_start`, the order of the first batches has been drawn.
            set_random_states(state_dict)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self._validated = not trainer.sanity_checking

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.enable_validation and not self._validated:
                return  # validation is rarer than epochs, and its metrics are stale
            self._validated = False
            metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if v.numel() == 1}
            if metric not in metrics:
                raise MetricNotLoggedError(
                    f"the model never logs {metric!r}; it logs {', '.join(sorted(metrics))}."
                )
            result = {**metrics, "epoch": trainer.current_epoch + 1}
            result["device"] = str(pl_module.device)
            if trainer.should_stop:
                result[ENDS_ITSELF] = True
            self._report(trainer, result)

        def _report(self, trainer: Any, metrics: dict[str, Any]) -> None:
            self.has_reported = True
            try:
                if not math.isfinite(metrics[metric]):
                    tune.report(metrics)  # no checkpoint: the weights have diverged
                    return
                with tempfile.TemporaryDirectory() as folder:
                    trainer.save_checkpoint(Path(folder, CHECKPOINT_FILE))
                    tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
            except OSError as error:
                raise CheckpointError(f"a checkpoint cannot be stored: {error}") from error
            except SystemExit:
                # Ray's stop. If it passed through, Lightning would end as after a failure: loggers
                # would get "failed", and on_fit_end would never run.
                self.stopped = True
                trainer.should_stop = True

    return ReportCallback()
