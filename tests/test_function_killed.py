"""A function under ASHA whose driver is killed: it resumes from its own checkpoints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from tune_jobs.engine import load_study

pytestmark = [pytest.mark.slow, pytest.mark.long]

JOB = """
import json, sys, tempfile, time
from pathlib import Path
from ray import tune
from tune_jobs.engine import EpochSettings, run_job, run_sweep

WITH_CHECKPOINTS = sys.argv.pop(1) == "checkpoints"
LOG = Path(sys.argv[0]).with_name("begun.txt")

def train(config):
    first, checkpoint = 1, tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            first = json.loads(Path(folder, "state.json").read_text()) + 1
    with LOG.open("a") as file:
        file.write(f"{first}\\n")
    for epoch in range(first, 9):
        time.sleep(0.05)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "state.json").write_text(json.dumps(epoch))
            kept = tune.Checkpoint.from_directory(folder) if WITH_CHECKPOINTS else None
            tune.report({"loss": config["x"] + 1 / epoch}, checkpoint=kept)

def main(settings):
    return run_sweep(settings, space={"x": tune.uniform(0, 1)}, metric="loss", mode="min",
                     objective=train)

if __name__ == "__main__":
    run_job(main, EpochSettings)
"""


def start(folder: Path, kind: str, *args: str) -> "subprocess.Popen[str]":
    job = folder / "job.py"
    job.write_text(JOB)
    settings = ["--name", "s", "--num-trials", "8", "--max-epochs", "8", "--max-concurrent", "1"]
    return subprocess.Popen(
        [sys.executable, "-u", str(job), kind, *settings, *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(driver: "subprocess.Popen[str]") -> str:
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, output
    return output


def trials(folder: Path) -> list[FrozenTrial]:
    return load_study(folder / "results" / "s").get_trials()


def wait_for(text: str, file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < deadline, f"{text!r} was never written to {file}"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["checkpoints", "none"])
def test_function_killed_ends_the_same(kind: str, tmp_path: Path) -> None:
    """Killed twice, it ends as one that ran through.

    Without checkpoints, a trial that had not ended begins again, and the form of ASHA is the one
    that was chosen first.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    output = finish(start(whole, kind))
    assert ("ASHA stops trials for good" in output) == (kind == "none")
    driver = start(killed, kind)
    for entry in ("tune_jobs:result:000002", '"trial_id":3'):
        wait_for(entry, killed / "results" / "s" / "study.log")
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        driver = start(killed, kind, "--resume")
    assert "ASHA stops" not in finish(driver)
    ended = trials(killed)
    assert [t.params for t in ended] == [t.params for t in trials(whole)]
    assert [t.state for t in ended] == [t.state for t in trials(whole)]
    assert [t.intermediate_values for t in ended] == [t.intermediate_values for t in trials(whole)]
    assert all(t.user_attrs.get("paused_at") is None for t in ended)
    begun = (killed / "begun.txt").read_text().split()
    assert (set(begun) == {"1"}) == (kind == "none")
