"""What a peer of the benchmark is told: `PeerArgs`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PeerArgs:
    """Run a peer of the benchmark."""

    trials: Path
    """Where the list of {"config": ..., "epochs": n} is written."""
    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    num_trials: int = 16
    """Configs to try."""
    max_epochs: int = 4
    """Epochs a trial trains at most."""
