"""Measure what the jobs find with their default settings, for several seeds.

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
    """Run the jobs with their default settings for several seeds."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    mnist_seeds: int = 3
    """Number of seeds for mnist.py, from 0 on."""
    garden_seeds: int = 5
    """Number of seeds for garden.py, from 0 on."""


def run_job(job: str, seed: int, *options: str) -> dict[str, Any]:
    """Run a job as a user does; return the contents of its best.json."""
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
        gap = 100 * (1 - best["score"] / 31_250)
        print(f"garden seed {seed}: {gap:.4f} % below the optimum, {best['seconds']:.0f} s")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
