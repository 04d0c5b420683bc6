"""`run_sweep` with good and bad trials, on a Ray with two logical GPUs."""

from __future__ import annotations  # classes inside functions go to the workers by value

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.trial import TrialState
from pytorch_lightning.callbacks import EarlyStopping
from ray import tune

from tune_jobs.engine import (
    LightningSettings,
    Settings,
    SettingsError,
    SweepFailedError,
    SweepResult,
    load_study,
    run_sweep,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray_with_two_logical_gpus() -> Iterator[None]:
    ray.init(num_cpus=8, num_gpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def tune_module(
    tmp_path: Path,
    package: str = "pytorch_lightning",
    log: str = "score",
    mode: str = "max",
    fail_above: float = 100.0,
    **options: Any,
) -> SweepResult:
    """Tune a module with one parameter; its score is |gain| x epochs.

    A negative gain diverges to NaN in the second epoch.

    Args:
        tmp_path: The sweep's folder is `s` in there; `ended.txt` gets a line for each trial that
            leaves Lightning.
        package: The Lightning package of the module and its data.
        log: The name under which the module logs its score.
        mode: The mode of the sweep.
        fail_above: A larger gain raises: in the first epoch, or in the second one if this is below
            100.
        options: Settings that differ from the defaults here; `gains`, the choices; and
            `trainer_kwargs`.
    """
    fail_at = 0 if fail_above >= 100 else 1
    out = str(tmp_path / "ended.txt")

    def make_model(config: dict[str, Any], data: Any) -> Any:
        import importlib

        import torch

        pl = importlib.import_module(package)

        class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(1))

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if config["gain"] > fail_above and self.current_epoch == fail_at:
                    raise ArithmeticError("gain is too high")
                return (self.weight * batch[0]).mean()

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                epoch = self.current_epoch + 1
                diverges = config["gain"] < 0 and epoch > 1
                self.log(log, float("nan") if diverges else abs(config["gain"]) * epoch)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

            def on_fit_end(self) -> None:
                with open(out, "a") as file:
                    file.write(f"{config['gain']}\n")

        return Module()

    def make_data(config: dict[str, Any], data: Any) -> Any:
        import importlib

        import torch

        pl = importlib.import_module(package)

        class Data(pl.LightningDataModule):  # type: ignore[name-defined,misc]
            """A user's own, with ordinary DataLoaders."""

            def train_dataloader(self) -> Any:
                dataset = torch.utils.data.TensorDataset(torch.ones(4, 1))
                return torch.utils.data.DataLoader(dataset, batch_size=2)

            val_dataloader = train_dataloader

        return Data()

    settings = {"num_trials": 4, "max_epochs": 3, "gpus_per_trial": 0, "max_concurrent": 1}
    gains = options.pop("gains", [1.0, 2.0, 3.0, 4.0])
    keywords = {key: options.pop(key) for key in ("trainer_kwargs",) if key in options}
    return run_sweep(
        LightningSettings(**{**settings, "storage_path": str(tmp_path), "name": "s", **options}),
        space={"gain": tune.choice(gains)},
        metric="score",
        mode=mode,
        make_model=make_model,
        make_data=make_data,
        sampler=optuna.samplers.GridSampler({"gain": gains}),
        **keywords,
    )


def test_sweep_of_other_lightning_package(tmp_path: Path) -> None:
    """With ordinary DataLoaders."""
    sweep = tune_module(tmp_path, package="lightning.pytorch", num_trials=2, gains=[1.0, 2.0])
    assert sweep.best_score == 6.0
    assert sweep.best_epoch == 3
    assert sweep.test is None


def test_trials_end_lightning_cleanly(tmp_path: Path) -> None:
    sweep = tune_module(tmp_path, grace_epochs=3)
    assert len(sweep.rows) == 4
    assert len((tmp_path / "ended.txt").read_text().split()) == 4


def test_nan_stops_the_trial(tmp_path: Path) -> None:
    sweep = tune_module(tmp_path, gains=[-1.0, 1.0], num_trials=2, max_epochs=8, grace_epochs=8)
    row = next(row for row in sweep.rows if row["config/gain"] == -1.0)
    assert (row["state"], row["reason"], row["epochs"]) == ("PRUNED", "nan", 2)
    trial = sweep.study.trials[row["trial"]]
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {1: 1.0}


def test_failed_trial_has_a_log(tmp_path: Path) -> None:
    sweep = tune_module(tmp_path, gains=[1.0, 200.0], num_trials=2)
    failed = next(row for row in sweep.rows if row["config/gain"] == 200.0)
    assert (failed["state"], failed["reason"]) == ("FAIL", "ArithmeticError")
    assert "gain is too high" in sweep.failures[failed["trial"]]


def test_sweep_of_failures_ends_early(tmp_path: Path) -> None:
    """After five failures without a success, with the first traceback."""
    gains = [200.0 + number for number in range(20)]
    with pytest.raises(SweepFailedError, match="gain is too high"):
        tune_module(tmp_path, gains=gains, num_trials=20, max_concurrent=2)
    rows = (tmp_path / "s" / "trials.csv").read_text().splitlines()[1:]
    assert 5 <= sum(",FAIL," in row for row in rows) <= 7
    assert len(rows) < 20


def test_metric_never_logged_ends_sweep(tmp_path: Path) -> None:
    with pytest.raises(SweepFailedError, match="never logs 'score'; it logs acc"):
        tune_module(tmp_path, log="acc", gains=list(range(1, 20)), num_trials=19)
    assert len((tmp_path / "s" / "trials.csv").read_text().splitlines()) <= 4


def test_trainer_kwargs_refuse_engine_options(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'max_epochs', which the engine sets"):
        tune_module(tmp_path, trainer_kwargs={"max_epochs": 3})
    assert not (tmp_path / "s").exists()


def test_trainer_kwargs_logger_ends_in_success(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    class Logger(CSVLogger):
        def finalize(self, status: str) -> None:
            Path(self.save_dir, status).touch()

    tune_module(tmp_path, trainer_kwargs={"logger": Logger(str(tmp_path))}, gains=[1.0, 0.5])
    assert (tmp_path / "success").exists()
    assert not (tmp_path / "failed").exists()


def test_stop_at_ends_the_sweep(tmp_path: Path) -> None:
    sweep = tune_module(tmp_path, stop_at=2.0, gains=[2.0, 3.0, 4.0, 5.0])
    first, *others = sweep.rows
    assert (first["state"], first["reason"], first["epochs"]) == ("COMPLETE", "stop_at", 1)
    assert len(others) <= 1  # one may have waited for the slot
    assert all(row["state"] == "PRUNED" for row in others)
    assert all(row["reason"] == "another reached stop_at" for row in others)


@pytest.mark.long
def test_time_budget_reports_unfinished_winner(tmp_path: Path) -> None:
    def slow(config: dict[str, Any]) -> float:
        for step in range(1, 1000):
            tune.report({"score": config["x"] * step, "epoch": step})
            time.sleep(0.1)
        return 0.0

    sweep = run_sweep(
        Settings(
            num_trials=2, time_budget_s=8, storage_path=str(tmp_path), name="b", gpus_per_trial=0
        ),
        space={"x": tune.uniform(1, 2)},
        metric="score",
        mode="max",
        objective=slow,
    )
    assert sweep.best_state == "RUNNING"
    assert sweep.is_resumable
    best = json.loads((tmp_path / "b" / "best.json").read_text())
    assert best["state"] == "RUNNING"
    assert {(row["state"], row["reason"]) for row in sweep.rows} == {("RUNNING", "time budget")}
    assert {trial.state.name for trial in sweep.study.trials} == {"RUNNING"}


def test_define_by_run_with_zero_scores(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("x", -1, 1)
        return {"constant": 7}

    sweep = run_sweep(
        Settings(num_trials=3, storage_path=f"file://{tmp_path}", name="z", gpus_per_trial=0),
        space=space,
        metric="score",
        mode="min",
        objective=lambda config: 0.0,
    )
    assert sweep.best_score == 0.0
    assert sweep.best_config["constant"] == 7
    assert sweep.study.best_value == 0.0
    assert load_study(sweep.path).best_value == 0.0
    assert load_study(tmp_path / "z").best_value == 0.0


@pytest.mark.parametrize(
    ("share", "slots", "per_gpu"),
    [pytest.param(0.25, 8, 4, marks=pytest.mark.long), (0.4, 4, 2)],
)
def test_gpu_shares_run_in_parallel(share: float, slots: int, per_gpu: int, tmp_path: Path) -> None:
    """Each trial waits until all of them have started."""
    out, started = tmp_path / "gpus.txt", tmp_path / "started"
    started.mkdir()

    def hold(config: dict[str, Any]) -> float:
        start = time.time()
        (started / str(os.getpid())).touch()
        gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        while len(list(started.iterdir())) < slots and time.time() < start + 60:
            time.sleep(0.1)
        with out.open("a") as file:
            file.write(f"{start} {time.time()} {gpus[0]}\n")
        return 1.0

    settings = Settings(
        num_trials=slots, gpus_per_trial=share, storage_path=str(tmp_path), name="g"
    )
    run_sweep(settings, space={"x": tune.uniform(0, 1)}, metric="m", mode="max", objective=hold)
    lines = [line.split() for line in out.read_text().splitlines()]
    assert max(float(start) for start, _, _ in lines) < min(float(end) for _, end, _ in lines)
    gpus = [gpu for _, _, gpu in lines]
    assert sorted(gpus) == ["0"] * per_gpu + ["1"] * per_gpu


def test_trial_without_gpu_sees_none(tmp_path: Path) -> None:
    def count(config: dict[str, Any]) -> float:
        import os

        return float(os.environ.get("CUDA_VISIBLE_DEVICES", "all") == "")

    settings = Settings(num_trials=1, gpus_per_trial=0, storage_path=str(tmp_path), name="n")
    sweep = run_sweep(
        settings, space={"x": tune.uniform(0, 1)}, metric="m", mode="max", objective=count
    )
    assert sweep.best_score == 1.0


def test_best_trials_keep_their_checkpoints(tmp_path: Path) -> None:
    """Each has two, since its last epoch is not its best one."""
    sweep = tune_module(
        tmp_path, gains=[1.0, 2.0, 3.0, 4.0], keep_checkpoints=2, mode="min", max_epochs=4,
        grace_epochs=4,
    )  # fmt: skip
    assert sweep.best_epoch == 1
    kept = {path.parent.name for path in (tmp_path / "s").glob("trial_*/checkpoint_*")}
    best = sorted(sweep.rows, key=lambda row: row["score"])[:2]
    assert kept == {f"trial_{row['trial']:04d}" for row in best}
    assert len(list((tmp_path / "s").glob("trial_*/checkpoint_*"))) == 4


def test_failed_trial_keeps_no_checkpoint(tmp_path: Path) -> None:
    sweep = tune_module(
        tmp_path, gains=[-1.0, 50.0], fail_above=40.0, num_trials=2, keep_checkpoints=1
    )
    assert {row["state"] for row in sweep.rows} == {"FAIL", "PRUNED"}
    assert sweep.best_state == "PRUNED"
    assert (tmp_path / "s" / "best.ckpt").exists()


def test_sweep_of_only_nan_fails(tmp_path: Path) -> None:
    with pytest.raises(SweepFailedError, match="can win: 2 gave NaN or infinity"):
        run_sweep(
            Settings(num_trials=2, storage_path=str(tmp_path), name="n", gpus_per_trial=0),
            space={"x": tune.uniform(0, 1)},
            metric="score",
            mode="max",
            objective=lambda config: float("nan"),
        )


@pytest.mark.parametrize(
    ("settings_type", "options", "message"),
    [
        (Settings, {"trainer_kwargs": {"precision": 16}}, "belong to a LightningModule"),
    ],
)
def test_plain_function_refuses_lightning_options(
    settings_type: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        run_sweep(
            settings_type(storage_path=str(tmp_path)),
            space={"x": tune.uniform(0, 1)},
            metric="score",
            mode="max",
            objective=lambda config: 1.0,
            **options,
        )
    assert not list(tmp_path.iterdir())


def test_early_stopping_at_a_rung(tmp_path: Path) -> None:
    """The trial is complete, and was not paused there."""
    stopping = EarlyStopping("score", patience=1, mode="min")  # after two epochs: the score rises
    sweep = tune_module(tmp_path, max_epochs=8, trainer_kwargs={"callbacks": [stopping]})
    complete = [trial for trial in sweep.study.trials if trial.state == TrialState.COMPLETE]
    assert complete
    for trial in complete:
        assert list(trial.intermediate_values) == [1, 2]  # the second is a rung
        assert trial.user_attrs["reason"] == "ended by itself"
    assert all(len(trial.intermediate_values) <= 2 for trial in sweep.study.trials)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))]
)
def test_garden_for_any_seed(seed: int, tmp_path: Path) -> None:
    """The search comes within 0.2 % of the best."""
    from tune_jobs import garden

    ray.cloudpickle.register_pickle_by_value(garden)
    sweep = garden.main(garden.GardenSettings(seed=seed, storage_path=str(tmp_path), name="g"))
    assert sweep.best_score > garden.BEST_AREA_M2 * 0.998
    assert len(sweep.rows) == 50
