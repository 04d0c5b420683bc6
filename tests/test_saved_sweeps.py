"""Sweeps in tests/saved, whose drivers were killed before the engine got its rooms: they resume.

Each expected row is what the engine of that time made of the same record.
"""

from __future__ import annotations  # classes inside functions go to the workers by value

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from tune_jobs.engine import LightningSettings, Settings, SettingsError, SweepResult, run_sweep
from tune_jobs.engine.store.manifest import Manifest, recorded_settings
from tune_jobs.mnist import MNISTSettings

SAVED = Path(__file__).with_name("saved")

FATES = ["good", "nan", "raise", "oom", "die", "full", "slow"]  # the choices that were searched


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def copied(name: str, folder: Path) -> str:
    shutil.copytree(SAVED / name, folder / name)
    return str(folder)


def resume_lightning(storage_path: str, **changes: Any) -> SweepResult:
    """Resume a sweep of modules with one weight, to which each batch adds a random number."""

    def make_model(config: dict[str, Any], data: Any) -> Any:
        import pytorch_lightning as pl
        import torch

        class Tiny(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(1))

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return -(self.weight * (config["x"] + torch.rand(1))).sum()

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("score", self.weight[0], batch_size=1)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        return Tiny()

    def make_data(config: dict[str, Any], data: Any) -> Any:
        import pytorch_lightning as pl

        class Data(pl.LightningDataModule):
            def train_dataloader(self) -> list[int]:
                return [0, 1]

            def val_dataloader(self) -> list[int]:
                return [0]

        return Data()

    settings = {"num_trials": 10, "max_epochs": 4, "gpus_per_trial": 0.0, **changes}
    return run_sweep(
        LightningSettings(storage_path=storage_path, name="lightning", resume=True, **settings),
        space={"x": tune.uniform(0, 1), "fate": tune.choice(FATES)},
        metric="score",
        mode="max",
        make_model=make_model,
        make_data=make_data,
        progress=None,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_saved_lightning_resumes(tmp_path: Path) -> None:
    """Trial 0 was paused at the first rung, 3 at the second, and 5 had trained nothing; 1, 2 and 4
    had diverged and failed. The random states are in the checkpoints under their old key."""
    result = resume_lightning(copied("lightning", tmp_path))
    rows = [tuple(row[k] for k in ("state", "reason", "epochs", "score")) for row in result.rows]
    assert rows == [
        ("PRUNED", "asha", 1, 0.3161109387874603),
        ("PRUNED", "nan", 2, 0.40311095118522644),
        ("FAIL", "ArithmeticError", 1, None),
        ("COMPLETE", "last epoch", 4, 3.826046943664551),
        ("FAIL", "oom", 1, None),
        ("PRUNED", "asha", 1, 0.3451109230518341),
        ("PRUNED", "asha", 1, 0.32444649934768677),
        ("PRUNED", "asha", 1, 0.18528731167316437),
        ("PRUNED", "asha", 1, 0.36365053057670593),
        ("PRUNED", "asha", 2, 1.0495994091033936),
    ]
    assert [row["config/fate"] for row in result.rows[6:]] == ["full", "nan", "full", "raise"]
    assert "try --cpus-per-trial 2" in result.failures[4]
    log = result.failures[2].partition(", see ")[2]
    assert "as it was to be" in Path(log).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_saved_define_by_run_resumes(tmp_path: Path) -> None:
    """Its record has no configs: what the function returned besides is found by calling it."""

    # Without annotations: the source is compared with the recorded one.
    def space(trial):
        kind = trial.suggest_categorical("kind", ["line", "curve"])
        if kind == "curve":
            trial.suggest_float("bend", 0.0, 1.0)
        trial.suggest_float("x", 0.0, 1.0)
        return {"constant": 3}

    def objective(config: dict[str, Any]) -> float:
        return float(config["x"]) + config["constant"]

    storage_path = copied("function", tmp_path)
    result = run_sweep(
        Settings(num_trials=4, storage_path=storage_path, name="function", resume=True),
        space=space,
        metric="score",
        mode="max",
        objective=objective,
        progress=None,
    )
    assert [row["score"] for row in result.rows] == [
        3.3864384788026887,
        3.9772041531366336,
        3.983009741843502,
        3.617884185357769,
    ]
    assert [row["config/constant"] for row in result.rows] == [3] * 4


def test_saved_data_is_a_fact() -> None:
    manifest = Manifest.read(SAVED / "digits")
    assert manifest.facts == {"data": "digits"}
    settings = recorded_settings(SAVED / "digits", MNISTSettings(name="digits", resume=True))
    assert (settings.data, settings.max_epochs, settings.num_trials) == ("digits", 3, 4)


def test_saved_changes_are_refused(tmp_path: Path) -> None:
    storage_path = copied("lightning", tmp_path)
    before = (tmp_path / "lightning" / "study.log").read_bytes()
    with pytest.raises(SettingsError, match="its max_epochs is 4, not 5"):
        resume_lightning(storage_path, max_epochs=5)
    assert (tmp_path / "lightning" / "study.log").read_bytes() == before
