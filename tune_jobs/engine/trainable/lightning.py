"""What runs inside a trial: Trainer, report callback, GPU guard.

Modules of both Lightning packages work: Trainer and callback come from the module's own one, since
a Trainer refuses the other's callbacks.
"""

import copy
import difflib
import importlib
import inspect
import itertools
import math
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs
from ray import tune
from ray.train._internal.session import get_session

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.goal import ENDS_ITSELF
from tune_jobs.engine.core.outcome import CheckpointError
from tune_jobs.engine.core.settings import LightningSettings, SettingsError
from tune_jobs.engine.store.checkpoints import CHECKPOINT_FILE, check_checkpoint

__all__ = [
    "MetricNotLoggedError",
    "OrderlyTrial",
    "Recipe",
    "function_trial",
    "lightning_package",
    "lightning_trial",
    "make_trainer",
    "prepare_device",
]

# Set by the engine from the settings. Two masters over one of these would make the settings lie.
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
# Lightning's own logs and bars double what Tune keeps; a user may turn them on again.
QUIET_KWARGS = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

STOP_PATIENCE_S = 60.0


class MetricNotLoggedError(KeyError):
    """The model never logs the metric that the sweep is judged by."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Recipe:
    """What a Lightning trial is made of.

    Attributes:
        make_model: Maps a config and the data to a LightningModule.
        make_data: Maps a config and the data to a LightningDataModule.
        trainer_kwargs: Options, callbacks and loggers for each trial's Trainer.

    Raises:
        SettingsError: An option of the Trainer is unknown, or set by the engine itself.
    """

    make_model: Callable[[dict[str, Any], Any], Any]
    make_data: Callable[[dict[str, Any], Any], Any]
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.trainer_kwargs:
            return
        from pytorch_lightning import Trainer  # here: it takes seconds, and few need it

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


class OrderlyTrial:
    """Mixed into Ray's function trainable: a stopped trial is waited for, a CPU trial sees no GPU.

    Ray gives a stopped training thread 2 s before its actor is used again, then marks the next
    trial ERROR without telling the searcher, which can hang the sweep (ray#29268); and the last
    trial of a slot is not waited for at all, so that loggers lose their end. It also leaves
    CUDA_VISIBLE_DEVICES alone for a trial without a GPU, which then sees them all.
    """

    def setup(self, config: dict[str, Any]) -> None:
        if not self.trial_resources.required_resources.get("GPU"):  # type: ignore[attr-defined]
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        super().setup(config)  # type: ignore[misc]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end_thread()
        return bool(super().reset_config(new_config))  # type: ignore[misc]

    def cleanup(self) -> None:
        try:
            self._end_thread()
        finally:
            super().cleanup()  # type: ignore[misc]

    def _end_thread(self) -> None:
        session = get_session()
        session.finish(timeout=STOP_PATIENCE_S)
        if session.training_started and session.training_thread.is_alive():
            # An error, unlike reset_config's False, is told to the searcher and frees the slot.
            raise RuntimeError(f"the trial before did not end within {STOP_PATIENCE_S:g} s.")


def function_trial(
    objective: Callable[[dict[str, Any]], float], metric: str, resources: Resources
) -> Callable[[dict[str, Any]], None]:
    """A trial that calls a plain function once and reports what it returns."""

    def trial(config: dict[str, Any]) -> None:
        if resources.gpus:  # one without needs no torch, nor the seconds of its import
            prepare_device(resources)
        tune.report({metric: float(objective(config))})

    trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
    return trial


def lightning_trial(
    recipe: Recipe, metric: str, settings: LightningSettings, resources: Resources
) -> Callable[..., None]:
    """A trial that trains `make_model(config, data)` on `make_data(config, data)`."""

    def trial(config: dict[str, Any], data: Any) -> None:
        _check_storage()
        prepare_device(resources)
        from lightning_fabric import seed_everything  # the seeds are global: for either package

        seed_everything(settings.seed, workers=True, verbose=False)
        model = recipe.make_model(config, data)
        pl = lightning_package(model)
        report = _make_report_callback(pl, metric)
        # Callbacks keep state and the process serves many trials: each trial gets its own copies.
        kwargs = copy.deepcopy(dict(recipe.trainer_kwargs))
        kwargs["callbacks"] = [*_as_list(kwargs.get("callbacks")), report]
        trial_folder = Path(tune.get_context().get_trial_dir()).name
        _name_versions(pl, _as_list(kwargs.get("logger")), trial_folder)
        trainer = make_trainer(model, resources, max_epochs=settings.max_epochs, **kwargs)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = _resume_from(folder)
            trainer.fit(
                model,
                recipe.make_data(config, data),
                ckpt_path=checkpoint,
                weights_only=checkpoint is None or _is_plain(checkpoint),
            )
        if report.stopped:
            sys.exit(0)  # as Ray's own stop does, but after Lightning has ended in order
        if not report.has_reported:
            raise MetricNotLoggedError(
                f"the model never logs {metric!r}: it was never validated in its "
                f"{trainer.current_epoch} epochs."
            )

    trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
    return trial


def make_trainer(model: Any, resources: Resources, **kwargs: Any) -> Any:
    """A quiet Trainer of the model's own Lightning package, on the trial's device.

    Args:
        model: A LightningModule.
        resources: What the trial holds; a share of a GPU means that GPU.
        kwargs: Further options, which win over the quiet ones.
    """
    import torch

    # Logical GPUs (`ray start --num-gpus`) let a cluster be rehearsed without one.
    on_gpu = resources.gpus > 0 and torch.cuda.is_available()
    accelerator = "gpu" if on_gpu else "cpu"  # never "auto": it would take a laptop's own
    trainer_type = lightning_package(model).Trainer
    return trainer_type(accelerator=accelerator, devices=1, **{**QUIET_KWARGS, **kwargs})


def prepare_device(resources: Resources) -> None:
    """Hold this process to its share: threads on the CPU, memory on the GPU."""
    import torch

    torch.set_num_threads(resources.num_threads)
    if resources.gpus and torch.cuda.is_available():
        # A share is bookkeeping to Ray; this makes it a limit on what torch allocates.
        torch.cuda.set_per_process_memory_fraction(resources.gpus)


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


def get_random_states() -> dict[str, Any]:
    """The random states of torch, NumPy and Python, as `torch.load(weights_only=True)` reads."""
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what `get_random_states` returned, so that a trial goes on as if it had never stopped."""
    import numpy as np
    import torch

    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value] if value else []


def _name_versions(pl: Any, loggers: list[Any], trial_folder: str) -> None:
    """Give each trial its own folder below a file logger's: side by side, two trials would both
    find the same next number free, and write over each other. And each stretch of a trial that was
    paused or killed, where the logger would delete what it finds."""
    for logger in loggers:
        is_csv = isinstance(logger, pl.loggers.CSVLogger)
        is_of_files = is_csv or isinstance(logger, pl.loggers.TensorBoardLogger)
        if not is_of_files or logger._version is not None:
            continue
        logger._version = trial_folder
        parts = itertools.count(2)
        while is_csv and Path(logger.log_dir).exists():
            logger._version = f"{trial_folder}_part_{next(parts)}"


def _check_storage() -> None:
    """Check that this node sees the sweep's folder, before a trial trains for its first checkpoint.

    Raises:
        CheckpointError: It does not.
    """
    storage = tune.get_context().get_storage()
    try:
        there = storage.storage_filesystem.get_file_info(storage.experiment_fs_path).type
    except OSError as error:  # a bucket that may be written to, and not listed
        raise CheckpointError(f"{storage.experiment_fs_path} cannot be read: {error}") from error
    if there == fs.FileType.NotFound:
        raise CheckpointError(
            f"node {socket.gethostname()} does not see {storage.experiment_fs_path}; "
            "--storage-path must be a folder that all nodes mount, or a URL"
        )


def _resume_from(folder: str) -> str | None:
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    checkpoint.to_directory(folder)
    check_checkpoint(fs.LocalFileSystem(), folder)
    return str(Path(folder, CHECKPOINT_FILE))


def _is_plain(checkpoint: str) -> bool:
    """Whether it holds nothing that has to be unpickled; a user's hyperparameters may have to."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    return not get_unsafe_globals_in_checkpoint(checkpoint)


def _make_report_callback(pl: Any, metric: str) -> Any:
    class ReportCallback(pl.callbacks.Checkpoint):
        """Reports each validated epoch to Tune with a checkpoint, and leaves when told to.

        It does so at the end of the training epoch: at the end of the validation before it, the
        first epoch has no training metrics yet. And as a `Checkpoint`, which Lightning calls after
        the module's own `on_train_epoch_end`, so that what is logged there is seen.
        """

        def __init__(self) -> None:
            self.has_reported = False
            self.stopped = False
            self._validated = False

        def state_dict(self) -> dict[str, Any]:
            return get_random_states()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            # Here: by `on_train_start` the order of the first batches has been drawn.
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
                    tune.report(metrics)  # weights that diverged are worth no checkpoint
                    return
                with tempfile.TemporaryDirectory() as folder:
                    trainer.save_checkpoint(Path(folder, CHECKPOINT_FILE))
                    tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
            except OSError as error:
                raise CheckpointError(f"a checkpoint cannot be stored: {error}") from error
            except SystemExit:
                # Ray's stop. Let through, it would end Lightning as a failure: loggers are told
                # "failed" and on_fit_end never runs.
                self.stopped = True
                trainer.should_stop = True

    return ReportCallback()
