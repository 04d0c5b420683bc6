"""Train configs of the MNIST space to the end, and keep their curves for simulated sweeps.

    python -m benchmarks.record_curves --data mnist --data-dir data    # 420 configs, 80 min
    python -m benchmarks.record_curves --data mnist --data-dir data --num-repeats 7    # and 16 min
    python -m benchmarks.record_curves --data digits                   # minutes

A config is drawn from its index alone, and its weights from that and the number of the repeat, so a
run that was cut off goes on where it was, in any number of processes, and the table grows without
changing what it has. Repeats tell the luck of a training from what its config is worth. The seconds
are those of a machine that others used too.
"""

import csv
import gzip
import io
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from models.splits import Splits, load_splits
from tune_jobs.mnist import SEARCH_SPACE, make_data, make_model

CURVES = Path(__file__).parent / "curves"
COLUMNS = ["index", "repeat", "epoch", "val_acc", "val_loss", "seconds"]
NUM_KEYS = 2  # of the columns
REPEATED_SHARE = 0.25  # whose configs are repeated: the best of those recorded
SEEDS_A_REPEAT = 1_000_000


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
    num_repeats: int = 0
    """Times that some of the best quarter are trained again, from other weights."""
    num_repeated: int = 16
    """Configs that are."""
    num_processes: int = os.cpu_count() or 1
    """Configs that train side by side, on one core each."""


class Training(NamedTuple):
    """A config that is trained once.

    Attributes:
        config: The index that it is drawn from.
        repeat: 0, or which of the times that it was trained again.
    """

    config: int
    repeat: int = 0

    @property
    def seed(self) -> int:
        return self.config + SEEDS_A_REPEAT * self.repeat


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


def record(training: Training, data: Splits, max_epochs: int) -> list[list[float]]:
    """Train one config once.

    Returns:
        The rows of `COLUMNS`, one an epoch; seconds are the epoch's own, validation included.
    """
    import pytorch_lightning as pl

    from tune_jobs.engine.cluster.slots import Resources
    from tune_jobs.engine.trainable.lightning import make_trainer

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
                        *training,
                        trainer.current_epoch + 1,
                        round(scores["val_acc"].item(), 6),
                        round(scores["val_loss"].item(), 6),
                        round(time.perf_counter() - self.started, 4),
                    ]
                )

    pl.seed_everything(training.seed, verbose=False)
    config, notes = draw_config(training.config), Notes()
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
    recorded = read_rows(table_of(data))
    firsts = _first_times(recorded)
    curves = _stack([recorded[training] for training in firsts])
    return [draw_config(training.config) for training in firsts], curves


def read_repeats(data: str, metric: str) -> dict[int, np.ndarray]:
    """What the configs that were trained again have shown, shape (repeats, epochs).

    They go by their places among the configs of `read_curves`. Their first times, for which they
    were chosen, are left out: those were lucky.
    """
    recorded = read_rows(table_of(data))
    places = {first.config: place for place, first in enumerate(_first_times(recorded))}
    repeats = sorted(training for training in recorded if training.repeat)
    return {
        places[config]: _stack([recorded[training] for training in group])[metric]
        for config, group in itertools.groupby(repeats, key=lambda training: training.config)
    }


def read_rows(path: Path) -> dict[Training, list[list[str]]]:
    """What follows the keys in the rows of each training; nothing where the file is not there."""
    recorded: dict[Training, list[list[str]]] = {}
    if path.exists():
        with gzip.open(path, "rt", newline="") as file:
            for index, repeat, *row in list(csv.reader(file))[1:]:
                recorded.setdefault(Training(int(index), int(repeat)), []).append(row)
    return recorded


def write_curves(parts: Path, path: Path) -> int:
    """Add what has been recorded to what is there, in the order of the indices.

    Returns:
        How many curves that are.
    """
    recorded = read_rows(path)
    for part in parts.glob("*.json"):
        rows = json.loads(part.read_text())
        recorded[Training(*rows[0][:NUM_KEYS])] = [row[NUM_KEYS:] for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for training in sorted(recorded):
        writer.writerows([*training, *row] for row in recorded[training])
    # No time in the header: the same curves are the same bytes.
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return len(recorded)


def table_of(data: str) -> Path:
    return CURVES / f"{data}.csv.gz"


def list_trainings(args: Args) -> list[Training]:
    """All that are asked for."""
    firsts = [Training(index) for index in range(args.num_configs)]
    if not args.num_repeats:
        return firsts
    repeated = choose_repeated(args)
    repeats = range(1, args.num_repeats + 1)
    return firsts + [Training(config, repeat) for repeat in repeats for config in repeated]


def choose_repeated(args: Args) -> list[int]:
    """Those that have been already, else some evenly among the best of the recorded ones.

    Raises:
        SystemExit: No config has been recorded.
    """
    recorded = read_rows(table_of(args.data))
    if not recorded:
        raise SystemExit("no config has been recorded; leave out --num-repeats first.")
    again = sorted({training.config for training in recorded if training.repeat})
    if again:
        return again
    _, curves = read_curves(args.data)
    firsts = _first_times(recorded)
    ranked = (-curves["val_acc"].max(axis=1)).argsort(kind="stable")
    places = np.linspace(0, REPEATED_SHARE * len(ranked), args.num_repeated, endpoint=False)
    return [firsts[ranked[int(place)]].config for place in places]


def work(args: Args, parts: Path, first: int, trainings: list[Training]) -> None:
    import torch

    torch.set_num_threads(1)
    data = load_images(args)
    there = read_rows(table_of(args.data))
    for training in trainings[first :: args.num_processes]:
        part = parts / f"{training.config}-{training.repeat}.json"
        if training not in there and not part.exists():
            unfinished = part.with_suffix(".part")
            unfinished.write_text(json.dumps(record(training, data, args.max_epochs)))
            unfinished.rename(part)


def main(args: Args) -> None:
    parts = CURVES / args.data
    parts.mkdir(parents=True, exist_ok=True)
    trainings = list_trainings(args)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(args, parts, first, trainings))
        for first in range(args.num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    path = table_of(args.data)
    print(f"{write_curves(parts, path)} curves in {path}")


def _first_times(recorded: Iterable[Training]) -> list[Training]:
    """Each config's first training, in the order of their indices."""
    return sorted(training for training in recorded if not training.repeat)


def _stack(rows: list[list[list[str]]]) -> dict[str, np.ndarray]:
    """The columns of some trainings, each with shape (trainings, epochs)."""
    table = np.array(rows, float)  # (trainings, epochs, columns from the epoch on)
    names = COLUMNS[NUM_KEYS:]
    return {name: table[:, :, names.index(name)] for name in names[1:]}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
