"""Record the learning curves of many configs of the MNIST space, for simulated sweeps.

    python -m benchmarks.record_curves --data mnist --data-dir data    # 420 configs, 80 min
    python -m benchmarks.record_curves --data mnist --data-dir data --num-repeats 7    # 16 min more
    python -m benchmarks.record_curves --data digits                   # minutes

A config depends on its index alone, and its initial weights on the index and the number of the
repeat. So an interrupted run can be continued, with any number of processes, and the table can grow
without changing the curves in it. Repeats separate the luck of a training from the quality of its
config. The recorded seconds are from a machine that others used at the same time.
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
NUM_KEYS = 2  # the first columns, which identify a training
REPEATED_SHARE = 0.25  # configs are repeated from this best share of the recorded ones
SEEDS_A_REPEAT = 1_000_000


@dataclass(frozen=True)
class Args:
    """Record the learning curves of many configs."""

    data: Literal["mnist", "digits"] = "mnist"
    """Data set to train on."""
    data_dir: Path = Path("data")
    """Folder with torchvision's MNIST/raw."""
    num_configs: int = 420
    """Configs to record; those already recorded are skipped."""
    max_epochs: int = 27
    """Epochs of each training."""
    num_images: int = 20_000
    """Training images, at most."""
    num_repeats: int = 0
    """How often some configs of the best quarter are trained again, from other weights."""
    num_repeated: int = 16
    """How many configs are trained again."""
    num_processes: int = os.cpu_count() or 1
    """Configs that train in parallel, on one core each."""


class Training(NamedTuple):
    """One training of a config.

    Attributes:
        config: The index of the config.
        repeat: 0 for the first training, 1 for the first repeat, and so on.
    """

    config: int
    repeat: int = 0

    @property
    def seed(self) -> int:
        return self.config + SEEDS_A_REPEAT * self.repeat


def draw_config(index: int) -> dict[str, Any]:
    """Draw the config with this index; it is always the same."""
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
        One row of `COLUMNS` for each epoch; its seconds include the validation.
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
    """Read the recorded configs of a data set.

    Returns:
        The N configs; and "val_acc", "val_loss" and "seconds", each with shape (N, epochs).
    """
    recorded = read_rows(table_of(data))
    firsts = _first_trainings(recorded)
    curves = _stack([recorded[training] for training in firsts])
    return [draw_config(training.config) for training in firsts], curves


def read_repeats(data: str, metric: str) -> dict[int, np.ndarray]:
    """Read the repeats of the configs that were trained again.

    The first training of each config is left out: the config was chosen for it, so it was lucky.

    Returns:
        Position among the configs of `read_curves` -> values with shape (repeats, epochs).
    """
    recorded = read_rows(table_of(data))
    places = {first.config: place for place, first in enumerate(_first_trainings(recorded))}
    repeats = sorted(training for training in recorded if training.repeat)
    return {
        places[config]: _stack([recorded[training] for training in group])[metric]
        for config, group in itertools.groupby(repeats, key=lambda training: training.config)
    }


def read_rows(path: Path) -> dict[Training, list[list[str]]]:
    """Read the rows of each training, without their keys; empty if the file does not exist."""
    recorded: dict[Training, list[list[str]]] = {}
    if path.exists():
        with gzip.open(path, "rt", newline="") as file:
            for index, repeat, *row in list(csv.reader(file))[1:]:
                recorded.setdefault(Training(int(index), int(repeat)), []).append(row)
    return recorded


def write_curves(parts: Path, path: Path) -> int:
    """Add the curves of the part files to the table, sorted by index.

    Returns:
        The number of curves in the table.
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
    # Without a time in the header, the same curves always give the same bytes.
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return len(recorded)


def table_of(data: str) -> Path:
    return CURVES / f"{data}.csv.gz"


def list_trainings(args: Args) -> list[Training]:
    """All trainings that the arguments ask for."""
    firsts = [Training(index) for index in range(args.num_configs)]
    if not args.num_repeats:
        return firsts
    repeated = choose_repeated(args)
    repeats = range(1, args.num_repeats + 1)
    return firsts + [Training(config, repeat) for repeat in repeats for config in repeated]


def choose_repeated(args: Args) -> list[int]:
    """Choose the configs to train again.

    These are the ones that already have repeats; or, if there are none, configs evenly spaced among
    the best recorded ones.

    Raises:
        SystemExit: No config has been recorded.
    """
    recorded = read_rows(table_of(args.data))
    if not recorded:
        raise SystemExit("no configs are recorded; run without --num-repeats first.")
    again = sorted({training.config for training in recorded if training.repeat})
    if again:
        return again
    _, curves = read_curves(args.data)
    firsts = _first_trainings(recorded)
    ranked = (-curves["val_acc"].max(axis=1)).argsort(kind="stable")
    places = np.linspace(0, REPEATED_SHARE * len(ranked), args.num_repeated, endpoint=False)
    return [firsts[ranked[int(place)]].config for place in places]


def work(args: Args, parts: Path, first: int, trainings: list[Training]) -> None:
    import torch

    torch.set_num_threads(1)
    data = load_images(args)
    recorded = read_rows(table_of(args.data))
    for training in trainings[first :: args.num_processes]:
        part = parts / f"{training.config}-{training.repeat}.json"
        if training not in recorded and not part.exists():
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


def _first_trainings(recorded: Iterable[Training]) -> list[Training]:
    """The first training of each config, sorted by index."""
    return sorted(training for training in recorded if not training.repeat)


def _stack(rows: list[list[list[str]]]) -> dict[str, np.ndarray]:
    """Stack the columns of some trainings, each with shape (trainings, epochs)."""
    table = np.array(rows, float)  # (trainings, epochs, columns from the epoch on)
    names = COLUMNS[NUM_KEYS:]
    return {name: table[:, :, names.index(name)] for name in names[1:]}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
