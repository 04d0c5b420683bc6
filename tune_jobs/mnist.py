"""Tune an MLP on MNIST: Optuna suggests configs, Ray Tune trains them, ASHA stops the weak ones.

    python tune_jobs/mnist.py
    python tune_jobs/mnist.py --num-trials 40 --max-epochs 20 --seed 1
    python tune_jobs/mnist.py --gpus-per-trial 0.25      # four trials per GPU

To make a job of your own, copy this file and change the search space, the data and the model.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ray import tune

from models.splits import DataError, Splits, load_splits
from tune_jobs.engine import LightningSettings, Loaded, SettingsError, fixed, run_job

if TYPE_CHECKING:  # imported where they are used: `--help` should not wait for torch
    from models.data import ArrayData
    from models.mlp import MLP
    from tune_jobs.engine import SweepResult

SEARCH_SPACE = {
    "hidden_size": tune.choice([64, 128, 256]),
    "num_layers": tune.randint(2, 5),  # linear layers: 2, 3 or 4
    "dropout": tune.uniform(0.0, 0.5),
    "lr": tune.loguniform(1e-4, 1e-2),
    "weight_decay": tune.loguniform(1e-6, 1e-2),
    "batch_size": tune.choice([64, 128, 256]),
}


@dataclass(frozen=True)
class MNISTSettings(LightningSettings):
    """Settings of the job on MNIST."""

    data: Literal["auto", "mnist", "digits"] = fixed("auto")
    """Data set; auto: MNIST from data-dir or the network, else scikit-learn's digits."""
    data_dir: str = os.environ.get("TUNE_JOBS_DATA_DIR") or "data"
    """Folder with torchvision's MNIST/raw; $TUNE_JOBS_DATA_DIR changes the default."""


def load_data(settings: MNISTSettings) -> Loaded:
    """Called once, in the driver; the trials share the arrays through Ray's object store."""
    try:
        splits = load_splits(settings.data, settings.data_dir)
    except DataError as error:
        raise SettingsError(str(error)) from error
    return Loaded(splits, data=splits.name)  # recorded, so that `--resume` loads the same


def make_model(config: dict[str, Any], data: Splits) -> "MLP":
    from models.mlp import MLP

    return MLP(
        in_size=data.in_size,
        out_size=data.num_classes,
        hidden_size=config["hidden_size"],
        num_layers=config["num_layers"],
        dropout=config["dropout"],
        lr=config["lr"],
        weight_decay=config["weight_decay"],
        mean=data.mean,
        std=data.std,
    )


def make_data(config: dict[str, Any], data: Splits) -> "ArrayData":
    from models.data import ArrayData

    return ArrayData(data, config["batch_size"])


def main(settings: MNISTSettings) -> "SweepResult":
    from tune_jobs.engine import run_sweep

    return run_sweep(
        settings,
        space=SEARCH_SPACE,
        metric="val_acc",
        mode="max",
        load_data=load_data,
        make_model=make_model,
        make_data=make_data,
    )


if __name__ == "__main__":
    run_job(main, MNISTSettings, __doc__)
