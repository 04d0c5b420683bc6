"""A sweep that fails before its first trial leaves its name free, whatever the error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ray import tune

from tune_jobs.engine import (
    LightningSettings,
    Settings,
    SettingsError,
    SweepFailedError,
    SweepResult,
    run_sweep,
)
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.store.opening import OpenSweep, Request, open_sweep
from tune_jobs.engine.store.record import Record

SPACE = {"x": tune.uniform(0, 1)}
ERRORS = [FileNotFoundError, KeyboardInterrupt, SystemExit, SettingsError, GeneratorExit]


@pytest.fixture(params=["folder", "url"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that exists, in which the sweep is `s`."""
    (tmp_path / "r").mkdir()
    return str(tmp_path / "r") if request.param == "folder" else f"file://{tmp_path}/r"


def request_of(storage: str, **settings: Any) -> Request:
    changed = Settings(storage_path=storage, name="s", **settings)
    return Request(changed, Goal("score", "max"), convert_space(SPACE))


def write_leftovers(sweep: OpenSweep) -> None:
    """What Tune writes before the first trial, at the place itself."""
    folder = Path(sweep.folder.path)
    for name in ("tuner.pkl", "experiment_state-2026-11-27_12-00-00.json", "trials.csv",
                 "searcher-state-2026-11-27_12-00-00.pkl", ".validate_storage_marker"):  # fmt: skip
        (folder / name).touch()
    (folder / "trial_0000").mkdir()


def start_trial(record: Record) -> None:
    asked = create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
    )
    record.start("t", asked, {"x": 0.5})


def fail(request: Request, error: type[BaseException], act: Callable[[OpenSweep], Any]) -> None:
    """Open a sweep, act, and fail."""
    with open_sweep(request, "s") as sweep:
        act(sweep)
        raise error


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("has_record", [False, True])
def test_new_sweep_fails_before_trial(
    has_record: bool, error: type[BaseException], storage: str, tmp_path: Path
) -> None:
    """Waiting trials do not count as started. The name can be used again at once."""
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([{"x": 0.25}]))

    def act(sweep: OpenSweep) -> None:
        if has_record:
            assert sweep.begin({}).num_trials == 1
        write_leftovers(sweep)

    for _ in range(2):
        with pytest.raises(error):
            fail(request_of(storage, enqueue=str(file)), error, act)
        assert not list((tmp_path / "r").iterdir())
        assert not list((tmp_path / "state").rglob("s-*"))


def test_new_sweep_fails_after_trial(storage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(request_of(storage), KeyboardInterrupt, lambda sweep: start_trial(sweep.begin({})))
    with open_sweep(request_of(storage, resume=True), "s") as sweep:
        assert sweep.record is not None
        assert len(sweep.record.started()) == 1


def test_new_sweep_keeps_others_files(storage: str, tmp_path: Path) -> None:
    """What a job wrote into the folder stays there."""

    def act(sweep: OpenSweep) -> None:
        write_leftovers(sweep)
        for name in ("mine.txt", "trial_0000/mine.txt"):
            Path(sweep.folder.path, name).touch()

    with pytest.raises(ZeroDivisionError):
        fail(request_of(storage), ZeroDivisionError, act)
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["mine.txt", "mine.txt"]


def test_new_sweep_keeps_others_folder(storage: str, tmp_path: Path) -> None:
    """An empty folder that was there before is not deleted."""
    (tmp_path / "r" / "s").mkdir()
    with pytest.raises(ZeroDivisionError), open_sweep(request_of(storage), "s"):
        raise ZeroDivisionError
    assert not list((tmp_path / "r" / "s").iterdir())


def test_new_sweep_lost_keeps_files(storage: str, tmp_path: Path) -> None:
    """Another driver has taken over: the files are its own."""
    with pytest.raises(ZeroDivisionError):
        fail(request_of(storage), ZeroDivisionError, lambda sweep: sweep.lost.set())
    assert (tmp_path / "r" / "s" / "sweep.json").exists()


@pytest.mark.parametrize("has_trial", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_resumed_sweep_fails_unchanged(
    error: type[BaseException], has_trial: bool, storage: str, tmp_path: Path
) -> None:
    with open_sweep(request_of(storage), "s") as sweep:  # as after `kill -9`: no error, no end
        if has_trial:
            start_trial(sweep.begin({}))
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    with pytest.raises(error), open_sweep(request_of(storage, resume=True), "s"):
        raise error
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before
    with open_sweep(request_of(storage, resume=True), "s") as sweep:
        assert len(sweep.begin({}).started()) == has_trial


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def run(storage: str, **kwargs: Any) -> SweepResult:
    options = {"num_trials": 1, **kwargs.pop("settings", {})}
    settings = Settings(storage_path=storage, name="s", gpus_per_trial=0, **options)
    known = {"metric": "score", "mode": "max", "objective": lambda config: config["x"]}
    return run_sweep(settings, **{"space": SPACE, "progress": None, **known, **kwargs})


def load_data_of(error: BaseException) -> Callable[[Any], Any]:
    def load_data(settings: Any) -> Any:
        raise error

    return load_data


def run_lightning(storage: str, load_data: Callable[[Any], Any]) -> SweepResult:
    """A sweep whose model cannot be made: it must not come that far."""
    make: Any = lambda config, data: None  # noqa: E731
    settings = LightningSettings(storage_path=storage, name="s", gpus_per_trial=0, num_trials=1)
    return run_sweep(
        settings, space=SPACE, metric="score", mode="max", load_data=load_data, make_model=make,
        make_data=make, progress=None,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    "error", [FileNotFoundError("data.csv"), KeyboardInterrupt(), SystemExit()]
)
def test_load_data_raises(error: BaseException, storage: str, tmp_path: Path) -> None:
    """The user's error is what is raised. Nothing says that there is a sweep to resume."""
    with pytest.raises(type(error)) as raised:
        run_lightning(storage, load_data_of(error))
    assert raised.value is error
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("data", [{"lock": threading.Lock()}, (number for number in [1])])
def test_load_data_unpicklable(data: Any, storage: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="what load_data returns cannot be sent to the trials"):
        run_lightning(storage, lambda settings: data)
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_objective_data_unpicklable(storage: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"what load_data returns cannot .*: \['lock'\]: Type"):
        run(
            storage,
            objective=lambda config, data: config["x"],
            load_data=lambda settings: {"lock": threading.Lock()},
        )
    assert not list((tmp_path / "r").iterdir())


def test_objective_unpicklable(storage: str, tmp_path: Path) -> None:
    """Before Ray starts."""
    lock = threading.Lock()

    def objective(config: dict[str, Any]) -> float:
        with lock:
            return float(config["x"])

    with pytest.raises(SettingsError, match=r"objective cannot be sent to .* lock: Type"):
        run(storage, objective=objective)
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_mended_job_runs_under_name(storage: str, tmp_path: Path) -> None:
    """A callback that raises as Tune starts; then one that does not."""

    class Broken(tune.Callback):
        def setup(self, **info: Any) -> None:
            raise ZeroDivisionError("of the user's callback")

    with pytest.raises(ZeroDivisionError):
        run(storage, callbacks=[Broken()])
    assert not list((tmp_path / "r").iterdir())
    assert len(run(storage).rows) == 1
    with pytest.raises(SettingsError, match="already exists"):
        run(storage)


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_sweep_interrupted_before_trial(storage: str, tmp_path: Path) -> None:
    """Ctrl-C while Tune starts, which ends the sweep in order."""

    class Interrupting(tune.Callback):
        def setup(self, **info: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(storage, callbacks=[Interrupting()])
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_time_is_up_before_trial(storage: str, tmp_path: Path) -> None:
    with pytest.raises(SweepFailedError, match="none was started") as failed:
        run(storage, settings={"time_budget_s": 1e-6})
    assert not failed.value.ended.is_resumable
    assert not list((tmp_path / "r").iterdir())


JOB = """
import os, threading
from ray import tune
from tune_jobs.engine import LightningSettings, run_job, run_sweep

def load_data(settings):
    {body}

def make(config, data):
    raise AssertionError("it must not come this far")

def main(settings):
    return run_sweep(
        settings, space={{"x": tune.uniform(0, 1)}}, metric="m", mode="max", load_data=load_data,
        make_model=make, make_data=make,
    )

run_job(main, LightningSettings)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        ("open('data.csv')", 1, "FileNotFoundError: [Errno 2] No such file or directory: 'data."),
        ("os.kill(os.getpid(), 2)", 130, "Interrupted."),
        ("return {'lock': threading.Lock()}", 2, "error: what load_data returns cannot be sent"),
    ],
)
def test_job_fails_before_trial(body: str, code: int, last: str, tmp_path: Path) -> None:
    """No line says how to resume what does not exist."""
    (tmp_path / "job.py").write_text(JOB.format(body=body))
    command = [sys.executable, "job.py", "--name", "u", "--gpus-per-trial", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1].startswith(last)
    assert ("Traceback" in done.stderr) == (code == 1)
    assert "Resume with" not in done.stdout
    assert not (tmp_path / "results").exists()
