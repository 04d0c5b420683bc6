"""A sweep of tiny LightningModules that behave as their configs say, for the tests.

    TINY_NOTES=DIR python tests/tiny.py --storage-path DIR --name NAME [--resume] ...   # as a job

Each epoch adds a random number to a weight, from torch's global state, and the score is the weight:
a trial that does not resume exactly where it stopped has another curve. All trials have the same
seed, so trials with the same `x` have the same curve, however often they were interrupted.
"""

from __future__ import annotations  # classes inside functions go to the workers by value

import json
import os
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tune_jobs.engine import LightningSettings, SweepResult, run_job, run_sweep

# What a trial does in its second epoch: "good" trains it, the others fail in one way or another.
BEHAVIORS = ["good", "nan", "raise", "oom", "die", "full", "slow"]
SPACE = {"x": tune.uniform(0, 1), "behavior": tune.choice(BEHAVIORS)}


def tune_tiny(
    folder: Path, configs: list[dict[str, Any]] | None = None, **settings: Any
) -> SweepResult:
    """Run a sweep in the folder, of the given configs first."""
    if configs is not None:
        file = folder / "configs.json"
        file.write_text(json.dumps(configs))
        settings = {"enqueue": str(file), "num_trials": len(configs), **settings}
    defaults = {"max_epochs": 4, "grace_epochs": 4, "gpus_per_trial": 0, "name": "s"}
    return run_tiny(
        LightningSettings(**{"storage_path": str(folder), **defaults, **settings}), str(folder)
    )


def run_tiny(settings: LightningSettings, notes: str) -> SweepResult:
    """Run a sweep.

    Args:
        settings: The settings.
        notes: A folder. Trials append to `epochs.txt` and `deaths.txt` there; a file `no_BEHAVIOR`
            makes trials of that behavior good from then on.
    """

    def make_model(config: dict[str, Any], data: Any) -> Any:
        import errno
        import signal

        import pytorch_lightning as pl
        import torch

        class Tiny(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(1))

            def on_train_epoch_start(self) -> None:
                with open(f"{notes}/epochs.txt", "a") as file:
                    file.write(f"{config['behavior']} {self.current_epoch + 1}\n")
                if self.current_epoch == 1:
                    self.misbehave()

            def misbehave(self) -> None:
                behavior = config["behavior"]
                if Path(notes, f"no_{behavior}").exists():
                    return
                if behavior == "slow":
                    time.sleep(60)
                if behavior == "raise":
                    raise ArithmeticError("raised on purpose")
                if behavior == "oom":
                    raise MemoryError("raised on purpose")
                if behavior == "die":
                    with open(f"{notes}/deaths.txt", "a") as file:
                        file.write("x\n")
                    os.kill(os.getpid(), signal.SIGKILL)

            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                is_full = config["behavior"] == "full" and not Path(notes, "no_full").exists()
                if is_full and self.current_epoch == 1:
                    raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.ckpt")

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return -(self.weight * (config["x"] + torch.rand(1))).sum()

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                diverges = config["behavior"] == "nan" and self.current_epoch > 0
                score = torch.tensor(float("nan")) if diverges else self.weight[0]
                self.log("score", score, batch_size=1)

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

    return run_sweep(
        settings,
        space=SPACE,
        metric="score",
        mode="max",
        make_model=make_model,
        make_data=make_data,
    )


if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(__import__("__main__"))
    run_job(
        lambda settings: run_tiny(settings, os.environ["TINY_NOTES"]),
        LightningSettings,
        "A sweep of tiny modules.",
    )
