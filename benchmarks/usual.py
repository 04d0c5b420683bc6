"""The model and the data as users usually write them, for the peers of `benchmarks.speed`."""

from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms


class UsualMLP(pl.LightningModule):
    """The MLP of `tune_jobs/mnist.py`; it logs its loss at each step."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        size, hidden_size = 784, config["hidden_size"]
        for _ in range(config["num_layers"] - 1):
            layers += [torch.nn.Linear(size, hidden_size), torch.nn.ReLU()]
            layers.append(torch.nn.Dropout(config["dropout"]))
            size = hidden_size
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(size, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.layers(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_acc", (self.layers(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.config["lr"], weight_decay=self.config["weight_decay"]
        )


def make_loaders(
    config: dict[str, Any], data_dir: Path
) -> "tuple[DataLoader[Any], DataLoader[Any]]":
    """Make the loaders of training and validation; each image goes through PIL and ToTensor."""
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    images = datasets.MNIST(str(data_dir), train=True, transform=transform)
    train = Subset(images, range(55_000))
    val = Subset(images, range(55_000, 60_000))
    return DataLoader(train, config["batch_size"], shuffle=True), DataLoader(val, 1_000)


def suggest_config(trial: optuna.Trial) -> dict[str, Any]:
    """Suggest a config from the search space of `tune_jobs/mnist.py`."""
    return {
        "hidden_size": trial.suggest_categorical("hidden_size", [64, 128, 256]),
        "num_layers": trial.suggest_int("num_layers", 2, 4),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
    }
