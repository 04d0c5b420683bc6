"""Sweeps that something befalls, and what their records say: on a real Ray, with real trials."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
    load_study,
    run_sweep,
)
from tune_jobs.engine.store.record import results_of

pytestmark = pytest.mark.slow

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def config(fate: str, x: float = 0.5) -> dict[str, Any]:
    return {"x": x, "fate": fate}


def curves(sweep: Any) -> list[dict[int, float]]:
    return [trial.intermediate_values for trial in sweep.study.trials]


@pytest.mark.usefixtures("_ray")
def test_each_end_of_a_trial_is_recorded_as_what_it_was(tmp_path: Path) -> None:
    fates = ["good", "nan", "raise", "oom", "die"]
    (tmp_path / "no_die").touch()
    sweep = tune_tiny(tmp_path, [config(fate) for fate in fates], max_concurrent=2)
    rows = {row["config/fate"]: row for row in sweep.rows}
    assert {fate: (row["state"], row["reason"]) for fate, row in rows.items()} == {
        "good": ("COMPLETE", "last epoch"),
        "nan": ("PRUNED", "nan"),
        "raise": ("FAIL", "ArithmeticError"),
        "oom": ("FAIL", "oom"),
        "die": ("COMPLETE", "last epoch"),
    }
    assert {fate: row["epochs"] for fate, row in rows.items()} == {
        "good": 4, "nan": 2, "raise": 1, "oom": 1, "die": 4
    }  # fmt: skip
    scores = [result["score"] for result in results_of(sweep.study.trials[1]).values()]
    assert scores[1:] == ["nan"]  # one epoch, where it would have run to its end
    states = [trial.state.name for trial in sweep.study.trials]
    assert states == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "COMPLETE"]
    whole = curves(sweep)[0]
    assert curves(sweep)[1:4] == [{1: whole[1]}] * 3
    assert "try --cpus-per-trial 2" in sweep.logs[3]
    assert "as it was to be" in Path(sweep.logs[2]).read_text()
    # not run again: a config that fails would fail again
    epochs = (tmp_path / "epochs.txt").read_text().splitlines()
    assert epochs.count("raise 2") == epochs.count("oom 2") == epochs.count("nan 2") == 1


@pytest.mark.usefixtures("_ray")
def test_trial_whose_process_dies_goes_on_exactly_where_it_stood(tmp_path: Path) -> None:
    def make_it_live_soon() -> None:
        while not (tmp_path / "deaths.txt").exists():
            time.sleep(0.05)
        (tmp_path / "no_die").touch()

    with background(make_it_live_soon):
        sweep = tune_tiny(tmp_path, [config("good"), config("die")], max_concurrent=2)
    assert [row["state"] for row in sweep.rows] == ["COMPLETE", "COMPLETE"]
    never_died, died = curves(sweep)
    assert died == never_died  # number by number
    assert (tmp_path / "deaths.txt").read_text() == "x\n"
    lines = (tmp_path / "s" / "trial_0001" / "result.json").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    assert sweep.logs == {}


@pytest.mark.usefixtures("_ray")
def test_trial_whose_process_dies_too_often_has_failed_and_may_be_run_again(
    tmp_path: Path,
) -> None:
    sweep = tune_tiny(tmp_path, [config("good"), config("die", 0.7)], max_failures=1)
    failed = sweep.rows[1]
    assert (failed["state"], failed["reason"]) == ("FAIL", "ActorDiedError")
    assert (tmp_path / "deaths.txt").read_text() == "x\nx\n"

    (tmp_path / "no_die").touch()
    sweep = tune_tiny(tmp_path, num_trials=2, resume=True, retry_failed=True)
    assert [row["state"] for row in sweep.rows] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert sweep.rows[2]["config/x"] == 0.7
    assert sweep.study.best_trial.number == 2  # its result has reached Optuna
    assert sweep.best_trial == 2


@pytest.mark.usefixtures("_ray")
def test_failed_trials_are_run_again_no_more_at_a_time_than_there_are_slots(
    tmp_path: Path,
) -> None:
    def objective(config: dict[str, Any]) -> float:
        if config["x"] > 0.5 and not (tmp_path / "mended").exists():
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
    (tmp_path / "mended").touch()
    (tmp_path / "times.txt").unlink()
    again = run(num_trials=6, resume=True, retry_failed=True, max_concurrent=1)
    assert [row["config/x"] for row in again.rows[6:]] == failed
    assert again.best_trial >= 6
    lines = (tmp_path / "times.txt").read_text().splitlines()
    times = sorted([float(time) for time in line.split()] for line in lines)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


@pytest.mark.usefixtures("_ray")
def test_process_that_dies_between_two_trials_fails_neither(tmp_path: Path) -> None:
    died = tmp_path / "died"

    def objective(config: dict[str, Any]) -> float:
        try:
            ray.tune.report({"score": config["x"], "epoch": 1})
        except SystemExit:  # its last epoch is over, and Tune waits to hand the process on
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
    sweep = run_sweep(settings, space=space, metric="score", mode="max", objective=objective)
    assert died.exists()
    assert [row["state"] for row in sweep.rows] == ["COMPLETE"] * 3


@pytest.mark.usefixtures("_ray")
def test_full_disk_ends_the_sweep_with_a_sentence_and_it_goes_on_once_there_is_room(
    tmp_path: Path,
) -> None:
    with pytest.raises(SweepFailedError, match=r"cannot be stored: .*No space left") as failure:
        tune_tiny(tmp_path, [config("full"), config("good", 0.3)], max_concurrent=1)
    assert failure.value.ended is not None
    assert failure.value.ended.is_resumable
    assert [t.state.name for t in load_study(tmp_path / "s").trials][:1] == ["RUNNING"]

    (tmp_path / "no_full").touch()
    sweep = tune_tiny(tmp_path, num_trials=2, resume=True)
    assert [row["state"] for row in sweep.rows] == ["COMPLETE", "COMPLETE"]
    full, good = curves(sweep)
    assert full.keys() == good.keys() == {1, 2, 3, 4}


@pytest.mark.usefixtures("_ray")
def test_budget_is_fresh_each_time_and_trials_go_on_exactly(tmp_path: Path) -> None:
    configs = [config("slow"), config("good")]
    cut = tune_tiny(tmp_path, configs, time_budget_s=12, max_concurrent=2)
    assert [row["state"] for row in cut.rows] == ["RUNNING", "COMPLETE"]
    assert [trial.state.name for trial in cut.study.trials] == ["RUNNING", "COMPLETE"]
    assert cut.is_resumable
    slow = tmp_path / "s" / "trial_0000" / "checkpoint_000000" / "checkpoint.ckpt"
    content = slow.read_bytes()
    slow.write_bytes(content[:-100])
    before = (tmp_path / "s" / "study.log").read_bytes()
    with pytest.raises(SettingsError, match=r"trial 0 cannot go on: .* is damaged"):
        tune_tiny(tmp_path, num_trials=2, resume=True)
    assert (tmp_path / "s" / "study.log").read_bytes() == before
    slow.write_bytes(content)

    (tmp_path / "no_slow").touch()
    sweep = tune_tiny(tmp_path, num_trials=2, time_budget_s=60, resume=True)
    assert [row["state"] for row in sweep.rows] == ["COMPLETE", "COMPLETE"]
    was_cut, was_not = curves(sweep)
    assert was_cut == was_not  # number by number
    for file in (tmp_path / "s").glob("trial_*/checkpoint_*/checkpoint.ckpt"):
        torch.load(file, weights_only=True)


@pytest.mark.usefixtures("_ray")
def test_finished_sweep_is_extended_and_another_is_learnt_from(tmp_path: Path) -> None:
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
    # informed: TPE has had its ten trials at random and looks where they were good
    assert sum(abs(row["config/x"] - 0.3) < 0.15 for row in more.rows[12:]) >= 8  # at random 4
    again = run(name="a", num_trials=24, resume=True)
    assert again.rows == more.rows
    ended = run(name="a", num_trials=30, resume=True, stop_at=-1.0)  # long reached
    assert ended.rows == more.rows

    learnt = run(name="b", num_trials=6, warm_start="a")
    assert len(learnt.rows) == len(learnt.study.trials) == 6
    near = sum(abs(row["config/x"] - 0.3) < 0.15 for row in learnt.rows)
    assert near >= 4  # at random 2
    with pytest.raises(SettingsError, match="its seed is 0, not 1"):
        run(name="a", num_trials=24, resume=True, seed=1)
    assert (tmp_path / "a" / "trials.csv").exists()


@pytest.mark.usefixtures("_ray")
def test_sweep_at_a_url_is_gone_on_with(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/far"
    tune_tiny(tmp_path, [config("good"), config("raise")], storage_path=url)
    assert (tmp_path / "far" / "s" / "study.log").exists()
    (tmp_path / "no_raise").touch()
    sweep = tune_tiny(
        tmp_path, num_trials=3, storage_path=url, resume=True, retry_failed=True, seed=0
    )
    assert [row["state"] for row in sweep.rows][:3] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert len(sweep.rows) == 4
    assert len(load_study(f"{url}/s").trials) == 4


def test_folder_of_an_older_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "study.log").write_text("{}\n")
    (folder / "best.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"has no sweep.json: it is no sweep"):
        tune_tiny(tmp_path, resume=True)
    assert sorted(path.name for path in folder.iterdir()) == ["best.json", "study.log"]


class background:  # noqa: N801
    """Run a function in a thread while the context lasts."""

    def __init__(self, function: Any) -> None:
        import threading

        self._thread = threading.Thread(target=function, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *args: object) -> None:
        self._thread.join(timeout=10)


def start(tmp_path: Path, *args: str, name: str = "s") -> subprocess.Popen[str]:
    """Start the tiny job as a user would, in a group of its own as a shell does."""
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


def wait_for(what: str, file: Path, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not file.exists() or what not in file.read_text():
        assert time.monotonic() < deadline, f"{what!r} never came into {file}"
        time.sleep(0.02)


def test_ctrl_c_ends_in_order_within_ten_seconds_and_says_how_to_go_on(tmp_path: Path) -> None:
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
    said, _ = driver.communicate(timeout=60)
    assert time.monotonic() - pressed < 10
    assert driver.returncode == 130
    assert f"--name s --storage-path {tmp_path} --resume" in said
    assert "Traceback" not in said
    assert "1 unfinished" in said
    assert not (tmp_path / "s" / "sweep.lock").exists()
    study = load_study(tmp_path / "s")
    assert study.trials[0].state.name == "RUNNING"
    assert "RUNNING,interrupted" in (tmp_path / "s" / "trials.csv").read_text()


def finished(driver: subprocess.Popen[str]) -> str:
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, said
    return said


SEARCH = (
    "--num-trials", "8", "--max-epochs", "4", "--max-concurrent", "1", "--seed", "3",
)  # fmt: skip


def test_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    for fate in ("raise", "oom", "die", "full", "slow"):
        (tmp_path / f"no_{fate}").touch()
    killed = start(tmp_path, *SEARCH, name="killed")
    journal = tmp_path / "killed" / "study.log"
    for result in ("tune_jobs:result:000002", '"trial_id":3'):
        wait_for(result, journal)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        before = load_study(tmp_path / "killed").trials
        killed = start(tmp_path, "--resume", name="killed")
    said = finished(killed)
    assert "taken over from the driver with pid" in said
    finished(start(tmp_path, *SEARCH, name="whole"))

    def told(name: str) -> list[Any]:
        keys = ("params", "state", "values", "intermediate_values")
        return [
            [getattr(trial, key) for key in keys] + [trial.user_attrs["reason"]]
            for trial in load_study(tmp_path / name).trials
        ]

    assert told("killed") == told("whole")
    after = load_study(tmp_path / "killed").trials
    for trial in before:  # nothing that was there is lost
        assert trial.intermediate_values.items() <= after[trial.number].intermediate_values.items()
