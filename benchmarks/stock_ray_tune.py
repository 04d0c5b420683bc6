"""A peer: Ray Tune, OptunaSearch, ASHA and Lightning, combined as in the tutorials."""

import json
import tempfile
from pathlib import Path
from typing import Any

import tyro
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.peer_args import PeerArgs
from tune_jobs.mnist import SEARCH_SPACE


def train(config: dict[str, Any], data_dir: Path, max_epochs: int) -> None:
    import pytorch_lightning as pl
    from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

    from benchmarks.usual import UsualMLP, make_loaders

    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[TuneReportCheckpointCallback({"val_acc": "val_acc"}, on="validation_end")],
    )
    train_loader, val_loader = make_loaders(config, data_dir)
    trainer.fit(UsualMLP(config), train_loader, val_loader)


def main(args: PeerArgs) -> None:
    data_dir = args.data_dir.resolve()
    with tempfile.TemporaryDirectory() as folder:
        grid = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(train, data_dir=data_dir, max_epochs=args.max_epochs),
                {"CPU": 1},
            ),
            param_space=SEARCH_SPACE,
            tune_config=tune.TuneConfig(
                metric="val_acc",
                mode="max",
                search_alg=OptunaSearch(),
                scheduler=ASHAScheduler(max_t=args.max_epochs, reduction_factor=3),
                num_samples=args.num_trials,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        trials = [
            {"config": r.config, "epochs": (r.metrics or {}).get("training_iteration", 0)}
            for r in grid
        ]
    args.trials.write_text(json.dumps(trials))


if __name__ == "__main__":
    main(tyro.cli(PeerArgs, description=__doc__))
