"""What runs inside a trial: Trainer, report callback, GPU guard.

Modules of both Lightning packages work: Trainer and callback come from the module's own one, since
a Trainer refuses the other's callbacks.
"""

import copy
import importlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.train._internal.session import get_session

from tune_jobs.engine.resources import Resources
from tune_jobs.engine.settings import SettingsError

__all__ = [
    "CHECKPOINT_FILE",
    "MetricNotLoggedError",
    "OrderlyTrial",
    "check_trainer_kwargs",
    "evaluate",
    "function_trial",
    "lightning_package",
    "lightning_trial",
]

CHECKPOINT_FILE = "checkpoint.ckpt"

# Set by the engine from the settings. Two masters over one of these would make the settings lie.
ENGINE_KWARGS = {
    "accelerator": "--gpus-per-trial",
    "devices": "--gpus-per-trial",
    "num_nodes": "--gpus-per-trial",
    "strategy": "--gpus-per-trial",
    "max_epochs": "--max-epochs",
    "min_epochs": "--grace-epochs",
    "max_time": "--time-budget-s",
}
# Lightning's logs and checkpoints double those that Tune keeps; a user may turn them on again.
QUIET_KWARGS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

STOP_PATIENCE_S = 60.0


class MetricNotLoggedError(KeyError):
    """The model never logs the metric that the sweep is judged by."""

    def __str__(self) -> str:
        return str(self.args[0])


class OrderlyTrial:
    """Mixed into Ray's function trainable: a stopped trial is waited for, a CPU trial sees no GPU.

    Ray gives a stopped training thread 2 s before its actor is used again, then marks the next
    trial ERROR without telling the searcher, which can hang the sweep (ray#29268); and the last
    trial of a slot is not waited for at all, so that loggers lose their end. It also moves every
    process into the trial's folder, where a user's relative paths lead nowhere, and leaves
    CUDA_VISIBLE_DEVICES alone for a trial without a GPU, which then sees them all.
    """

    def setup(self, config: dict[str, Any]) -> None:
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
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
    objective: Callable[[dict[str, Any]], float], metric: str
) -> Callable[[dict[str, Any]], None]:
    """A trial that calls a plain function once; what it returns is the score of epoch 1."""

    def trial(config: dict[str, Any]) -> None:
        tune.report({metric: float(objective(config)), "epoch": 1})

    trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
    return trial


def lightning_trial(
    metric: str,
    max_epochs: int,
    seed: int,
    resources: Resources,
    make_model: Callable[[dict[str, Any], Any], Any],
    make_data: Callable[[dict[str, Any], Any], Any],
    trainer_kwargs: Mapping[str, Any],
) -> Callable[..., None]:
    """A trial that trains `make_model(config, data)` on `make_data(config, data)`."""

    def trial(config: dict[str, Any], data: Any) -> None:
        _prepare_device(resources)
        from lightning_fabric import seed_everything  # both Lightning packages stand on it

        seed_everything(seed, workers=True, verbose=False)
        model = make_model(config, data)
        pl = lightning_package(model)
        # Callbacks keep state and the process serves many trials: each trial gets its own copies.
        own_kwargs = copy.deepcopy(dict(trainer_kwargs))
        report = _make_report_callback(pl, metric)
        trainer = pl.Trainer(
            max_epochs=max_epochs,
            **_device_kwargs(resources),
            **{**QUIET_KWARGS, **own_kwargs, "callbacks": [*_listed(own_kwargs), report]},
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer.fit(model, make_data(config, data), ckpt_path=_resume_from(folder))
        if report.stopped:
            sys.exit(0)  # as Ray's own stop does, but after Lightning has ended in order

    trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
    return trial


def evaluate(
    checkpoint_file: str, model: Any, data_module: Any, resources: Resources
) -> dict[str, float] | None:
    """Test a checkpoint; None where the model or its data have no test.

    Returns:
        What the model's `test_step` logs, metric -> value.
    """
    _prepare_device(resources)
    pl = lightning_package(model)
    if not (_overrides(model, "test_step", pl) and _overrides(data_module, "test_dataloader", pl)):
        return None
    import torch

    # Not through the Trainer's ckpt_path, which would also restore its loops and its optimizers.
    content = torch.load(checkpoint_file, map_location="cpu", weights_only=True)
    model.load_state_dict(content["state_dict"])
    trainer = pl.Trainer(**_device_kwargs(resources), **QUIET_KWARGS)
    trainer.test(model, data_module, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


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


def check_trainer_kwargs(trainer_kwargs: Mapping[str, Any]) -> None:
    """Refuse Trainer options that the engine sets itself.

    Raises:
        SettingsError: Names the option and the setting to use instead.
    """
    for name, option in ENGINE_KWARGS.items():
        if name in trainer_kwargs:
            raise SettingsError(
                f"trainer_kwargs must not hold {name!r}, which the engine sets; use {option}."
            )


def _listed(trainer_kwargs: Mapping[str, Any]) -> list[Any]:
    callbacks = trainer_kwargs.get("callbacks") or []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _overrides(module: Any, hook: str, pl: Any) -> bool:
    base = pl.LightningModule if isinstance(module, pl.LightningModule) else pl.LightningDataModule
    return getattr(type(module), hook) is not getattr(base, hook)


def _prepare_device(resources: Resources) -> None:
    import torch

    torch.set_num_threads(resources.num_threads)
    if resources.gpus and torch.cuda.is_available():
        # A share is bookkeeping to Ray; this makes it a limit.
        torch.cuda.set_per_process_memory_fraction(resources.gpus)


def _device_kwargs(resources: Resources) -> dict[str, Any]:
    import torch

    # Logical GPUs (`ray start --num-gpus`) let a cluster be rehearsed without one.
    on_gpu = resources.gpus > 0 and torch.cuda.is_available()
    return {"accelerator": "gpu" if on_gpu else "cpu", "devices": 1}


def _resume_from(folder: str) -> str | None:
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    checkpoint.to_directory(folder)
    return str(Path(folder, CHECKPOINT_FILE))


def _make_report_callback(pl: Any, metric: str) -> Any:
    class ReportCallback(pl.Callback):
        """Reports each validated epoch to Tune with a checkpoint, and leaves when told to.

        It does so at the end of the training epoch: at the end of the validation before it, the
        first epoch has no training metrics yet.
        """

        def __init__(self) -> None:
            self.stopped = False
            self._validated = False

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
            self._report(trainer, {**metrics, "epoch": trainer.current_epoch + 1})

        def _report(self, trainer: Any, metrics: dict[str, Any]) -> None:
            try:
                if not math.isfinite(metrics[metric]):
                    tune.report(metrics)  # weights that diverged are worth no checkpoint
                    return
                with tempfile.TemporaryDirectory() as folder:
                    trainer.save_checkpoint(Path(folder, CHECKPOINT_FILE))
                    tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
            except SystemExit:
                # Ray's stop. Let through, it would end Lightning as a failure: loggers are told
                # "failed" and on_fit_end never runs.
                self.stopped = True
                trainer.should_stop = True

    return ReportCallback()
