"""The job that is tortured: modules whose scores follow a formula.

    python tests/torture/job.py --name NAME --storage-path DIR ...

Run as a script: what is defined here then goes to the workers by value.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from ray import tune

from tune_jobs.engine import LightningSettings, SweepResult, run_job, run_sweep

NUM_TRIALS = 24
MAX_EPOCHS = 9
REDUCTION_FACTOR = 3
RUNGS = (1, 3, 9)
NUM_KEPT = 10


def score(x: float, n: float, epoch: float) -> float:
    """What a trial of this config scores in this epoch.

    It rises to a height that depends on the config, so that ASHA has something to choose from, and
    falls again after a peak, so that the best epoch is not always the last. It is a multiple of
    2^-20, which float32 holds exactly: Lightning keeps what is logged as float32.
    """
    height = 1 - (x - 0.6) ** 2 + 0.02 * n
    peak = 4 + n % 6
    value = height * (1 - 0.5**epoch) - 0.03 * max(0.0, epoch - peak)
    return round(value * 2**20) / 2**20


def seconds_of_epoch(n: float) -> float:
    """0.05 to 0.2, so that trials do not run in step."""
    return 0.05 + 0.15 * (n % 4) / 3


def make_model(config: dict[str, Any], data: Any) -> Any:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        """Scores by its buffers alone: a checkpoint of another trial or epoch would be noticed."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            for name in ("x", "n"):
                self.register_buffer(name, torch.tensor(config[name], dtype=torch.float64))
            self.register_buffer("epochs", torch.tensor(0.0, dtype=torch.float64))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            time.sleep(seconds_of_epoch(self.n.item()))
            self.epochs += 1
            return (self.weight * batch[0]).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", score(self.x.item(), self.n.item(), self.epochs.item()))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def make_data(config: dict[str, Any], data: Any) -> Any:
    import pytorch_lightning as pl

    class Data(pl.LightningDataModule):  # type: ignore[name-defined,misc]
        def train_dataloader(self) -> Any:
            dataset = torch.utils.data.TensorDataset(torch.ones(1, 1))
            return torch.utils.data.DataLoader(dataset, batch_size=1)

        val_dataloader = train_dataloader

    return Data()


def main(settings: LightningSettings) -> SweepResult:
    return run_sweep(
        settings,
        space={"x": tune.uniform(0, 1), "n": tune.randint(1, 9)},
        metric="score",
        mode="max",
        make_model=make_model,
        make_data=make_data,
    )


if __name__ == "__main__":
    run_job(main, LightningSettings, "A job to be tortured.")
