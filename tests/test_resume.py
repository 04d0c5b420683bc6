"""Trials that fail, workers that die, sweeps that are interrupted and resumed: on a real Ray."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from tiny import tune_tiny

from tune_jobs.engine import (
    LightningSettings,
    Settings,
    SettingsError,
    SweepFailedError,
    SweepResult,
    load_study,
    run_sweep,
)
from tune_jobs.engine.store.entries import results_of

pytestmark = pytest.mark.slow

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def config(behavior: str, x: float = 0.5) -> dict[str, Any]:
    return {"x": x, "behavior": behavior}


def states(result: SweepResult) -> list[str]:
    return [row["state"] for row in result.rows]


def curves(result: SweepResult) -> list[dict[int, float]]:
    return [trial.intermediate_values for trial in result.study.trials]


@pytest.mark.usefixtures("_ray")
def test_record_tells_outcomes_apart(tmp_path: Path) -> None:
    """Also, a failed trial keeps its curve up to the failure, and is not run again."""
    behaviors = ["good", "nan", "raise", "oom", "die"]
    (tmp_path / "no_die").touch()
    result = tune_tiny(tmp_path, [config(name) for name in behaviors], max_concurrent=2)
    rows = {row["config/behavior"]: row for row in result.rows}
    assert {name: (row["state"], row["reason"]) for name, row in rows.items()} == {
        "good": ("COMPLETE", "last epoch"),
        "nan": ("PRUNED", "nan"),
        "raise": ("FAIL", "ArithmeticError"),
        "oom": ("FAIL", "oom"),
        "die": ("COMPLETE", "last epoch"),
    }
    assert {name: row["epochs"] for name, row in rows.items()} == {
        "good": 4, "nan": 2, "raise": 1, "oom": 1, "die": 4
    }  # fmt: skip
    trials = result.study.trials
    scores = [recorded["score"] for recorded in results_of(trials[1]).values()]
    assert scores[1:] == ["nan"]  # it was stopped in its second epoch
    assert [trial.state.name for trial in trials] == [
        "COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"
    ]  # fmt: skip
    whole = curves(result)[0]
    assert curves(result)[1:4] == [{1: whole[1]}] * 3
    assert "try --cpus-per-trial 2" in result.failures[3]
    assert "raised on purpose" in (tmp_path / "s" / "trial_0002" / "error.txt").read_text()
    # Each ran once: a config that fails would fail again.
    epochs = (tmp_path / "epochs.txt").read_text().splitlines()
    assert epochs.count("raise 2") == epochs.count("oom 2") == epochs.count("nan 2") == 1


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_worker_death_resumes_exactly(tmp_path: Path) -> None:
    """The trial whose process died has the same curve as one that ran through."""

    def let_it_live_after_its_death() -> None:
        while not (tmp_path / "deaths.txt").exists():
            time.sleep(0.05)
        (tmp_path / "no_die").touch()

    with background(let_it_live_after_its_death):
        result = tune_tiny(tmp_path, [config("good"), config("die")], max_concurrent=2)
    assert states(result) == ["COMPLETE", "COMPLETE"]
    never_died, died = curves(result)
    assert died == never_died
    assert (tmp_path / "deaths.txt").read_text() == "x\n"
    lines = (tmp_path / "s" / "trial_0001" / "result.json").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    assert result.failures == {}


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_worker_dies_too_often(tmp_path: Path) -> None:
    """After `max_failures` deaths the trial has failed; it can be run again as a new one."""
    result = tune_tiny(tmp_path, [config("good"), config("die", 0.7)], max_failures=1)
    failed = result.rows[1]
    assert (failed["state"], failed["reason"]) == ("FAIL", "ActorDiedError")
    assert (tmp_path / "deaths.txt").read_text() == "x\nx\n"

    (tmp_path / "no_die").touch()
    result = tune_tiny(tmp_path, num_trials=2, resume=True, retry_failed=True)
    assert states(result) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert result.rows[2]["config/x"] == 0.7
    assert result.study.best_trial.number == 2  # Optuna knows its result
    assert result.best_trial == 2


@pytest.mark.long
@pytest.mark.usefixtures("_ray")
def test_retries_wait_for_slots(tmp_path: Path) -> None:
    """Failed trials that are run again never exceed the slots."""

    def objective(config: dict[str, Any]) -> float:
        if config["x"] > 0.5 and not (tmp_path / "repaired").exists():
            raise ArithmeticError
        started = time.time()
        time.sleep(0.5)
        with (tmp_path / "times.txt").open("a") as file:
            file.write(f"{started} {time.time()}\n")
        return float(config["x"])

    def run(**changes: Any) -> Any:
        settings = Settings(storage_path=str(tmp_path), name="s", gpus_per_trial=0, **changes)
        space = {"x": ray.tune.uniform(0, 1)}
        return run_sweep(settings, space=space, metric="score", mode="max", objective=objective)

    first = run(num_trials=6)
    failed = [row["config/x"] for row in first.rows if row["state"] == "FAIL"]
    assert failed
    (tmp_path / "repaired").touch()
    (tmp_path / "times.txt").unlink()
    again = run(num_trials=6, resume=True, retry_failed=True, max_concurrent=1)
    assert [row["config/x"] for row in again.rows[6:]] == failed
    assert again.best_trial >= 6
    lines = (tmp_path / "times.txt").read_text().splitlines()
    times = sorted([float(time) for time in line.split()] for line in lines)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_worker_dies_between_trials(tmp_path: Path) -> None:
    """A process that dies while it is handed over to the next trial fails neither."""
    died = tmp_path / "died"

    def objective(config: dict[str, Any]) -> float:
        try:
            for epoch in (1, 2):
                ray.tune.report({"score": config["x"], "epoch": epoch})
        except SystemExit:  # Tune stops it after its last epoch, to reuse the process
            if not died.exists():
                died.touch()
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            raise
        return 0.0

    settings = LightningSettings(
        num_trials=3, max_epochs=1, max_concurrent=1, storage_path=str(tmp_path), name="s",
        gpus_per_trial=0, asha="stopping",
    )  # fmt: skip
    space = {"x": ray.tune.uniform(0, 1)}
    result = run_sweep(settings, space=space, metric="score", mode="max", objective=objective)
    assert died.exists()
    assert states(result) == ["COMPLETE"] * 3


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_full_disk_ends_sweep(tmp_path: Path) -> None:
    """The sweep ends with one sentence, and resumes once there is room."""
    with pytest.raises(SweepFailedError, match=r"cannot be stored: .*No space left") as failure:
        tune_tiny(tmp_path, [config("full"), config("good", 0.3)], max_concurrent=1)
    assert failure.value.ended.is_resumable
    assert [t.state.name for t in load_study(tmp_path / "s").trials][:1] == ["RUNNING"]

    (tmp_path / "no_full").touch()
    result = tune_tiny(tmp_path, num_trials=2, resume=True)
    assert states(result) == ["COMPLETE", "COMPLETE"]
    full, good = curves(result)
    assert full.keys() == good.keys() == {1, 2, 3, 4}


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_resume_after_time_budget(tmp_path: Path) -> None:
    """The budget starts again, and a trial that was cut short resumes exactly. A damaged checkpoint
    is refused, and nothing is changed."""
    configs = [config("slow"), config("good")]
    cut = tune_tiny(tmp_path, configs, time_budget_s=20, max_concurrent=2)
    assert states(cut) == ["RUNNING", "COMPLETE"]
    assert [trial.state.name for trial in cut.study.trials] == ["RUNNING", "COMPLETE"]
    assert cut.is_resumable
    slow = tmp_path / "s" / "trial_0000" / "checkpoint_000000" / "checkpoint.ckpt"
    content = slow.read_bytes()
    slow.write_bytes(content[:-100])
    before = (tmp_path / "s" / "study.log").read_bytes()
    with pytest.raises(SettingsError, match=r"trial 0 cannot be resumed: .* is damaged"):
        tune_tiny(tmp_path, num_trials=2, resume=True)
    assert (tmp_path / "s" / "study.log").read_bytes() == before
    slow.write_bytes(content)

    (tmp_path / "no_slow").touch()
    result = tune_tiny(tmp_path, num_trials=2, time_budget_s=60, resume=True)
    assert states(result) == ["COMPLETE", "COMPLETE"]
    was_cut, was_not = curves(result)
    assert was_cut == was_not
    for file in (tmp_path / "s").glob("trial_*/checkpoint_*/checkpoint.ckpt"):
        torch.load(file, weights_only=True)


@pytest.mark.long
@pytest.mark.usefixtures("_ray")
def test_resume_extends_finished_sweep(tmp_path: Path) -> None:
    """Unless `stop_at` was reached already. Another sweep learns from it."""

    def objective(config: dict[str, Any]) -> float:
        return -((config["x"] - 0.3) ** 2)

    def run(**settings: Any) -> Any:
        return run_sweep(
            Settings(**{"storage_path": str(tmp_path), "gpus_per_trial": 0, **settings}),
            space={"x": ray.tune.uniform(0, 1)},
            metric="score",
            mode="max",
            objective=objective,
        )

    first = run(name="a", num_trials=12)
    before = [(trial.params, trial.value) for trial in first.study.trials]
    more = run(name="a", num_trials=24, resume=True)
    assert len(more.rows) == len(more.result_grid) == 24
    assert [(trial.params, trial.value) for trial in more.study.trials][:12] == before
    # After ten random trials TPE searches near the good ones.
    assert sum(abs(row["config/x"] - 0.3) < 0.15 for row in more.rows[12:]) >= 8  # random: 4
    again = run(name="a", num_trials=24, resume=True)
    assert again.rows == more.rows
    ended = run(name="a", num_trials=30, resume=True, stop_at=-1.0)  # reached before
    assert ended.rows == more.rows

    taught = run(name="b", num_trials=6, warm_start="a")
    assert len(taught.rows) == len(taught.study.trials) == 6
    near = sum(abs(row["config/x"] - 0.3) < 0.15 for row in taught.rows)
    assert near >= 4  # random: 2
    with pytest.raises(SettingsError, match="its seed is 0, not 1"):
        run(name="a", num_trials=24, resume=True, seed=1)
    assert (tmp_path / "a" / "trials.csv").exists()


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_resume_at_url(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/far"
    tune_tiny(tmp_path, [config("good"), config("raise")], storage_path=url)
    assert (tmp_path / "far" / "s" / "study.log").exists()
    (tmp_path / "no_raise").touch()
    result = tune_tiny(
        tmp_path, num_trials=3, storage_path=url, resume=True, retry_failed=True, seed=0
    )
    assert states(result)[:3] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert len(result.rows) == 4
    assert len(load_study(f"{url}/s").trials) == 4


def test_resume_refuses_unknown_folder(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "study.log").write_text("{}\n")
    (folder / "best.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"has no sweep.json: it is no sweep"):
        tune_tiny(tmp_path, resume=True)
    assert sorted(path.name for path in folder.iterdir()) == ["best.json", "study.log"]


@contextmanager
def background(function: Callable[[], None]) -> Iterator[None]:
    """Run a function in a thread while the context lasts."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)


def start(tmp_path: Path, *args: str, name: str = "s") -> subprocess.Popen[str]:
    """Start the job in tiny.py from a command line, in its own process group as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-u", str(TINY), "--storage-path", str(tmp_path), "--name", name, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=TINY.parents[1],
        env={**os.environ, "TINY_NOTES": str(tmp_path)},
        start_new_session=True,
    )


def write_configs(tmp_path: Path, *configs: dict[str, Any]) -> str:
    file = tmp_path / "configs.json"
    file.write_text(json.dumps(configs))
    return str(file)


def wait_for(text: str, file: Path, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < deadline, f"{text!r} was never written to {file}"
        time.sleep(0.02)


@pytest.mark.long
def test_interrupt_stops_cleanly_and_soon(tmp_path: Path) -> None:
    """A second driver is refused meanwhile."""
    configs = write_configs(tmp_path, config("slow"), config("good", 0.2), config("good", 0.4))
    driver = start(
        tmp_path, "--enqueue", configs, "--num-trials", "3", "--max-epochs", "4",
        "--grace-epochs", "4", "--max-concurrent", "2",
    )  # fmt: skip
    wait_for("slow 2", tmp_path / "epochs.txt")
    second = start(tmp_path, "--resume")
    refused, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"held by the driver with pid {driver.pid} on " in refused

    pressed = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert time.monotonic() - pressed < 10
    assert driver.returncode == 130
    assert f"--name s --storage-path {tmp_path} --resume" in output
    assert "Traceback" not in output
    assert "1 unfinished" in output
    assert not (tmp_path / "s" / "sweep.lock").exists()
    study = load_study(tmp_path / "s")
    assert study.trials[0].state.name == "RUNNING"
    assert "RUNNING,interrupted" in (tmp_path / "s" / "trials.csv").read_text()


SEARCH = {"num_trials": 8, "max_epochs": 4, "grace_epochs": 1, "max_concurrent": 1, "seed": 3}


@pytest.mark.usefixtures("_ray")
@pytest.mark.long
def test_resume_after_kill_changes_nothing(tmp_path: Path) -> None:
    """A sweep whose driver is killed twice ends as one that runs through."""
    for behavior in ("raise", "oom", "die", "full", "slow"):
        (tmp_path / f"no_{behavior}").touch()
    whole = tune_tiny(tmp_path, name="whole", **SEARCH)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]
    driver = start(tmp_path, *options, name="killed")
    for entry in ("tune_jobs:result:000002", '"trial_id":3'):
        wait_for(entry, tmp_path / "killed" / "study.log")
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        before = load_study(tmp_path / "killed").trials
        driver = start(tmp_path, "--resume", name="killed")
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    assert "Taking over from the driver with pid" in output

    after = load_study(tmp_path / "killed").trials
    for attribute in ("params", "state", "values", "intermediate_values"):
        assert [getattr(trial, attribute) for trial in after] == [
            getattr(trial, attribute) for trial in whole.study.trials
        ]
    assert [trial.user_attrs["reason"] for trial in after] == [
        trial.user_attrs["reason"] for trial in whole.study.trials
    ]
    for trial in before:  # nothing that was recorded is lost
        assert trial.intermediate_values.items() <= after[trial.number].intermediate_values.items()
