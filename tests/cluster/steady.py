"""A job whose epochs last a second and whose trials say where they run; for the tests of clusters.

Each epoch adds a random number from torch's global state to a weight. All trials have the same
seed, so that their curves differ by `x` alone, wherever and however often they resumed.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from ray import tune

from tune_jobs.engine import LightningSettings, SweepResult, run_job, run_sweep

EPOCH_S = float(os.environ.get("STEADY_EPOCH_S", "1"))
NOTES = os.environ["STEADY_NOTES"]  # a file, on all hosts


def make_model(config: dict[str, Any], data: Any) -> Any:
    import pytorch_lightning as pl
    import torch

    class Steady(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_index: int) -> Any:
            time.sleep(EPOCH_S)
            with torch.no_grad():
                self.weight += torch.rand(1)
            return self.weight.sum() * 0

        def validation_step(self, batch: Any, batch_index: int) -> None:
            self.log("score", config["x"] + self.weight.item())

        def on_train_epoch_start(self) -> None:
            with open(NOTES, "a") as file:
                file.write(f"{socket.gethostname()} {config['x']:.6f} {self.current_epoch + 1}\n")

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Steady()


def make_data(config: dict[str, Any], data: Any) -> Any:
    import pytorch_lightning as pl
    import torch

    class OneBatch(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([torch.zeros(1)])

        val_dataloader = train_dataloader

    return OneBatch()


def main(settings: LightningSettings) -> SweepResult:
    return run_sweep(
        settings,
        space={"x": tune.uniform(0, 1)},
        metric="score",
        mode="max",
        make_model=make_model,
        make_data=make_data,
    )


if __name__ == "__main__":
    run_job(main, LightningSettings, __doc__)
