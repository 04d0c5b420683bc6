"""Canaries: the private names of Ray, Optuna and Lightning that the engine uses still exist, and
still do what it uses them for. An upgrade that breaks one fails here before it breaks a sweep."""

import inspect
import json
import math
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import pytorch_lightning as pl
import ray
from optuna.search_space import IntersectionSearchSpace
from ray import tune
from ray.train._internal.session import _TrainSession
from ray.tune import Checkpoint
from ray.tune.execution.tune_controller import TrialRunnerWrapper, TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

from tune_jobs.engine.cluster.internals import (
    HEAD_RESOURCE,
    RAY_JOB_CONFIG_JSON_ENV_VAR,
    autoscaler_config,
    would_join,
)
from tune_jobs.engine.core import internals as core
from tune_jobs.engine.execution import internals as execution
from tune_jobs.engine.search import internals as search
from tune_jobs.engine.trainable import internals as trainable


@pytest.fixture
def _other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that another user or sweep runs on this machine, and that `ray start` did not start."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    services = ray._private.services
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"192.0.2.1:6379"})
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: None)


@pytest.mark.usefixtures("_other_ray")
def test_would_join_other_ray() -> None:
    assert not would_join(None)
    assert would_join("auto")  # any Ray in the process list: this is why the engine does not use it


def test_would_join_address() -> None:
    assert would_join("192.0.2.1:6379")
    assert not would_join("local")


def test_job_config_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` tells a job's driver in this variable that its folder was sent."""
    from tune_jobs.engine.cluster.runtime_env import code_to_ship

    config = json.dumps({"runtime_env": {"working_dir": "gcs://package.zip"}})
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, config)
    assert code_to_ship(None) == {}
    assert RAY_JOB_CONFIG_JSON_ENV_VAR == "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.mark.slow
def test_autoscaler_config_absent() -> None:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert autoscaler_config() is None
        assert HEAD_RESOURCE in ray.nodes()[0]["Resources"]
    finally:
        ray.shutdown()


class Controller:
    """Has what the engine uses of Tune's controller."""

    def __init__(self) -> None:
        self._resetting_trials = {"trial"}
        self.statuses: list[str] = []

    def _set_trial_status(self, trial: Any, status: str) -> None:
        self.statuses.append(status)


def test_controller_has_its_names() -> None:
    source = inspect.getsource(TuneController)
    assert "self._resetting_trials" in source
    assert list(inspect.signature(TuneController._set_trial_status).parameters) == [
        "self",
        "trial",
        "status",
    ]
    assert inspect.signature(TuneController.stop_trial).parameters.keys() == {"self", "trial"}


def test_controller_behind_wrapper() -> None:
    controller: Any = Controller()
    wrapper = TrialRunnerWrapper(controller, None)
    assert search.controller_of(wrapper) is controller


def test_controller_status_changes() -> None:
    controller, trial = Controller(), "trial"
    search.pause_pending(controller, trial)  # type: ignore[arg-type]
    execution.keep_running(controller, trial)  # type: ignore[arg-type]
    execution.stop_waiting_for_reset(controller, trial)  # type: ignore[arg-type]
    assert controller.statuses == [Trial.PAUSED, Trial.RUNNING]
    assert not controller._resetting_trials


def test_scheduler_mode_name() -> None:
    assert search.mode_of(ASHAScheduler(metric="loss", mode="min")) == "min"
    assert search.mode_of(MedianStoppingRule()) is None
    assert search.mode_of(FIFOScheduler()) is None


def test_scheduler_max_epochs() -> None:
    assert search.max_epochs_of(ASHAScheduler(max_t=7)) == 7
    assert search.max_epochs_of(MedianStoppingRule()) == math.inf


def test_scheduler_forgets_stop() -> None:
    rule, trial = MedianStoppingRule(), "trial"
    rule._stopped_trials.add(trial)
    search.forget_stop(rule, trial)  # type: ignore[arg-type]
    assert not rule._stopped_trials
    search.forget_stop(FIFOScheduler(), trial)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        optuna.samplers.RandomSampler,
        optuna.samplers.TPESampler,
        optuna.samplers.NSGAIISampler,
        lambda: optuna.samplers.PartialFixedSampler({}, optuna.samplers.RandomSampler()),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_are_reseeded(make: Any) -> None:
    def draw() -> float:
        sampler = make()
        search.reseed_generators(sampler, 7)
        trial = optuna.create_study(sampler=sampler).ask()
        return trial.suggest_float("x", 0, 1)

    assert draw() == draw()


def test_value_given_to_enqueued_trial() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"kernel": [3, 3], "x": 0.5})
    trial = study.ask()
    core.give(trial, "kernel", "[3, 3]")
    assert trial.suggest_categorical("kernel", ["[5, 5]", "[3, 3]"]) == "[3, 3]"
    assert trial.suggest_float("x", 0, 1) == 0.5


def test_search_space_shown_again() -> None:
    sampler = optuna.samplers.TPESampler(multivariate=False)
    space = sampler._search_space  # type: ignore[attr-defined]
    assert isinstance(space, IntersectionSearchSpace)
    space._cached_trial_number = 9
    search.show_again(sampler, [4, 6])
    assert space._cached_trial_number == 4


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_logger_version_name(package: str, name: str, tmp_path: Path) -> None:
    module = pytest.importorskip(f"{package}.loggers")
    if name == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    logger = getattr(module, name)(tmp_path)
    assert trainable.version_of(logger) is None
    trainable.name_version(logger, "trial_0003")
    assert Path(logger.log_dir).name == "trial_0003"


def test_session_has_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(_TrainSession)
    assert "self.training_thread =" in source
    assert "self.training_started = True" in source
    assert inspect.signature(_TrainSession.finish).parameters.keys() == {"self", "timeout"}

    class Session:
        training_started = True
        training_thread = threading.current_thread()

        def finish(self, timeout: float) -> None: ...

    monkeypatch.setattr(trainable, "get_session", Session)
    assert not trainable.end_training_thread(timeout_s=0.01)  # this thread is alive
    monkeypatch.setattr(Session, "training_started", False)
    assert trainable.end_training_thread(timeout_s=0.01)


def test_checkpoint_is_registered(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_000004"
    folder.mkdir()

    class Manager:
        def register_checkpoint(self, result: Any) -> None:
            self.result = result

    class Namespace:
        checkpoint_manager = Manager()
        current_checkpoint_index = -1

    class FakeTrial:
        run_metadata = Namespace()
        storage = Namespace()

    trial: Any = FakeTrial()
    execution.register_checkpoint(trial, Checkpoint(str(folder)), {"score": 1.0})
    result = trial.run_metadata.checkpoint_manager.result
    assert result.checkpoint.path == str(folder)
    assert result.metrics == {"score": 1.0}
    assert trial.storage.current_checkpoint_index == 4


def test_random_states_key_of_old_checkpoints() -> None:
    """Checkpoints written before the key was given a name hold the states under a local class."""
    from tune_jobs.engine.trainable import lightning

    callback = lightning._make_report_callback(pl, "score")
    assert callback.state_key == "tune_jobs.random_states"
    states = {lightning.OLD_STATE_KEY: {"torch": 1}}
    callback.on_load_checkpoint(None, None, {"callbacks": states})
    assert states == {"tune_jobs.random_states": {"torch": 1}}


def test_own_resources_of_function() -> None:
    def train(config: dict[str, Any]) -> float:
        return 0.0

    assert not trainable.has_own_resources(train)
    assert trainable.has_own_resources(tune.with_resources(train, {"cpu": 2}))


def test_session_can_be_taken_over() -> None:
    """What `TrialSession` relies on: the attribute that `tune.get_checkpoint` reads and that a
    report sets, and the state that lives until the session is reset."""
    assert "get_session().loaded_checkpoint" in inspect.getsource(tune.get_checkpoint)
    source = inspect.getsource(_TrainSession)
    assert "self.loaded_checkpoint = loaded_checkpoint" in source
    assert "self.loaded_checkpoint = training_result.checkpoint" in source
    assert not hasattr(_TrainSession, "__slots__")
    session = _TrainSession.__new__(_TrainSession)
    session._state = {}
    session.set_state("a", 1)
    assert session.get_state("a") == 1
    assert list(inspect.signature(_TrainSession.report).parameters) == [
        "self",
        "metrics",
        "checkpoint",
    ]
