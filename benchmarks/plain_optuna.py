"""A peer: plain Optuna and Lightning, in two processes that share a study, as users write it."""

import json
import multiprocessing
import tempfile
from typing import Any

import tyro

from benchmarks.peer_args import PeerArgs

NUM_PROCESSES = 2


def make_study(folder: str) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    return optuna.create_study(
        study_name="plain",
        storage=optuna.storages.JournalStorage(JournalFileBackend(f"{folder}/study.log")),
        direction="maximize",
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3),
        load_if_exists=True,
    )


def work(folder: str, args: PeerArgs) -> None:
    import optuna
    import pytorch_lightning as pl
    import torch

    from benchmarks.usual import UsualMLP, make_loaders, suggest_config

    torch.set_num_threads(1)

    class Report(pl.Callback):
        def __init__(self, trial: optuna.Trial) -> None:
            self.trial = trial

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking:
                return
            score = trainer.callback_metrics["val_acc"].item()
            self.trial.report(score, trainer.current_epoch + 1)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def objective(trial: optuna.Trial) -> float:
        config = suggest_config(trial)
        trainer = pl.Trainer(
            max_epochs=args.max_epochs,
            accelerator="cpu",
            enable_progress_bar=False,
            default_root_dir=folder,
            callbacks=[Report(trial)],
        )
        train, val = make_loaders(config, args.data_dir)
        trainer.fit(UsualMLP(config), train, val)
        return trainer.callback_metrics["val_acc"].item()

    make_study(folder).optimize(objective, n_trials=args.num_trials // NUM_PROCESSES)


def main(args: PeerArgs) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(folder)
        processes = [
            context.Process(target=work, args=(folder, args)) for _ in range(NUM_PROCESSES)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        trials = [{"config": t.params, "epochs": len(t.intermediate_values)} for t in study.trials]
    args.trials.write_text(json.dumps(trials))


if __name__ == "__main__":
    main(tyro.cli(PeerArgs, description=__doc__))
