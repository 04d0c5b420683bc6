"""Check shares of a real GPU: parallel trials, memory limits, and trials without a GPU.

    python -m benchmarks.gpu_shares --data-dir data --out gpu_shares.json

Needs one GPU that torch can use, and MNIST. Prints what it measured. Fails if a trial trained on
another device, allocated more memory than its share, or saw a GPU without holding a share.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import tyro
from ray import tune

from tune_jobs import mnist
from tune_jobs.engine import Settings, SweepResult, run_sweep

SHARES = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Args:
    """Check shares of a GPU."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    out: Path
    """JSON file for the measurements."""
    num_trials: int = 16
    """Trials of each sweep."""
    max_epochs: int = 4
    """Epochs of each trial."""


def sweep_mnist(args: Args, share: float, folder: str) -> dict[str, Any]:
    """Run one sweep.

    Returns:
        Its slots and its seconds.
    """
    started = time.perf_counter()
    result = mnist.main(
        mnist.MNISTSettings(
            num_trials=args.num_trials,
            max_epochs=args.max_epochs,
            grace_epochs=args.max_epochs,  # so that ASHA stops no trial
            gpus_per_trial=share,
            data="mnist",
            data_dir=str(args.data_dir),
            storage_path=folder,
            name=f"share-{share:g}",
        )
    )
    devices = {(trial.metrics or {}).get("device") for trial in result.result_grid}
    check(devices == {"cuda:0"}, f"trials with a share of {share:g} trained on {devices}")
    return {"slots": result.resources.slots, "seconds": time.perf_counter() - started}


def fill_memory(config: dict[str, Any]) -> float:
    """Allocate GPU memory until torch refuses; return the share of the GPU's memory."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    block = total // 64
    blocks = []
    try:
        while True:
            blocks.append(torch.empty(block, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        return len(blocks) * block / total


def count_gpus(config: dict[str, Any]) -> float:
    import torch

    return float(torch.cuda.device_count())


def run_function(name: str, objective: Any, share: float, folder: str) -> SweepResult:
    return run_sweep(
        Settings(num_trials=2, gpus_per_trial=share, storage_path=folder, name=name),
        space={"x": tune.uniform(0, 1)},
        metric="m",
        mode="max",
        objective=objective,
        progress=None,
    )


def check(holds: bool, failure: str) -> None:
    if not holds:
        raise SystemExit(f"check failed: {failure}")


def main(args: Args) -> None:
    ray.init(include_dashboard=False, log_to_driver=False)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            measured[f"share {share:g}"] = sweep_mnist(args, share, folder)
        filled = [row["score"] for row in run_function("fill", fill_memory, 0.25, folder).rows]
        check(max(filled) <= 0.25, f"a trial with a share of 0.25 allocated {max(filled):.3f}")
        measured["memory allocated with a share of 0.25"] = filled
        visible = run_function("none", count_gpus, 0, folder).best_score
        check(visible == 0, f"a trial without a GPU saw {visible:g} GPUs")
        measured["GPUs seen by a trial without one"] = visible
    args.out.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
