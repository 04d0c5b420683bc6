"""The network: its layers, its shapes, its checkpoint."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from models.data import DigitsData
from models.mlp import MLP


def layer_names(model: MLP) -> list[str]:
    return [
        f"Linear({layer.in_features}, {layer.out_features})"
        if isinstance(layer, nn.Linear)
        else type(layer).__name__
        for layer in model.layers
    ]


def test_mlp_default_layers() -> None:
    assert layer_names(MLP()) == [
        "Linear(784, 128)",
        "ReLU",
        "Linear(128, 128)",
        "ReLU",
        "Linear(128, 10)",
    ]


def test_mlp_extra_layers() -> None:
    assert layer_names(MLP(in_size=64, hidden_size=32, out_size=4, num_layers=5)) == [
        "Linear(64, 32)",
        "ReLU",
        *["Linear(32, 32)", "ReLU"] * 3,
        "Linear(32, 4)",
    ]


def test_mlp_two_layers() -> None:
    assert layer_names(MLP(num_layers=2)) == ["Linear(784, 128)", "ReLU", "Linear(128, 10)"]


def test_mlp_one_layer_refused() -> None:
    with pytest.raises(ValueError, match="at least 2, but got 1"):
        MLP(num_layers=1)


def test_mlp_dropout_layers() -> None:
    """Dropout follows each hidden layer, not the last one."""
    model = MLP(dropout=0.25)
    assert layer_names(model) == [
        "Linear(784, 128)",
        "ReLU",
        "Dropout",
        "Linear(128, 128)",
        "ReLU",
        "Dropout",
        "Linear(128, 10)",
    ]
    assert all(layer.p == 0.25 for layer in model.layers if isinstance(layer, nn.Dropout))


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (5, 784), (1, 1, 28, 28)])
def test_mlp_forward_shape(shape: tuple[int, ...]) -> None:
    assert MLP()(torch.rand(shape)).shape == (shape[0], 10)


def test_mlp_forward_normalizes() -> None:
    model = MLP(mean=0.5, std=0.25)
    images = torch.rand(3, 1, 28, 28)
    expected = model.layers((images.flatten(1) - 0.5) / 0.25)
    torch.testing.assert_close(model(images), expected)


def test_mlp_weights_hold_normalization() -> None:
    state = MLP(mean=0.2, std=0.4).state_dict()
    assert state["mean"].item() == pytest.approx(0.2)
    assert state["std"].item() == pytest.approx(0.4)


def test_mlp_optimizer_options() -> None:
    optimizer = MLP(lr=0.02, weight_decay=0.3).configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_mlp_trains_and_loads_checkpoint(tmp_path: Path) -> None:
    """One epoch logs all metrics, and its checkpoint loads with `weights_only=True`."""
    pl.seed_everything(0, verbose=False)
    model = MLP(in_size=64, hidden_size=16)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # as in a trial: Batches is no DataLoader, so Lightning has no workers to suggest
    trainer.fit(model, DigitsData())
    assert {"train_loss", "val_loss", "val_acc"} <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    again = MLP(**content["hyper_parameters"])
    again.load_state_dict(content["state_dict"])
    assert torch.equal(again.layers[0].weight, model.layers[0].weight)
