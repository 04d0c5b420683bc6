"""Trials that pause and resume, in a real sweep of the project's own model."""

from __future__ import annotations  # classes inside functions go to the workers by value

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pytorch_lightning.loggers import CSVLogger

from models.splits import load_digits
from tune_jobs.engine import LightningSettings, SweepResult, run_sweep
from tune_jobs.mnist import SEARCH_SPACE, make_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def tune_digits(folder: Path, **settings: Any) -> SweepResult:
    """Tune the MLP on the digits, with dropout, shuffled batches, AdamW and a schedule."""

    def make_model(config: dict[str, Any], data: Any) -> Any:
        import torch

        from models.mlp import MLP

        class Scheduled(MLP):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=500)
                interval = {"scheduler": schedule, "interval": "step"}
                return {"optimizer": optimizer, "lr_scheduler": interval}

            def on_train_epoch_end(self) -> None:
                super().on_train_epoch_end()
                self.log("lr", self.lr_schedulers().get_last_lr()[0])
                self.log("weights", sum(p.abs().sum() for p in self.parameters()))

        return Scheduled(
            in_size=64,
            hidden_size=config["hidden_size"],
            num_layers=config["num_layers"],
            dropout=config["dropout"],
            lr=config["lr"],
        )

    defaults = {"max_epochs": 9, "gpus_per_trial": 0, "storage_path": str(folder), "num_trials": 9}
    return run_sweep(
        LightningSettings(**{**defaults, **settings}),
        space=SEARCH_SPACE,
        metric="val_acc",
        mode="max",
        load_data=lambda settings: load_digits(),
        make_model=make_model,
        make_data=make_data,
        trainer_kwargs={"logger": CSVLogger(str(folder / "logs"), settings["name"])},
    )


def read_results(sweep: SweepResult) -> dict[int, list[dict[str, Any]]]:
    """The results of each trial, by its number."""
    files = sorted(Path(sweep.path).glob("trial_*/result.json"))
    return {
        int(file.parent.name.removeprefix("trial_")): [
            json.loads(line) for line in file.read_text().splitlines()
        ]
        for file in files
    }


def test_paused_trials_resume_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They resume in the processes of the slots, and their curves are those of trials that never
    paused: training and validation metrics, learning rate and weights."""
    sweep = tune_digits(tmp_path, name="paused")
    lines = capsys.readouterr().out.splitlines()
    paused = {int(line.split()[1]) for line in lines if " PAUSED with value " in line}
    results = read_results(sweep)
    # A trial that is promoted as it reports is never stopped.
    resumed = [number for number in paused if len(results[number]) > 1]
    assert resumed
    assert {row["state"] for row in sweep.rows} == {"COMPLETE", "PRUNED"}
    assert {row["reason"] for row in sweep.rows} == {"last epoch", "asha"}
    # Two slots: if processes were not reused, each pause would cost the start of one.
    assert len({result["pid"] for rows in results.values() for result in rows}) <= 2

    # By itself, the logger would delete the first part when the second begins.
    for number in resumed:
        parts = (tmp_path / "logs" / "paused").glob(f"trial_{number:04d}*/metrics.csv")
        rows = [row for part in parts for row in csv.DictReader(part.read_text().splitlines())]
        assert {int(row["epoch"]) for row in rows} == set(range(len(results[number])))

    configs = tmp_path / "configs.json"
    configs.write_text(json.dumps([trial.params for trial in sweep.study.trials]))
    whole = read_results(tune_digits(tmp_path, name="whole", grace_epochs=9, enqueue=str(configs)))
    names = ("epoch", "train_loss", "val_loss", "val_acc", "lr", "weights")
    for number, rows in results.items():
        curve = [[row[name] for name in names] for row in rows]
        assert curve == [[row[name] for name in names] for row in whole[number]][: len(rows)]
