"""When the whole sweep ends."""

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ray import cloudpickle
from ray.exceptions import RayTaskError

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import CheckpointError, Reason
from tune_jobs.engine.execution.stopper import MAX_FAILURES_WITHOUT_SUCCESS, SweepStopper
from tune_jobs.engine.search.asha import EpochScheduler, PromotionASHA
from tune_jobs.engine.store.record import Record

GOAL = Goal("score", "max")


def make_stopper(
    folder: Path,
    num_complete: int = 0,
    lost: Event | None = None,
    budget: float | None = None,
    scheduler: EpochScheduler | None = None,
) -> SweepStopper:
    record = Record.create(folder, "s", GOAL, Event())
    for number in range(num_complete):
        asked = create_trial(
            state=TrialState.RUNNING,
            params={"x": 0.5},
            distributions={"x": FloatDistribution(0, 1)},
        )
        record.start(str(number), asked)
        record.end(str(number), TrialState.COMPLETE, "last epoch", 0.5)
    return SweepStopper(scheduler or EpochScheduler(GOAL), record, lost or Event(), budget)


def fail(stopper: SweepStopper, folder: Path, error: Exception) -> None:
    class Trial:
        trial_id = "t"
        status = "RUNNING"
        pickled_error_file = str(folder / "error.pkl")

    (folder / "error.pkl").write_bytes(cloudpickle.dumps(RayTaskError("train", "here", error)))
    trial: Any = Trial()
    stopper._scheduler.on_trial_error(None, trial)  # in Tune's order
    stopper.watcher.on_trial_error(0, [], trial)


def test_sweep_goes_on_until_something_ends_it(tmp_path: Path) -> None:
    assert make_stopper(tmp_path).reason is None


def test_nothing_but_failures_end_it(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path)
    for _ in range(MAX_FAILURES_WITHOUT_SUCCESS):
        assert stopper.reason is None
        fail(stopper, tmp_path, ArithmeticError())
    assert stopper.reason == Reason.FAILURES


def test_failures_do_not_end_a_sweep_in_which_trials_had_succeeded_before(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path, num_complete=1)
    for _ in range(MAX_FAILURES_WITHOUT_SUCCESS):
        fail(stopper, tmp_path, ArithmeticError())
    assert stopper.reason is None


def test_failures_do_not_end_a_sweep_in_which_trials_are_paused(tmp_path: Path) -> None:
    asha = PromotionASHA(GOAL, max_epochs=9)
    stopper = make_stopper(tmp_path, scheduler=asha)
    asha.replay("a", {1: 0.5})
    paused: Any = SimpleNamespace(trial_id="a", status="PAUSED")
    asha.on_trial_add(None, paused)
    for _ in range(MAX_FAILURES_WITHOUT_SUCCESS):
        fail(stopper, tmp_path, ArithmeticError())
    assert stopper.reason is None


def test_first_failure_of_the_storage_ends_it_and_is_told(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path, num_complete=1)
    assert stopper.trouble is None
    fail(stopper, tmp_path, CheckpointError("a checkpoint cannot be stored: no space"))
    assert stopper.reason == Reason.STORAGE
    assert stopper.trouble == "a checkpoint cannot be stored: no space."


def test_another_driver_ends_it(tmp_path: Path) -> None:
    lost = Event()
    stopper = make_stopper(tmp_path, lost=lost)
    lost.set()
    assert stopper.reason == Reason.LOCK_LOST
    assert stopper.trouble is not None


def test_interruption_ends_it(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path)
    stopper.interrupt()
    assert stopper.reason == Reason.INTERRUPTED
    assert stopper.trouble is None


@pytest.mark.parametrize(("budget", "reason"), [(1e-9, Reason.TIME_BUDGET), (1e9, None)])
def test_spent_budget_ends_it(budget: float, reason: Reason | None, tmp_path: Path) -> None:
    assert make_stopper(tmp_path, budget=budget).reason == reason
