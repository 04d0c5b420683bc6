"""Image classification data as NumPy arrays: MNIST, and the digits inside scikit-learn.

    splits = load_splits("auto", "data")       # MNIST, or the digits where there is no network

A `Splits` holds arrays, not tensors: Ray shares arrays between processes without a copy. Reading
them needs no torch, so a driver does not wait for its import.
"""

import gzip
import math
import shutil
import socket
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["DataError", "Splits", "load_digits", "load_mnist", "load_splits"]

Images: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]

# The split must be the same for every trial and every sweep, or their scores could not be compared.
SPLIT_SEED = 0
DOWNLOAD_TIMEOUT_S = 10.0
MNIST_FILES = {
    "train_images": ("train-images-idx3-ubyte", (60_000, 28, 28)),
    "train_labels": ("train-labels-idx1-ubyte", (60_000,)),
    "test_images": ("t10k-images-idx3-ubyte", (10_000, 28, 28)),
    "test_labels": ("t10k-labels-idx1-ubyte", (10_000,)),
}


class DataError(ValueError):
    """The data is missing, or its files are damaged."""


@dataclass(frozen=True)
class Splits:
    """A data set, split into training, validation and test.

    Attributes:
        name: "mnist" or "digits".
        train: Images, uint8 with shape (N, 1, height, width), and labels, int64 with shape (N,).
        val: The same for validation; never overlaps `test`.
        test: The same for the test at the end.
        mean: Mean of the training pixels, as floats in [0, 1].
        std: Their standard deviation.
    """

    name: str
    train: tuple[Images, Labels]
    val: tuple[Images, Labels]
    test: tuple[Images, Labels]
    mean: float
    std: float

    @property
    def in_size(self) -> int:
        """Pixels of one image."""
        return math.prod(self.train[0].shape[1:])

    @property
    def num_classes(self) -> int:
        return int(self.train[1].max()) + 1


def load_splits(data: Literal["auto", "mnist", "digits"], data_dir: str | Path) -> Splits:
    """Load MNIST or the digits.

    Args:
        data: "mnist" requires MNIST; "digits" needs no files; "auto" uses MNIST if it can be read
            or downloaded, otherwise prints one line and uses the digits.
        data_dir: The folder that holds, or will hold, torchvision's `MNIST/raw`.

    Raises:
        DataError: MNIST is required and not available, or one of its files is damaged.
    """
    if data == "digits":
        return load_digits()
    raw = Path(data_dir) / "MNIST" / "raw"
    if not all(_find(raw / name) for name, _ in MNIST_FILES.values()):
        try:
            _download_mnist(raw)
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
    return _make_splits(
        "mnist",
        (images[train], labels[train]),
        (images[val], labels[val]),
        (arrays["test_images"][:, None], arrays["test_labels"].astype(np.int64)),
    )


def load_digits() -> Splits:
    """Read scikit-learn's 1 797 digits of 8 x 8 pixels: 1 197 / 300 / 300."""
    from sklearn import datasets  # here, since it takes a second to import

    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    train, val, test = np.split(order, [1_197, 1_497])
    parts = [(images[part], labels[part]) for part in (train, val, test)]
    return _make_splits("digits", *parts)


def _make_splits(
    name: str,
    train: tuple[Images, Labels],
    val: tuple[Images, Labels],
    test: tuple[Images, Labels],
) -> Splits:
    pixels = train[0]
    mean = float(pixels.mean())
    # E[x^2] - E[x]^2 in whole numbers: `pixels.std()` would fill eight bytes a pixel.
    variance = float(np.square(pixels, dtype=np.uint16).mean()) - mean**2
    return Splits(name, train, val, test, mean / 255, math.sqrt(variance) / 255)


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
        raise DataError(f"{found} is not MNIST's {path.name}: its header is different.")
    if len(content) != expected:
        raise DataError(
            f"{found} must hold {expected} bytes, but has {len(content)}; "
            "delete it to download it again."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _download_mnist(raw: Path) -> None:
    from torchvision.datasets import MNIST  # here, since only a download needs it

    timeout_s = socket.getdefaulttimeout()
    # A firewall that drops packets would otherwise block the job for minutes.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        # Not into `raw` itself: an interrupted download must leave nothing there.
        with tempfile.TemporaryDirectory() as folder:
            MNIST(folder, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for name, _ in MNIST_FILES.values():
                shutil.move(Path(folder, "MNIST", "raw", name), raw / name)
    finally:
        socket.setdefaulttimeout(timeout_s)


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
