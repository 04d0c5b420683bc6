"""Ray's own parts beside ours: each test shows what the stock part does, and what ours does."""

from __future__ import annotations  # classes inside functions go to the workers by value

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import torch
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine import LightningSettings, Settings, SweepFailedError, SweepResult, run_sweep

pytestmark = pytest.mark.slow

SPACE = {"x": tune.uniform(0, 1)}


@pytest.fixture(scope="module", autouse=True)
def _ray_with_two_logical_gpus() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    ray.init(num_cpus=4, num_gpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _quiet_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


def fit_stock(
    trainable: Any, tmp_path: Path, num_trials: int, stop: Any = None, **tune_config: Any
) -> tune.ResultGrid:
    search = OptunaSearch(metric="score", mode="max", seed=0)
    return tune.Tuner(
        trainable,
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            search_alg=search, metric="score", mode="max", num_samples=num_trials, **tune_config
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), name="stock", verbose=0, stop=stop or {}
        ),
    ).fit()


def fit_ours(
    objective: Callable[[dict[str, Any]], float], tmp_path: Path, **settings: Any
) -> SweepResult:
    fields = {"storage_path": str(tmp_path), "name": "ours", "gpus_per_trial": 0, **settings}
    return run_sweep(
        Settings(**fields), space=SPACE, metric="score", mode="max", objective=objective
    )


@pytest.mark.long
def test_stock_starts_process_per_trial(tmp_path: Path) -> None:
    def pid(config: dict[str, Any]) -> dict[str, float]:
        return {"score": float(os.getpid())}

    grid = fit_stock(pid, tmp_path, num_trials=3, max_concurrent_trials=1)
    assert len({result.metrics["score"] for result in grid}) == 3
    sweep = fit_ours(lambda config: os.getpid(), tmp_path, num_trials=3, max_concurrent=1)
    assert len({row["score"] for row in sweep.rows}) == 1


@pytest.mark.long
def test_stock_allows_one_pending_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    update = TuneController.update_max_pending_trials

    def record(controller: Any, *args: Any) -> None:
        update(controller, *args)
        waiting.append(controller._max_pending_trials)

    monkeypatch.setattr(TuneController, "update_max_pending_trials", record)
    fit_stock(lambda config: {"score": 1.0}, tmp_path, num_trials=1)
    fit_ours(lambda config: 1.0, tmp_path, num_trials=1)
    assert waiting == [1, sys.maxsize]  # `TrialQueue` hands out no more than there are slots


@pytest.mark.long
def test_stock_slow_stop_fails_next_trial(tmp_path: Path) -> None:
    def slow_to_end(config: dict[str, Any]) -> float:
        try:
            for score in (config["x"], float("nan"), 0.0):  # ours stops it at NaN
                tune.report({"score": score})
        finally:
            time.sleep(4)
        return 0.0

    grid = fit_stock(
        slow_to_end,
        tmp_path,
        num_trials=2,
        stop={"training_iteration": 1},
        max_concurrent_trials=1,
        reuse_actors=True,
    )
    assert grid.num_errors == 1
    sweep = fit_ours(slow_to_end, tmp_path, num_trials=3, max_concurrent=1)
    assert [(row["state"], row["reason"]) for row in sweep.rows] == [("PRUNED", "nan")] * 3


def test_stock_returns_when_all_failed(tmp_path: Path) -> None:
    def fail(config: dict[str, Any]) -> float:
        raise ArithmeticError("no")

    assert fit_stock(fail, tmp_path, num_trials=2).num_errors == 2


def test_stock_shows_gpus_to_cpu_trial(tmp_path: Path) -> None:
    def sees_gpus(config: dict[str, Any]) -> dict[str, float]:
        return {"score": float(os.environ.get("CUDA_VISIBLE_DEVICES") != "")}

    grid = fit_stock(sees_gpus, tmp_path, num_trials=1)
    assert grid[0].metrics["score"] == 1.0
    sweep = fit_ours(lambda config: sees_gpus(config)["score"], tmp_path, num_trials=1)
    assert sweep.best_score == 0.0


def test_stock_loses_zero_score(tmp_path: Path) -> None:
    grid = tune.Tuner(
        lambda config: 0.0, run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    ).fit()
    assert "_metric" not in grid[0].metrics
    assert fit_ours(lambda config: 0.0, tmp_path, num_trials=1).best_score == 0.0


def test_stock_changes_working_folder(tmp_path: Path) -> None:
    def stays(config: dict[str, Any]) -> dict[str, float]:
        return {"score": float(os.getcwd() == here)}

    here = os.getcwd()
    assert fit_stock(stays, tmp_path, num_trials=1)[0].metrics["score"] == 0.0
    sweep = fit_ours(lambda config: stays(config)["score"], tmp_path, num_trials=1)
    assert sweep.best_score == 1.0


def test_stock_best_result_has_last_checkpoint(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        for epoch, score in enumerate((0.1, 0.9, 0.2), 1):
            folder = tmp_path / "checkpoints" / str(epoch)
            folder.mkdir(parents=True)
            (folder / "epoch").write_text(str(epoch))
            tune.report({"score": score}, checkpoint=tune.Checkpoint.from_directory(folder))

    grid = fit_stock(train, tmp_path, num_trials=1)
    best = grid.get_best_result("score", "max", scope="all")
    assert best.metrics["score"] == 0.2
    with best.checkpoint.as_directory() as folder:
        assert Path(folder, "epoch").read_text() == "3"  # ours: see test_stock_counts_validations


def test_stock_ignores_mistyped_metric(tmp_path: Path) -> None:
    train = train_with_rays_callback(
        "scroe", max_epochs=1, logger=False, default_root_dir=str(tmp_path)
    )
    grid = fit_stock(train, tmp_path, num_trials=1)
    assert grid.num_errors == 0
    assert "score" not in grid[0].metrics


def train_with_rays_callback(metric: str, **options: Any) -> Callable[[dict[str, Any]], None]:
    """A trial as in Ray's tutorials; it reports `metric` as "score"."""

    def train(config: dict[str, Any]) -> None:
        import pytorch_lightning as pl
        from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

        report = TuneReportCheckpointCallback({"score": metric}, on="validation_end")
        trainer = pl.Trainer(
            accelerator="cpu", num_sanity_val_steps=0, callbacks=[report], **options
        )
        trainer.fit(make_module(config), make_loaders(config))

    return train


def make_module(config: dict[str, Any], data: Any = None) -> Any:
    """A module that is validated every second epoch and logs when the training epoch ends."""
    import pytorch_lightning as pl
    import torch

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.weight * batch[0]).mean()

        def on_train_epoch_end(self) -> None:
            self.log("trained", 1.0)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", float(self.current_epoch + 1))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def make_loaders(config: dict[str, Any], data: Any = None) -> Any:
    import pytorch_lightning as pl
    import torch

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            dataset = torch.utils.data.TensorDataset(torch.ones(4, 1))
            return torch.utils.data.DataLoader(dataset, batch_size=2)

        val_dataloader = train_dataloader

    return Data()


@pytest.mark.long
def test_stock_counts_validations(tmp_path: Path) -> None:
    """It keeps every checkpoint too. Ours counts epochs, and keeps the best and the last one."""

    train = train_with_rays_callback("score", max_epochs=8, check_val_every_n_epoch=2)
    (result,) = fit_stock(train, tmp_path, num_trials=1)
    assert result.metrics["score"] == 8.0
    assert result.metrics["training_iteration"] == 4  # for epoch 8
    assert len(list((tmp_path / "stock").rglob("checkpoint_*"))) == 4
    assert "trained" not in result.metrics

    sweep = run_sweep(
        LightningSettings(
            num_trials=1,
            max_epochs=8,
            grace_epochs=8,  # it trains without a pause
            gpus_per_trial=0,
            storage_path=str(tmp_path),
            name="ours",
        ),
        space=SPACE,
        metric="score",
        mode="min",  # so that the best checkpoint is the first and not the last
        make_model=make_module,
        make_data=make_loaders,
        trainer_kwargs={"check_val_every_n_epoch": 2},
    )
    assert sweep.study.trials[0].intermediate_values == {2: 2.0, 4: 4.0, 6: 6.0, 8: 8.0}
    assert (sweep.best_score, sweep.best_epoch) == (2.0, 2)
    best = torch.load(tmp_path / "ours" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 1  # counted from 0
    assert sweep.result_grid[0].metrics["trained"] == 1.0
    assert len(list((tmp_path / "ours").rglob("checkpoint_*"))) == 2
    assert not list(tmp_path.rglob("lightning_logs"))


@pytest.mark.long
def test_time_budget_cuts_an_epoch(tmp_path: Path) -> None:
    """The arrays reach the trials without a copy."""

    import numpy as np

    def load_data(settings: Settings) -> dict[str, Any]:
        return {"array": np.zeros(1_000_000)}

    driver = os.getpid()  # it makes a model too, to see whether the winner has a test

    def make_model(config: dict[str, Any], data: Any) -> Any:
        flags = data["array"].flags
        # A view of the object store, which nobody may write to.
        assert os.getpid() == driver or not (flags.writeable or flags.owndata)
        return make_module(config)

    def make_data(config: dict[str, Any], data: Any) -> Any:
        class Endless(list):  # type: ignore[type-arg]
            def __iter__(self) -> Any:
                import torch

                while True:
                    time.sleep(0.05)
                    yield [torch.ones(2, 1)]

            def __len__(self) -> int:
                return 10_000

        loaders = make_loaders(config)
        if config["x"] > 0.5:
            loaders.train_dataloader = Endless
        return loaders

    sweep = run_sweep(
        LightningSettings(
            num_trials=2,
            max_epochs=2,
            grace_epochs=2,  # no trial waits for the other
            gpus_per_trial=0,
            time_budget_s=20,
            storage_path=str(tmp_path),
            name="ours",
        ),
        space={"x": tune.choice([0.0, 1.0])},
        metric="score",
        mode="max",
        load_data=load_data,
        make_model=make_model,
        make_data=make_data,
        sampler=optuna.samplers.GridSampler({"x": [0.0, 1.0]}),
    )
    rows = {row["config/x"]: row for row in sweep.rows}
    assert rows[0.0]["state"] == "COMPLETE"
    assert (rows[1.0]["state"], rows[1.0]["reason"]) == ("RUNNING", "time budget")
    assert rows[1.0]["epochs"] == 0


def test_stock_retries_a_raising_config(tmp_path: Path) -> None:
    file = tmp_path / "runs.txt"

    def fail(config: dict[str, Any]) -> float:
        with file.open("a") as runs:
            runs.write("x")
        raise ArithmeticError

    tune.Tuner(
        fail,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            name="stock",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    ).fit()
    assert file.read_text() == "xxx"
    file.write_text("")
    with pytest.raises(SweepFailedError):
        fit_ours(fail, tmp_path, num_trials=1, max_failures=2)
    assert file.read_text() == "x"


@pytest.mark.long
def test_stock_asha_restored_without_rungs(tmp_path: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        for _ in range(4):
            tune.report({"score": config["x"]})

    asha = tune.schedulers.ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2)
    fit_stock(train, tmp_path, num_trials=6, scheduler=asha)
    assert sum(len(recorded) for _, recorded in asha._brackets[0]._rungs) > 6
    restored = tune.Tuner.restore(str(tmp_path / "stock"), train, resume_errored=True)
    again = restored._local_tuner._tune_config.scheduler
    assert all(not recorded for _, recorded in again._brackets[0]._rungs)


KILLED = """
import os, sys, time
import optuna, ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.search.optuna import OptunaSearch

folder, command = sys.argv[1:]

def train(config):
    for step in range(5):
        tune.report({"score": config["x"] + step})
        time.sleep(0.1)

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
if command == "restore":
    tuner = tune.Tuner.restore(f"{folder}/stock", train)
else:
    search = OptunaSearch(
        metric="score",
        mode="max",
        storage=JournalStorage(JournalFileBackend(f"{folder}/study.log")),
        study_name="stock",
    )
    tuner = tune.Tuner(
        train, param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            search_alg=search, num_samples=10, metric="score", mode="max", reuse_actors=True,
            max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=folder, name="stock", verbose=0),
    )
tuner.fit()
"""


@pytest.mark.long
def test_stock_restore_fails_after_kill(tmp_path: Path) -> None:
    """The study is in a file. Ours resumes: see `test_resume_after_kill_changes_nothing`."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)]
    driver = subprocess.Popen([*command, "start"], stderr=subprocess.DEVNULL)
    study = tmp_path / "study.log"
    deadline = time.monotonic() + 90
    while not study.exists() or study.read_text().count('"state":1') < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    restored = subprocess.run([*command, "restore"], capture_output=True, text=True, timeout=120)
    assert restored.returncode != 0
    assert "UpdateFinishedTrialError" in restored.stderr
