"""A multi-layer perceptron for image classification, as a LightningModule."""

import itertools

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP"]


class MLP(pl.LightningModule):
    """`num_layers` linear layers with ReLU between them.

    `MLP()` is Linear(784, 128) -> ReLU -> Linear(128, 128) -> ReLU -> Linear(128, 10).

    Args:
        in_size: Pixels of one image; 784 for MNIST.
        hidden_size: Units of every hidden layer.
        out_size: Number of classes.
        num_layers: Linear layers, the last one included; at least 2.
        dropout: Probability in [0, 1) that a hidden unit is zeroed in training; 0 adds no layer.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        mean: Mean of the pixels in the training set, as floats in [0, 1].
        std: Their standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_size: int = 784,
        hidden_size: int = 128,
        out_size: int = 10,
        num_layers: int = 3,
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        mean: float = 0.1307,
        std: float = 0.3081,
    ) -> None:
        super().__init__()
        if num_layers < 2:
            raise ValueError(f"`num_layers` must be at least 2, but got {num_layers}.")
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        # The normalization is stored with the weights, so that a checkpoint takes plain images.
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        sizes = [in_size] + [hidden_size] * (num_layers - 1)
        layers: list[nn.Module] = []
        for size, next_size in itertools.pairwise(sizes):
            layers += [nn.Linear(size, next_size), nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_size, out_size))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: Floats in [0, 1] with shape (N, 1, height, width), or flat (N, in_size).

        Returns:
            Logits with shape (N, out_size).
        """
        flat = images.flatten(1)  # (N, in_size)
        logits: Tensor = self.layers((flat - self.mean).div_(self.std))
        return logits

    def on_train_epoch_start(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.num_images = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.loss_sum += loss.detach() * len(labels)
        self.num_images += len(labels)
        return loss

    def on_train_epoch_end(self) -> None:
        # Once an epoch: `self.log` at each of these small steps took a fifth of the time.
        self.log("train_loss", self.loss_sum / self.num_images)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        scores = {f"{stage}_loss": F.cross_entropy(logits, labels), f"{stage}_acc": accuracy}
        self.log_dict(scores, on_step=False, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
        )
