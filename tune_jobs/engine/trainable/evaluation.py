"""The test at the end, of the winner alone: `evaluate`."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.trainable.lightning import LightningJob, lightning_package, make_trainer
from tune_jobs.engine.trainable.process import prepare_device

__all__ = ["evaluate"]


def evaluate(
    checkpoint: bytes, job: LightningJob, config: dict[str, Any], data: Any, resources: Resources
) -> dict[str, float] | None:
    """Test a checkpoint; on a share of a GPU if the trials had one.

    Args:
        checkpoint: The content of a trial's checkpoint file.
        job: Made the trial's model and data.
        config: The trial's config.
        data: The data that the trial was given.
        resources: What the trial held.

    Returns:
        What the model's `test_step` logs, metric -> value; None if the model or its data have no
        test.
    """
    if not resources.gpus:
        # In this process: a new worker would spend seconds on importing Lightning.
        return _test(checkpoint, job, config, data, resources)

    def task(checkpoint: bytes, data: Any) -> dict[str, float] | None:
        prepare_device(resources)
        return _test(checkpoint, job, config, data, resources)

    remote = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(task)
    result: dict[str, float] | None = ray.get(remote.remote(checkpoint, data))
    return result


def _test(
    checkpoint: bytes, job: LightningJob, config: dict[str, Any], data: Any, resources: Resources
) -> dict[str, float] | None:
    model, data_module = job.make_model(config, data), job.make_data(config, data)
    pl = lightning_package(model)
    has_test = _overrides(model, "test_step", pl.LightningModule) and _overrides(
        data_module, "test_dataloader", pl.LightningDataModule
    )
    if not has_test:
        return None
    import torch

    # Not through the Trainer's ckpt_path, which would also restore its loops and its optimizers.
    # Not `weights_only`: the trials wrote it just now, with any hyperparameters they have.
    content = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=False)
    model.load_state_dict(content["state_dict"])
    with _quiet_lightning():
        trainer = make_trainer(model, resources, enable_checkpointing=False)
        trainer.test(model, data_module, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _overrides(module: Any, hook: str, base: type) -> bool:
    return getattr(type(module), hook, None) is not getattr(base, hook)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes on devices and tips out of the lines that a sweep prints."""
    loggers = [
        logging.getLogger(f"{package}.utilities.rank_zero")
        for package in ("pytorch_lightning", "lightning.pytorch")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
