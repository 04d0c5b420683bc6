"""Train configs of the MNIST space to the end, and keep their curves for simulated sweeps.

    python -m benchmarks.record_curves --data mnist --data-dir data    # 420 configs, 80 min
    python -m benchmarks.record_curves --data digits                   # minutes

A config and its weights are drawn from its index alone, so a run that was cut off goes on where it
was, in any number of processes, and the table grows without changing what it has. The seconds are
those of a machine that others used too.
"""

import csv
import gzip
import io
import json
import multiprocessing
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from models.splits import Splits, load_splits
from tune_jobs.mnist import SEARCH_SPACE, make_data, make_model

CURVES = Path(__file__).parent / "curves"
COLUMNS = ["index", "epoch", "val_acc", "val_loss", "seconds"]


@dataclass(frozen=True)
class Args:
    """Record the curves of many configs."""

    data: Literal["mnist", "digits"] = "mnist"
    """What they train on."""
    data_dir: Path = Path("data")
    """Folder with torchvision's MNIST/raw."""
    num_configs: int = 420
    """Configs; those that have been recorded are left out."""
    max_epochs: int = 27
    """Epochs each of them trains."""
    num_images: int = 20_000
    """Training images, at most."""
    num_processes: int = os.cpu_count() or 1
    """Configs that train side by side, on one core each."""


def draw_config(index: int) -> dict[str, Any]:
    """The config with this index: the same whoever asks, and whenever."""
    rng = np.random.RandomState(index)
    drawn = {name: domain.sample(random_state=rng) for name, domain in SEARCH_SPACE.items()}
    return {
        name: value.item() if hasattr(value, "item") else value for name, value in drawn.items()
    }


def load_images(args: Args) -> Splits:
    splits = load_splits(args.data, args.data_dir)
    images, labels = splits.train
    return replace(splits, train=(images[: args.num_images], labels[: args.num_images]))


def record(index: int, data: Splits, max_epochs: int) -> list[list[float]]:
    """Train one config.

    Returns:
        The rows of `COLUMNS`, one an epoch; seconds are the epoch's own, validation included.
    """
    import pytorch_lightning as pl

    from tune_jobs.engine.resources import Resources
    from tune_jobs.engine.trial import make_trainer

    class Notes(pl.Callback):
        def __init__(self) -> None:
            self.rows: list[list[float]] = []

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.started = time.perf_counter()

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                scores = trainer.callback_metrics
                self.rows.append(
                    [
                        index,
                        trainer.current_epoch + 1,
                        round(scores["val_acc"].item(), 6),
                        round(scores["val_loss"].item(), 6),
                        round(time.perf_counter() - self.started, 4),
                    ]
                )

    pl.seed_everything(index, verbose=False)
    config, notes = draw_config(index), Notes()
    model = make_model(config, data)
    trainer = make_trainer(
        model,
        Resources(cpus=1, gpus=0, slots=1),
        max_epochs=max_epochs,
        callbacks=[notes],
        enable_checkpointing=False,
    )
    trainer.fit(model, make_data(config, data))
    return notes.rows


def read_curves(data: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The recorded configs of a data set.

    Returns:
        The configs, N of them, and "val_acc", "val_loss" and "seconds", all with shape (N, epochs).
    """
    recorded = read_rows(CURVES / f"{data}.csv.gz")
    table = np.array([recorded[index] for index in sorted(recorded)], float)  # (N, epochs, columns)
    curves = {name: table[:, :, column] for column, name in enumerate(COLUMNS[1:]) if column}
    return [draw_config(index) for index in sorted(recorded)], curves


def read_rows(path: Path) -> dict[int, list[list[str]]]:
    """The rows of each index, without it; none where the file is not there."""
    recorded: dict[int, list[list[str]]] = {}
    if path.exists():
        with gzip.open(path, "rt", newline="") as file:
            for index, *row in list(csv.reader(file))[1:]:
                recorded.setdefault(int(index), []).append(row)
    return recorded


def write_curves(parts: Path, path: Path) -> int:
    """Add what has been recorded to what is there, in the order of the indices.

    Returns:
        How many configs that are.
    """
    recorded = read_rows(path)
    for part in parts.glob("*.json"):
        recorded[int(part.stem)] = [row[1:] for row in json.loads(part.read_text())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for index in sorted(recorded):
        writer.writerows([index, *row] for row in recorded[index])
    # No time in the header: the same curves are the same bytes.
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return len(recorded)


def work(args: Args, parts: Path, first: int) -> None:
    import torch

    torch.set_num_threads(1)
    data = load_images(args)
    there = read_rows(CURVES / f"{args.data}.csv.gz")
    for index in range(first, args.num_configs, args.num_processes):
        part = parts / f"{index}.json"
        if index not in there and not part.exists():
            unfinished = part.with_suffix(".part")
            unfinished.write_text(json.dumps(record(index, data, args.max_epochs)))
            unfinished.rename(part)


def main(args: Args) -> None:
    parts = CURVES / args.data
    parts.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(args, parts, first))
        for first in range(args.num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    path = CURVES / f"{args.data}.csv.gz"
    print(f"{write_curves(parts, path)} configs in {path}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
