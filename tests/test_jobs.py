"""Jobs run from the command line, with small numbers."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).parents[1]
DATA_DIR = Path(os.environ.get("TUNE_JOBS_DATA_DIR", REPO.parent / "shared" / "data"))

pytestmark = pytest.mark.slow


def run_job(job: str, *args: str, storage: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"tune_jobs/{job}.py", *args, "--storage-path", str(storage)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280)


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_garden_finds_calculus_answer(tmp_path: Path) -> None:
    done = run_job("garden", "--name", "g", storage=tmp_path)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "g" / "best.json").read_text())
    assert best["score"] > 31_250 * 0.998
    assert "test" not in best
    assert "Garden: " in done.stdout
    assert done.stdout.count("Trial ") == 50
    assert len(read_rows(tmp_path / "g")) == 50


USERS_JOB = """
from ray import tune
from tune_jobs.engine import Settings, run_job, run_sweep

def objective(config):
    return measure(config["x"])

def measure(x):
    if x > LIMIT:
        raise ArithmeticError(f"{x} is too much")
    return x

def main(settings):
    return run_sweep(
        settings, space={"x": tune.uniform(0, 1)}, metric="m", mode=MODE, objective=objective
    )

run_job(main, Settings, "A job of a user.")
"""


def run_users_job(tmp_path: Path, limit: float, mode: str) -> subprocess.CompletedProcess[str]:
    job = tmp_path / "job.py"
    job.write_text(f"LIMIT, MODE = {limit}, {mode!r}\n{USERS_JOB}")
    command = [sys.executable, "job.py", "--num-trials", "8", "--seed", "0", "--name", "u"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)


def test_job_some_failures_exit_0(tmp_path: Path) -> None:
    done = run_users_job(tmp_path, limit=0.6, mode="max")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    failed = [row for row in read_rows(tmp_path / "results" / "u") if row["state"] == "FAIL"]
    assert f", {len(failed)} failed" in done.stdout
    for row in failed:
        log = tmp_path / "results" / "u" / f"trial_{int(row['trial']):04d}" / "error.txt"
        error = log.read_text().splitlines()[-1]
        assert error.startswith("ArithmeticError: ")
        assert f"trial {row['trial']}: {error}, see {log}" in done.stdout


def test_job_only_failures_exits_1(tmp_path: Path) -> None:
    done = run_users_job(tmp_path, limit=-1, mode="max")
    assert done.returncode == 1
    head, *frames = done.stderr.splitlines()
    assert head.startswith("error: stopped early: the first ")
    assert " trials failed, none finished, " in head
    assert head.endswith("/results/u/trial_0000/error.txt:")
    assert frames[0] == "Traceback (most recent call last):"
    assert "in objective" in frames[1]
    assert re.fullmatch(r"ArithmeticError: 0\.\d+ is too much", frames[-1])


def test_job_unknown_mode_exits_2(tmp_path: Path) -> None:
    done = run_users_job(tmp_path, limit=1, mode="upwards")
    assert done.returncode == 2
    assert done.stderr == "error: mode must be 'max' or 'min', got 'upwards'.\n"
    assert not (tmp_path / "results").exists()


def test_mnist_results_agree_on_digits(tmp_path: Path) -> None:
    from models.data import load_digits
    from models.mlp import MLP
    from tune_jobs.engine import load_study

    args = ["--data", "digits", "--num-trials", "6", "--max-epochs", "4", "--name", "d"]
    done = run_job("mnist", *args, "--keep-checkpoints", "2", storage=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "d"
    best = json.loads((folder / "best.json").read_text())
    rows = read_rows(folder)
    study = load_study(folder)
    assert best["data"] == "digits"
    assert len(rows) == 6
    assert study.best_value == best["score"]
    assert study.best_params == best["config"]
    assert study.best_trial.intermediate_values[best["epoch"]] == best["score"]
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    for trial, row in zip(study.trials, rows, strict=True):
        assert len(trial.intermediate_values) == int(row["epochs"])
        assert trial.state.name == row["state"]
    assert all(len(list(trial.glob("checkpoint_*"))) <= 2 for trial in folder.glob("trial_*"))
    kept = {path.parts[-3] for path in folder.glob("trial_*/checkpoint_*/checkpoint.ckpt")}
    assert len(kept) == 2
    assert not list(REPO.glob("lightning_logs"))

    model = MLP.load_from_checkpoint(folder / "best.ckpt", map_location="cpu").eval()
    images, labels = load_digits().val
    logits = model(torch.tensor(images / 255, dtype=torch.float32))
    accuracy = float(np.mean(logits.argmax(1).numpy() == labels))
    assert accuracy == pytest.approx(best["score"], abs=1e-6)


@pytest.mark.skipif(
    not (DATA_DIR / "MNIST" / "raw").is_dir(),
    reason="no MNIST; put it there with TUNE_JOBS_DATA_DIR",
)
@pytest.mark.long
def test_mnist_on_real_images(tmp_path: Path) -> None:
    args = ["--data", "mnist", "--data-dir", str(DATA_DIR), "--num-trials", "2"]
    done = run_job("mnist", *args, "--max-epochs", "1", "--name", "m", storage=tmp_path)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "m" / "best.json").read_text())
    assert best["data"] == "mnist"
    assert best["test"]["test_acc"] > 0.9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpus-per-trial", "1.5"], "gpus_per_trial must be between 0 and 1, got 1.5"),
        (["--num-trials", "0"], "num_trials must be positive"),
        (["--grace-epochs", "11"], "grace_epochs must not exceed max_epochs"),
        (["--reduction-factor", "1"], "reduction_factor must be above 1"),
        (["--num-trial", "3"], "--num-trials"),
        (["--gpus-per-trial", "-0.1"], "gpus_per_trial must be between 0 and 1, got -0.1"),
        (["--max-concurrent", "0"], "max_concurrent must be positive"),
        (["--address", "127.0.0.1:1"], "check --address"),
        (["--cpus-per-trial", "4096"], "lower --cpus-per-trial"),
    ],
)
def test_mnist_bad_input_exits_2(args: list[str], message: str, tmp_path: Path) -> None:
    done = run_job("mnist", "--data", "digits", *args, storage=tmp_path / "new")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_garden_refuses_existing_name(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    done = run_job("garden", "--name", "taken", storage=tmp_path)
    assert done.returncode == 2
    assert "sweep 'taken' already exists" in done.stderr


def test_garden_refuses_unwritable_storage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_job("garden", storage=tmp_path / "file")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
