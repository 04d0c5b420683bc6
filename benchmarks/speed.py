"""Measure the seconds of whole processes: a sweep, its peers, and the limit of each.

    python -m benchmarks.speed --data-dir data             # this project, a minute a round
    python -m benchmarks.speed --data-dir data --peers     # and its peers, minutes more

A sweep has sixteen trials of at most four epochs on MNIST. The limit of a sweep is bare torch loops
over the same trials and epochs, in two processes: no search, no framework. The ratio to its own
limit compares sweeps that train different numbers of epochs.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Args:
    """Compare sweeps with bare loops."""

    data_dir: Path
    """Folder with torchvision's MNIST/raw."""
    rounds: int = 3
    """How often this project's sweep and its limit run, in turn; medians are printed."""
    num_trials: int = 16
    """Configs to try."""
    max_epochs: int = 4
    """Epochs that a trial trains at most."""
    peers: bool = False
    """Also run plain Optuna and stock Ray Tune, once each."""


def seconds(*command: str) -> float:
    """Run a module as a process; return its seconds."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def run_ours(args: Args, trials: Path, seed: int) -> float:
    """Run this project's sweep, and write the list of its trials; return its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        took = seconds(
            "tune_jobs.mnist",
            *("--data", "mnist", "--data-dir", str(args.data_dir), "--seed", str(seed)),
            *("--num-trials", str(args.num_trials), "--max-epochs", str(args.max_epochs)),
            *("--storage-path", folder, "--name", "speed"),
        )
        with Path(folder, "speed", "trials.csv").open() as file:
            rows = list(csv.DictReader(file))
    listed = [
        {"config": {k[7:]: json.loads(v) for k, v in row.items() if k.startswith("config/")},
         "epochs": int(row["epochs"])}
        for row in rows
    ]  # fmt: skip
    trials.write_text(json.dumps(listed))
    return took


def run_peer(module: str, args: Args, trials: Path) -> float:
    return seconds(
        module,
        *("--trials", str(trials), "--data-dir", str(args.data_dir)),
        *("--num-trials", str(args.num_trials), "--max-epochs", str(args.max_epochs)),
    )


def run_limit(args: Args, trials: Path, *options: str) -> float:
    paths = ("--trials", str(trials), "--data-dir", str(args.data_dir))
    return seconds("benchmarks.bare_loops", *paths, *options)


def num_epochs(trials: Path) -> int:
    listed: list[dict[str, Any]] = json.loads(trials.read_text())
    return sum(trial["epochs"] for trial in listed)


def print_row(name: str, epochs: float, took: list[float], limit: list[float]) -> None:
    ratio = statistics.median(a / b for a, b in zip(took, limit, strict=True))
    print(
        f"{name:<28} {epochs:6.0f} {statistics.median(took):8.1f} "
        f"{statistics.median(limit):8.1f} {ratio:8.2f}",
        flush=True,
    )


def main(args: Args) -> None:
    print(f"{'':<28} {'epochs':>6} {'seconds':>8} {'limit':>8} {'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        trials = Path(folder, "trials.json")
        ours: list[float] = []
        limits: list[float] = []
        fused_limits: list[float] = []
        epochs: list[int] = []
        for seed in range(args.rounds):
            ours.append(run_ours(args, trials, seed))
            limits.append(run_limit(args, trials))
            fused_limits.append(run_limit(args, trials, "--fused"))
            epochs.append(num_epochs(trials))
        print_row("tune_jobs/mnist.py", statistics.median(epochs), ours, limits)
        print_row("  its limit with fused AdamW", statistics.median(epochs), ours, fused_limits)
        if args.peers:
            for module in ("benchmarks.plain_optuna", "benchmarks.stock_ray_tune"):
                took = run_peer(module, args, trials)
                print_row(module, num_epochs(trials), [took], [run_limit(args, trials)])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
