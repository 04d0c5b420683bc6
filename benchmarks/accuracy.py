"""What the jobs find with their defaults, seed by seed, as a user runs them.

python -m benchmarks.accuracy --data-dir data     # five minutes on two cores
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Args:
    """Run the default sweeps for several seeds."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    mnist_seeds: int = 3
    """Seeds 0 to this many, exclusive, of mnist.py."""
    garden_seeds: int = 5
    """The same of garden.py."""


def run_job(job: str, seed: int, *options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"tune_jobs.{job}", "--seed", str(seed), *options]
        command += ["--storage-path", folder, "--name", "sweep"]
        subprocess.run(command, check=True, capture_output=True)
        best: dict[str, Any] = json.loads(Path(folder, "sweep", "best.json").read_text())
    return best


def main(args: Args) -> None:
    for seed in range(args.mnist_seeds):
        best = run_job("mnist", seed, "--data", "mnist", "--data-dir", str(args.data_dir))
        print(
            f"mnist  seed {seed}: test accuracy {100 * best['test']['test_acc']:.2f} %, "
            f"validation {100 * best['score']:.2f} %, {best['seconds']:.0f} s",
            flush=True,
        )
    for seed in range(args.garden_seeds):
        best = run_job("garden", seed)
        short_of = 100 * (1 - best["score"] / 31_250)
        print(f"garden seed {seed}: {short_of:.4f} % short of the best, {best['seconds']:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
