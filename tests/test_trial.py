"""What a trial is made of, with no Ray running."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from pyarrow import fs
from ray import tune

from models.mlp import MLP
from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.outcome import CheckpointError
from tune_jobs.engine.core.settings import LightningSettings, SettingsError
from tune_jobs.engine.trainable.evaluation import evaluate
from tune_jobs.engine.trainable.lightning import (
    ENGINE_KWARGS,
    Recipe,
    _name_versions,
    lightning_package,
    lightning_trial,
    make_trainer,
    prepare_device,
)

ON_CPU = Resources(cpus=1, gpus=0, slots=1)
ON_GPU_SHARE = Resources(cpus=1, gpus=0.25, slots=4)


def make_recipe(**trainer_kwargs: Any) -> Recipe:
    return Recipe(lambda config, data: None, lambda config, data: None, trainer_kwargs)


def test_package_of_a_module_is_the_one_it_is_built_on() -> None:
    assert lightning_package(pytorch_lightning.LightningModule()) is pytorch_lightning
    assert lightning_package(lightning.pytorch.LightningModule()) is lightning.pytorch


def test_what_is_no_lightning_module_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match="must return a LightningModule, got Linear"):
        lightning_package(torch.nn.Linear(1, 1))


def test_stock_trainer_refuses_modules_and_callbacks_of_the_other_package() -> None:
    trainer = pytorch_lightning.Trainer(logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match="Please switch to a single import style"):
        trainer.fit(lightning.pytorch.LightningModule())


@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch])
def test_trainer_is_of_the_modules_package_on_the_cpu_and_quiet(package: Any) -> None:
    trainer = make_trainer(package.LightningModule(), ON_CPU, max_epochs=3)
    assert type(trainer) is package.Trainer
    assert type(trainer.accelerator).__name__ == "CPUAccelerator"
    assert (trainer.max_epochs, trainer.loggers, trainer.num_devices) == (3, [], 1)


def test_trial_without_a_gpu_trains_on_the_cpu_whatever_the_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    trainer = make_trainer(pytorch_lightning.LightningModule(), ON_CPU)
    assert type(trainer.accelerator).__name__ == "CPUAccelerator"


def test_memory_of_a_share_is_capped_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    caps: list[float] = []
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    prepare_device(ON_GPU_SHARE)
    prepare_device(ON_CPU)
    assert caps == [0.25]


def test_process_computes_with_as_many_threads_as_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for cpus in (0.5, 1, 3):
        prepare_device(Resources(cpus=cpus, gpus=0, slots=1))
    assert threads == [1, 1, 3]


@pytest.mark.parametrize("name", ENGINE_KWARGS)
def test_option_that_the_engine_sets_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError) as info:
        make_recipe(**{name: 1})
    assert f"must not hold {name!r}, which the engine sets; use " in str(info.value)


def test_option_that_the_trainer_lacks_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'precison', no option .* did you mean 'precision'"):
        make_recipe(precison=16)


def test_options_callbacks_and_loggers_of_lightning_are_taken() -> None:
    recipe = make_recipe(precision="bf16-mixed", callbacks=[], logger=True, gradient_clip_val=1.0)
    assert recipe.trainer_kwargs["gradient_clip_val"] == 1.0


def test_trials_side_by_side_get_folders_of_their_own_below_a_file_logger(tmp_path: Path) -> None:
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
    """Leaves as Ray's report does when a trial is stopped."""

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


def test_stock_stop_ends_lightning_as_a_failure() -> None:
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


def test_winner_is_tested_with_its_own_weights_and_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models.data import DigitsData

    save_digits_model(tmp_path / "best.ckpt")
    recipe = Recipe(
        lambda config, data: MLP(in_size=64, hidden_size=32), lambda config, data: DigitsData()
    )
    capsys.readouterr()
    scores = evaluate((tmp_path / "best.ckpt").read_bytes(), recipe, {}, None, ON_CPU)
    assert scores is not None
    assert scores.keys() == {"test_loss", "test_acc"}
    assert scores["test_acc"] > 0.3  # untrained ones guess a tenth
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_module_without_a_test_has_no_test_score() -> None:
    module, data = pytorch_lightning.LightningModule(), pytorch_lightning.LightningDataModule()
    recipe = Recipe(lambda config, given: module, lambda config, given: data)
    assert evaluate(b"", recipe, {}, None, ON_CPU) is None


class Storage:
    """Of a trial, as Ray hands it out, on a node that may not see it."""

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
def test_node_without_the_storage_ends_the_sweep_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, message: str
) -> None:
    context = SimpleNamespace(get_storage=lambda: storage)
    monkeypatch.setattr(tune, "get_context", lambda: context)
    trial = lightning_trial(make_recipe(), "m", LightningSettings(), ON_CPU)
    with pytest.raises(CheckpointError, match=message):  # which blames the storage
        trial({}, None)
