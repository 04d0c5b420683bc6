"""LightningDataModules that slice batches from arrays in memory.

Trainer().fit(MLP(), MNISTData())                   # reads ./data, or downloads to it
Trainer().fit(MLP(in_size=64), DigitsData())
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from models.splits import Images, Labels, Splits, load_digits, load_splits

__all__ = ["ArrayData", "Batches", "DigitsData", "MNISTData"]


class Batches:
    """Batches sliced from tensors in memory; several times faster than a DataLoader's items.

    The order comes from torch's global random state, as a DataLoader's does.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, shuffle: bool) -> None:
        self.images, self.labels = images, labels
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.shuffle:
            for index in torch.split(torch.randperm(len(self.images)), self.batch_size):
                yield self.images[index], self.labels[index]
        else:
            for start in range(0, len(self.images), self.batch_size):
                batch = slice(start, start + self.batch_size)
                yield self.images[batch], self.labels[batch]


class ArrayData(pl.LightningDataModule):
    """Batches of (images, labels): floats in [0, 1], shape (B, 1, height, width), and int64, (B,).

    Images stay bytes until they are on the trial's device: a quarter of the data to move.
    """

    eval_batch_size = 1_000

    def __init__(self, splits: Splits, batch_size: int = 128) -> None:
        super().__init__()
        self.splits = splits
        self.batch_size = batch_size

    def train_dataloader(self) -> Batches:
        return Batches(*_tensors(self.splits.train), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Batches:
        return Batches(*_tensors(self.splits.val), self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> Batches:
        return Batches(*_tensors(self.splits.test), self.eval_batch_size, shuffle=False)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return images.float().div_(255), labels


class MNISTData(ArrayData):
    """MNIST; reads it from `data_dir` unless `splits` are given."""

    def __init__(
        self, splits: Splits | None = None, batch_size: int = 128, data_dir: str | Path = "data"
    ) -> None:
        super().__init__(splits or load_splits("mnist", data_dir), batch_size)


class DigitsData(ArrayData):
    """scikit-learn's digits, 64 inputs; needs no files."""

    def __init__(self, splits: Splits | None = None, batch_size: int = 32) -> None:
        super().__init__(splits or load_digits(), batch_size)


def _tensors(split: tuple[Images, Labels]) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        # Ray's shared arrays are read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(split[0]), torch.from_numpy(split[1])
