"""What shares of a real GPU do: trials side by side, memory held to the share, no GPU unasked.

    python -m benchmarks.gpu_shares --data-dir data --out gpu_shares.json

Needs one GPU that torch can use, and MNIST. Prints what it saw; fails where a promise is broken.
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
from tune_jobs.engine import LightningSettings, Settings, Sweep, run_sweep

SHARES = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Args:
    """Try shares of a GPU."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    out: Path
    """JSON file for what was seen."""
    num_trials: int = 16
    """Trials of each sweep."""
    max_epochs: int = 4
    """Epochs of each trial."""


def sweep_mnist(args: Args, share: float, folder: str) -> dict[str, Any]:
    """Seconds of one sweep; a grace of all its epochs keeps ASHA from stopping any trial."""
    started = time.perf_counter()
    sweep = mnist.main(
        LightningSettings(
            num_trials=args.num_trials,
            max_epochs=args.max_epochs,
            grace_epochs=args.max_epochs,
            gpus_per_trial=share,
            data="mnist",
            data_dir=str(args.data_dir),
            storage_path=folder,
            name=f"share-{share:g}",
        )
    )
    devices = {(result.metrics or {}).get("device") for result in sweep.result_grid}
    check(devices == {"cuda:0"}, f"trials of a share of {share:g} trained on {devices}")
    return {"slots": sweep.resources.slots, "seconds": time.perf_counter() - started}


def fill_memory(config: dict[str, Any]) -> float:
    """The share of the GPU's memory that this trial could allocate before torch refused."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    block = total // 64
    blocks = []
    try:
        while True:
            blocks.append(torch.empty(block, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        return len(blocks) * block / total


def see_gpus(config: dict[str, Any]) -> float:
    import torch

    return float(torch.cuda.device_count())


def run_function(name: str, objective: Any, share: float, folder: str) -> Sweep:
    settings = Settings(num_trials=2, gpus_per_trial=share, storage_path=folder, name=name)
    return run_sweep(
        settings, space={"x": tune.uniform(0, 1)}, metric="m", mode="max", objective=objective
    )


def check(holds: bool, broken: str) -> None:
    if not holds:
        raise SystemExit(f"broken: {broken}")


def main(args: Args) -> None:
    ray.init(include_dashboard=False, log_to_driver=False)
    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            seen[f"share {share:g}"] = sweep_mnist(args, share, folder)
        filled = [row["score"] for row in run_function("fill", fill_memory, 0.25, folder).rows]
        check(max(filled) <= 0.25, f"a quarter of a GPU allocated {max(filled):.3f} of it")
        seen["memory that quarters could fill"] = filled
        visible = run_function("none", see_gpus, 0, folder).best_score
        check(visible == 0, f"a trial without a GPU saw {visible:g}")
        seen["GPUs that a trial without one saw"] = visible
    args.out.write_text(json.dumps(seen, indent=2) + "\n")
    print(json.dumps(seen, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
