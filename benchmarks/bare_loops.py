"""Train a list of trials with bare torch loops in two processes: no search, no framework.

    python -m benchmarks.bare_loops --trials trials.json --data-dir data

This is the limit that `benchmarks.speed` compares sweeps with. trials.json is a list of
{"config": ..., "epochs": n}; each process takes the next trial from it.
"""

import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

NUM_PROCESSES = 2


@dataclass(frozen=True)
class Args:
    """Train a list of trials with bare torch loops."""

    trials: Path
    """JSON list of {"config": ..., "epochs": n}."""
    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    fused: bool = False
    """Use AdamW's fused kernel, as this project's MLP does; torch's default is a loop."""


def work(trials: "multiprocessing.SimpleQueue[dict[str, Any] | None]", args: Args) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    raw = args.data_dir / "MNIST" / "raw"
    pixels = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
    images = torch.from_numpy(pixels).float().div_(255).sub_(0.1307).div_(0.3081)  # (60 000, 784)
    labels = torch.from_numpy(np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8)[8:]).long()
    while (trial := trials.get()) is not None:
        train(trial["config"], trial["epochs"], images, labels, args.fused)


def train(config: dict[str, Any], epochs: int, images: Any, labels: Any, fused: bool) -> None:
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = make_model(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=fused
    )
    train_images, val_images = images[:55_000], images[55_000:]
    train_labels, val_labels = labels[:55_000], labels[55_000:]
    for _ in range(epochs):
        model.train()
        for index in torch.split(torch.randperm(len(train_images)), config["batch_size"]):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(train_images[index]), train_labels[index])
            torch.autograd.backward(loss)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            (model(val_images).argmax(1) == val_labels).float().mean().item()


def make_model(config: dict[str, Any]) -> Any:
    from torch import nn

    layers: list[nn.Module] = []
    size, hidden_size = 784, config["hidden_size"]
    for _ in range(config["num_layers"] - 1):
        layers += [nn.Linear(size, hidden_size), nn.ReLU(), nn.Dropout(config["dropout"])]
        size = hidden_size
    return nn.Sequential(*layers, nn.Linear(size, 10))


def main(args: Args) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for trial in [*json.loads(args.trials.read_text()), *[None] * NUM_PROCESSES]:
        queue.put(trial)
    processes = [context.Process(target=work, args=(queue, args)) for _ in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process failed")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
