"""The command line of the peers of `benchmarks.speed`: `PeerArgs`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PeerArgs:
    """Run a peer of `benchmarks.speed`."""

    trials: Path
    """JSON file for the list of trials, {"config": ..., "epochs": n} each."""
    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    num_trials: int = 16
    """Configs to try."""
    max_epochs: int = 4
    """Epochs that a trial trains at most."""
