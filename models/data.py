"""Image classification data as NumPy arrays, and LightningDataModules that slice batches from them.

    splits = load_splits("auto", "data")       # MNIST, or scikit-learn's digits without a network
    Trainer().fit(MLP(), MNISTData(splits))

A `Splits` holds arrays and no tensors: Ray shares arrays between processes without a copy.
"""

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor

__all__ = [
    "ArrayData",
    "Batches",
    "DataError",
    "DigitsData",
    "MNISTData",
    "Splits",
    "load_digits",
    "load_mnist",
    "load_splits",
]

Images: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]

# The split must be the same for every trial and every sweep, or their scores could not be compared.
SPLIT_SEED = 0
MNIST_FILES = {
    "train_images": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "train_labels": ("train-labels-idx1-ubyte", (60_000,)),
    "test_images": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "test_labels": ("t10k-labels-idx1-ubyte", (10_000,)),
}


class DataError(ValueError):
    """The data asked for is missing, or its files are not what they should be."""


@dataclass(frozen=True)
class Splits:
    """A data set, split into training, validation and test.

    Attributes:
        name: What it is: "mnist" or "digits".
        train: Images, uint8 with shape (N, 1, height, width), and labels, int64 with shape (N,).
        val: The same for validation; never overlaps `test`.
        test: The same for the test at the end.
    """

    name: str
    train: tuple[Images, Labels]
    val: tuple[Images, Labels]
    test: tuple[Images, Labels]

    @property
    def in_size(self) -> int:
        """Pixels of one image."""
        return math.prod(self.train[0].shape[1:])

    @property
    def num_classes(self) -> int:
        return int(self.train[1].max()) + 1

    @property
    def mean(self) -> float:
        """Mean of the training pixels, as floats in [0, 1]."""
        return float(self.train[0].mean()) / 255

    @property
    def std(self) -> float:
        """Standard deviation of the training pixels, as floats in [0, 1]."""
        return float(self.train[0].std()) / 255


def load_splits(data: Literal["auto", "mnist", "digits"], data_dir: str | Path) -> Splits:
    """Load MNIST or the digits.

    Args:
        data: "mnist" insists on MNIST; "digits" needs no files; "auto" takes MNIST where it can be
            read or downloaded, else says so in one line and takes the digits.
        data_dir: The folder that holds, or will hold, torchvision's `MNIST/raw`.

    Raises:
        DataError: MNIST is asked for and cannot be had, or one of its files is damaged.
    """
    if data == "digits":
        return load_digits()
    raw = Path(data_dir) / "MNIST" / "raw"
    if not all(_find(raw / name) for name, _ in MNIST_FILES.values()):
        try:
            _download_mnist(data_dir)
        except Exception as error:  # torchvision raises whatever the network and the disk raise
            reason = f"MNIST is not in {data_dir} and could not be downloaded ({_brief(error)})"
            if data == "mnist":
                raise DataError(
                    f"{reason}; put its four files into {raw}, or use --data digits."
                ) from error
            print(f"{reason}: tuning on scikit-learn's digits instead.", flush=True)
            return load_digits()
    return load_mnist(data_dir)


def load_mnist(data_dir: str | Path) -> Splits:
    """Read MNIST's four IDX files: 55 000 images to train on, 5 000 to validate, 10 000 to test.

    Raises:
        DataError: A file is missing, truncated or not MNIST's.
    """
    raw = Path(data_dir) / "MNIST" / "raw"
    arrays = {part: _read_idx(raw / name, shape) for part, (name, shape) in MNIST_FILES.items()}
    images, labels = arrays["train_images"][:, None], arrays["train_labels"].astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    train, val = order[:55_000], order[55_000:]
    return Splits(
        name="mnist",
        train=(images[train], labels[train]),
        val=(images[val], labels[val]),
        test=(arrays["test_images"][:, None], arrays["test_labels"].astype(np.int64)),
    )


def load_digits() -> Splits:
    """Read scikit-learn's 1 797 digits of 8 x 8 pixels: 1 197 / 300 / 300."""
    from sklearn import datasets  # here, since it takes a second to import

    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    train, val, test = np.split(order, [1_197, 1_497])
    return Splits(
        name="digits",
        train=(images[train], labels[train]),
        val=(images[val], labels[val]),
        test=(images[test], labels[test]),
    )


def _find(path: Path) -> Path | None:
    """The file itself or its gzipped form, whichever is there."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read one IDX file (format: http://yann.lecun.com/exdb/mnist) of unsigned bytes."""
    found = _find(path)
    if found is None:
        raise DataError(f"{path} is missing.")
    try:
        content = found.read_bytes()
        if found.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{found} cannot be read: {_brief(error)}.") from error
    header = b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
    expected = len(header) + math.prod(shape)
    if content[: len(header)] != header:
        raise DataError(f"{found} is not MNIST's {path.name}: its header is another one.")
    if len(content) != expected:
        raise DataError(
            f"{found} must hold {expected} bytes, but has {len(content)}; "
            "delete it to download it again."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _download_mnist(data_dir: str | Path) -> None:
    from torchvision.datasets import MNIST  # here, since only a download needs it

    MNIST(data_dir, download=True)


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")


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

    Images stay bytes until they are on the trial's device, a quarter of what floats would move.
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
        # Ray's shared arrays are read-only; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(split[0]), torch.from_numpy(split[1])
