"""The job that trains a LightningModule, without Ray."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import ray
import torch
from pyarrow import fs
from ray import tune

from models.mlp import MLP
from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.errors import CheckpointError, SettingsError
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.trainable.evaluation import evaluate
from tune_jobs.engine.trainable.lightning import (
    ENGINE_KWARGS,
    LightningJob,
    _name_versions,
    lightning_package,
    make_trainer,
)
from tune_jobs.engine.trainable.process import prepare_device

ON_CPU = Resources(cpus=1, gpus=0, slots=1)
ON_GPU_SHARE = Resources(cpus=1, gpus=0.25, slots=4)


def make_job(
    make_model: Callable[[], Any] = pytorch_lightning.LightningModule,
    make_data: Callable[[], Any] = pytorch_lightning.LightningDataModule,
    **trainer_kwargs: Any,
) -> LightningJob:
    return LightningJob(
        lambda config, data: make_model(),
        lambda config, data: make_data(),
        Halving(max_epochs=10),
        trainer_kwargs=trainer_kwargs,
    )


def test_package_of_each_module() -> None:
    assert lightning_package(pytorch_lightning.LightningModule()) is pytorch_lightning
    assert lightning_package(lightning.pytorch.LightningModule()) is lightning.pytorch


def test_package_of_torch_module() -> None:
    with pytest.raises(TypeError, match="must return a LightningModule, got Linear"):
        lightning_package(torch.nn.Linear(1, 1))


def test_stock_trainer_refuses_other_package() -> None:
    trainer = pytorch_lightning.Trainer(logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match="Please switch to a single import style"):
        trainer.fit(lightning.pytorch.LightningModule())


@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch])
def test_trainer_of_modules_package(package: Any) -> None:
    trainer = make_trainer(package.LightningModule(), ON_CPU, max_epochs=3)
    assert type(trainer) is package.Trainer
    assert type(trainer.accelerator).__name__ == "CPUAccelerator"
    assert (trainer.max_epochs, trainer.loggers, trainer.num_devices) == (3, [], 1)


def test_trainer_without_gpu_uses_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    trainer = make_trainer(pytorch_lightning.LightningModule(), ON_CPU)
    assert type(trainer.accelerator).__name__ == "CPUAccelerator"


def test_device_memory_capped_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    caps: list[float] = []
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    prepare_device(ON_GPU_SHARE)
    prepare_device(ON_CPU)
    assert caps == [0.25]


def test_device_threads_match_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for cpus in (0.5, 1, 3):
        prepare_device(Resources(cpus=cpus, gpus=0, slots=1))
    assert threads == [1, 1, 3]


@pytest.mark.parametrize("name", ENGINE_KWARGS)
def test_job_refuses_engine_options(name: str) -> None:
    with pytest.raises(SettingsError) as info:
        make_job(**{name: 1})
    assert f"must not hold {name!r}, which the engine sets; use " in str(info.value)


def test_job_refuses_unknown_option() -> None:
    with pytest.raises(SettingsError, match=r"'precison', no option .* did you mean 'precision'"):
        make_job(precison=16)


def test_job_takes_trainer_options() -> None:
    job = make_job(precision="bf16-mixed", callbacks=[], logger=True, gradient_clip_val=1.0)
    assert job.trainer_kwargs["gradient_clip_val"] == 1.0


def test_loggers_get_separate_folders(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    stock = [CSVLogger(str(tmp_path)) for _ in range(2)]
    assert stock[0].log_dir == stock[1].log_dir  # until one of them has written
    ours = [CSVLogger(str(tmp_path)) for _ in range(2)]
    for number, logger in enumerate(ours):
        _name_versions(pytorch_lightning, [logger], f"trial_{number}")
    assert ours[0].log_dir != ours[1].log_dir
    chosen = CSVLogger(str(tmp_path), version="mine")
    _name_versions(pytorch_lightning, [chosen], "trial_0")
    assert chosen.version == "mine"


class StopAtOnce(pytorch_lightning.Callback):
    """Exits as Ray's report does when a trial is stopped."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        sys.exit(0)


class StatusLogger(pytorch_lightning.loggers.Logger):
    def __init__(self) -> None:
        super().__init__()
        self.status: list[str] = []

    name = version = "status"

    def log_metrics(self, metrics: Any, step: Any = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def finalize(self, status: str) -> None:
        self.status.append(status)


def test_stock_stop_looks_like_failure() -> None:
    from models.data import DigitsData

    ended: list[str] = []

    class Model(MLP):
        def on_fit_end(self) -> None:
            ended.append("fit")

    logger = StatusLogger()
    trainer = make_trainer(
        Model(in_size=64, hidden_size=8),
        ON_CPU,
        max_epochs=2,
        logger=logger,
        callbacks=[StopAtOnce()],
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    with pytest.raises(SystemExit):
        trainer.fit(Model(in_size=64, hidden_size=8), DigitsData())
    assert logger.status == ["failed"]
    assert ended == []


def save_digits_model(path: Path) -> None:
    from models.data import DigitsData

    model = MLP(in_size=64, hidden_size=32)
    trainer = make_trainer(model, ON_CPU, max_epochs=2, enable_checkpointing=False)
    trainer.fit(model, DigitsData())
    trainer.save_checkpoint(path)


def test_evaluate_restores_weights_quietly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models.data import DigitsData

    save_digits_model(tmp_path / "best.ckpt")
    job = make_job(lambda: MLP(in_size=64, hidden_size=32), DigitsData)
    capsys.readouterr()
    scores = evaluate((tmp_path / "best.ckpt").read_bytes(), job, {}, None, ON_CPU)
    assert scores is not None
    assert scores.keys() == {"test_loss", "test_acc"}
    assert scores["test_acc"] > 0.3  # untrained ones guess a tenth
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_evaluate_module_without_test() -> None:
    assert evaluate(b"", make_job(), {}, None, ON_CPU) is None


class Storage:
    """A trial's storage, as Ray gives it, on a node that cannot read the sweep's folder."""

    experiment_fs_path = "/mnt/sweeps/s"

    def __init__(self, error: OSError | None = None) -> None:
        self.storage_filesystem, self._error = self, error

    def get_file_info(self, path: str) -> fs.FileInfo:
        if self._error is not None:
            raise self._error
        return fs.FileInfo(path, fs.FileType.NotFound)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (Storage(), "does not see /mnt/sweeps/s; --storage-path must be a folder that all nodes"),
        (Storage(OSError("AWS Error ACCESS_DENIED")), "/mnt/sweeps/s cannot be read: AWS Error"),
    ],
)
def test_trial_node_without_storage(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, message: str
) -> None:
    context = SimpleNamespace(get_storage=lambda: storage)
    monkeypatch.setattr(tune, "get_context", lambda: context)
    monkeypatch.setattr(tune, "with_parameters", partial)
    monkeypatch.setattr(ray, "put", lambda data: data)  # Ray's own would start Ray
    trial = make_job(pytest.fail).make_trainable("m", ON_CPU, None)
    with pytest.raises(CheckpointError, match=message):  # its cause is the storage: the sweep ends
        trial({})
