"""The data: splits, MNIST's files and their errors, batches."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import models.splits
from models.data import Batches, DigitsData, MNISTData
from models.splits import DataError, Splits, load_digits, load_mnist, load_splits

DATA_DIR = Path(os.environ.get("TUNE_JOBS_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))

SMALL_FILES = {
    "train_images": ("train-images-idx3-ubyte", (6, 28, 28)),
    "train_labels": ("train-labels-idx1-ubyte", (6,)),
    "test_images": ("t10k-images-idx3-ubyte", (4, 28, 28)),
    "test_labels": ("t10k-labels-idx1-ubyte", (4,)),
}


def idx_bytes(shape: tuple[int, ...]) -> bytes:
    header = b"\0\0\x08" + bytes([len(shape)])
    for size in shape:
        header += size.to_bytes(4, "big")
    return header + bytes(math.prod(shape))


def write_mnist(data_dir: Path, files: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape in files.values():
        (raw / name).write_bytes(idx_bytes(shape))
    return raw


def write_small_mnist(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models.splits, "MNIST_FILES", SMALL_FILES)
    return write_mnist(data_dir, SMALL_FILES)


def forbid_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(raw: Path) -> None:
        raise OSError("first line\nno route to host.")

    monkeypatch.setattr(models.splits, "_download_mnist", fail)


def test_digits_have_documented_sizes() -> None:
    splits = load_digits()
    assert [len(s[0]) for s in (splits.train, splits.val, splits.test)] == [1_197, 300, 300]
    assert [len(s[1]) for s in (splits.train, splits.val, splits.test)] == [1_197, 300, 300]
    assert (splits.name, splits.in_size, splits.num_classes) == ("digits", 64, 10)
    assert splits.train[0].dtype == np.uint8
    assert splits.train[1].dtype == np.int64
    assert splits.train[0].max() == 255


def test_digits_splits_partition_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import datasets

    class Numbered:  # each item's label is its own number
        images = np.zeros((1_797, 8, 8))
        target = np.arange(1_797)

    monkeypatch.setattr(datasets, "load_digits", Numbered)
    splits = load_digits()
    parts = [set(part[1].tolist()) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == 1_797
    assert set.union(*parts) == set(range(1_797))


def test_digits_split_is_deterministic() -> None:
    first, second = load_digits(), load_digits()
    assert np.array_equal(first.val[0], second.val[0])
    assert np.array_equal(first.test[1], second.test[1])


def test_splits_mean_and_std() -> None:
    """They are those of the training pixels in [0, 1]."""
    splits = load_digits()
    pixels = splits.train[0] / 255
    assert splits.mean == pytest.approx(pixels.mean())
    assert splits.std == pytest.approx(pixels.std())


def test_mnist_split_sizes(tmp_path: Path) -> None:
    write_mnist(tmp_path, models.splits.MNIST_FILES)
    splits = load_mnist(tmp_path)
    assert splits.train[0].shape == (55_000, 1, 28, 28)
    assert splits.val[0].shape == (5_000, 1, 28, 28)
    assert splits.test[0].shape == (10_000, 1, 28, 28)
    assert [len(s[1]) for s in (splits.train, splits.val, splits.test)] == [55_000, 5_000, 10_000]
    assert (splits.name, splits.in_size) == ("mnist", 784)


def test_real_mnist_statistics() -> None:
    if not (DATA_DIR / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST/raw in {DATA_DIR}; set TUNE_JOBS_DATA_DIR")
    splits = load_splits("auto", DATA_DIR)
    assert splits.name == "mnist"
    assert [len(s[0]) for s in (splits.train, splits.val, splits.test)] == [55_000, 5_000, 10_000]
    assert splits.num_classes == 10
    assert splits.mean == pytest.approx(0.1307, abs=1e-3)
    assert splits.std == pytest.approx(0.3081, abs=1e-3)


@pytest.mark.parametrize("part", SMALL_FILES)
def test_mnist_truncated_file(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file, and how many bytes it must hold."""
    name, shape = SMALL_FILES[part]
    raw = write_small_mnist(tmp_path, monkeypatch)
    content = idx_bytes(shape)
    (raw / name).write_bytes(content[:-1])
    with pytest.raises(DataError) as info:
        load_mnist(tmp_path)
    assert str(raw / name) in str(info.value)
    assert f"must hold {len(content)} bytes, but has {len(content) - 1}" in str(info.value)


def test_mnist_oversized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_small_mnist(tmp_path, monkeypatch)
    path = raw / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte must hold 12 bytes, but has 13"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", idx_bytes((4,)), b""])
def test_mnist_foreign_header(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file."""
    raw = write_small_mnist(tmp_path, monkeypatch)
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError) as info:
        load_mnist(tmp_path)
    assert str(raw / "train-images-idx3-ubyte") in str(info.value)


def test_mnist_images_as_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_small_mnist(tmp_path, monkeypatch)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx_bytes((6, 28, 28)))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is not MNIST's"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("part", SMALL_FILES)
def test_mnist_missing_file(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_small_mnist(tmp_path, monkeypatch)
    missing = raw / SMALL_FILES[part][0]
    missing.unlink()
    with pytest.raises(DataError) as info:
        load_mnist(tmp_path)
    assert str(info.value) == f"{missing} is missing."


def test_mnist_reads_gzipped_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_small_mnist(tmp_path, monkeypatch)
    forbid_download(monkeypatch)
    for name, _ in SMALL_FILES.values():
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()
    splits = load_splits("mnist", tmp_path)
    assert splits.test[0].shape == (4, 1, 28, 28)


@pytest.mark.parametrize("keep", [20, 5, 0])
def test_mnist_truncated_gzip(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_small_mnist(tmp_path, monkeypatch)
    path = raw / "train-images-idx3-ubyte"
    zipped = raw / "train-images-idx3-ubyte.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes())[:keep])
    path.unlink()
    with pytest.raises(DataError) as info:
        load_mnist(tmp_path)
    assert str(zipped) in str(info.value)


def test_load_mnist_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the folder for the files, the cause and the way out."""
    forbid_download(monkeypatch)
    with pytest.raises(DataError) as info:
        load_splits("mnist", tmp_path)
    message = str(info.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "(no route to host)" in message
    assert "--data digits" in message


def test_load_auto_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes the digits, and says so in one line."""
    forbid_download(monkeypatch)
    assert load_splits("auto", tmp_path).name == "digits"
    assert not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert str(tmp_path) in out
    assert "no route to host" in out


def test_load_auto_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file is an error, not a reason to take the digits."""
    raw = write_small_mnist(tmp_path, monkeypatch)
    forbid_download(monkeypatch)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes((4,))[:-2])
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte must hold"):
        load_splits("auto", tmp_path)


def test_load_auto_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models.splits, "MNIST_FILES", SMALL_FILES)
    monkeypatch.setattr(
        models.splits, "_download_mnist", lambda raw: write_mnist(tmp_path, SMALL_FILES)
    )
    assert load_splits("auto", tmp_path).name == "mnist"
    assert capsys.readouterr().out == ""


def test_load_digits_needs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_download(monkeypatch)
    assert load_splits("digits", tmp_path / "nowhere").name == "digits"


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 100])
def test_batches_cover_items_once(batch_size: int, shuffle: bool) -> None:
    items = torch.arange(10)
    batches = Batches(items * 2, items, batch_size, shuffle)
    pairs = list(batches)
    assert len(pairs) == len(batches) == math.ceil(10 / batch_size)
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert torch.equal(images, labels * 2)
    assert sorted(labels.tolist()) == items.tolist()
    assert shuffle or torch.equal(labels, items)


def test_batches_shuffle_by_torch_seed() -> None:
    batches = Batches(torch.arange(50), torch.arange(50), 50, shuffle=True)

    def order(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return next(iter(batches))[1].tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != list(range(50))


def test_batches_shuffle_each_epoch() -> None:
    batches = Batches(torch.arange(50), torch.arange(50), 50, shuffle=True)
    torch.manual_seed(0)
    first, second = (next(iter(batches))[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_batches_from_read_only_arrays() -> None:
    """Ray's arrays are read-only; torch's warning about that must not appear."""
    splits = load_digits()
    for images, labels in (splits.train, splits.val, splits.test):
        images.setflags(write=False)
        labels.setflags(write=False)
    data = DigitsData(splits, batch_size=32)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((32, 1, 8, 8), torch.uint8)
    assert labels.dtype == torch.int64


def test_images_converted_after_transfer() -> None:
    """They become floats in [0, 1] on the device; the data stays bytes."""
    data = DigitsData()
    batch = next(iter(data.val_dataloader()))
    images, labels = data.on_after_batch_transfer(batch, 0)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert torch.equal(labels, batch[1])
    assert batch[0].max() == 255  # the data itself is untouched


def test_data_module_loaders() -> None:
    data = DigitsData()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [len(loader.images) for loader in loaders] == [1_197, 300, 300]
    assert [loader.shuffle for loader in loaders] == [True, False, False]


def test_mnist_data_given_splits() -> None:
    images, labels = np.zeros((3, 1, 28, 28), np.uint8), np.zeros(3, np.int64)
    part = (images, labels)
    splits = Splits("mnist", part, part, part, mean=0.5, std=0.5)
    assert MNISTData(splits, batch_size=2, data_dir="nowhere").splits is splits
