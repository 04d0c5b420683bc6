"""When a sweep ends early: `SweepStopper`."""

from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ray import cloudpickle
from ray.exceptions import RayTaskError

from tune_jobs.engine.core.errors import CheckpointError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.settings import LightningSettings, Settings
from tune_jobs.engine.execution.stopper import MAX_FAILURES_WITHOUT_SUCCESS, SweepStopper
from tune_jobs.engine.search.asha import PromotionASHA
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.store.record import Record

GOAL = Goal("score", "max")


def make_record(folder: Path, *outcomes: Outcome | None) -> Record:
    """A record of one trial for each outcome; None: the trial has not ended.

    The ids are "0", "1" and so on.
    """
    record = Record.create(folder, "s", GOAL, Event())
    for number, outcome in enumerate(outcomes):
        asked = create_trial(
            state=TrialState.RUNNING,
            params={"x": 0.5},
            distributions={"x": FloatDistribution(0, 1)},
        )
        record.start(str(number), asked, {"x": 0.5})
        if outcome is not None:
            record.end(str(number), outcome, 0.5)
    return record


def make_stopper(
    folder: Path,
    *outcomes: Outcome | None,
    lost: Event | None = None,
    budget: float | None = None,
) -> SweepStopper:
    """A stopper of a sweep with one failing trial, "0", after trials with these outcomes."""
    record = make_record(folder, None, *outcomes)
    settings = Settings(time_budget_s=budget)
    scheduler = EpochScheduler(GOAL, record, settings)
    return SweepStopper(scheduler, record, lost or Event(), settings)


def fail(stopper: SweepStopper, folder: Path, error: Exception) -> None:
    """Report to the stopper, and to its scheduler first as Tune does, that trial "0" failed."""

    class Trial:
        trial_id = "0"
        status = "RUNNING"
        pickled_error_file = str(folder / "error.pkl")

    (folder / "error.pkl").write_bytes(cloudpickle.dumps(RayTaskError("train", "here", error)))
    trial: Any = Trial()
    stopper._scheduler.on_trial_error(None, trial)
    stopper.watcher.on_trial_error(0, [], trial)


def kind_of(stopper: SweepStopper) -> str | None:
    return None if stopper.outcome is None else stopper.outcome.kind


def test_stopper_lets_a_sweep_run(tmp_path: Path) -> None:
    assert make_stopper(tmp_path).outcome is None


RAISED = Outcome("ArithmeticError", Cause.TRIAL, "ArithmeticError", "Traceback ...")


def end(stopper: SweepStopper, trial_id: str, outcome: Outcome = RAISED) -> None:
    """End a trial, as the search does."""
    value = 0.5 if outcome.is_complete else None
    stopper.on_trial_end(stopper._record.end(trial_id, outcome, value))


def reported(record: Record, trial_id: str, *epochs: int) -> None:
    for epoch in epochs:
        record.report(trial_id, 0.5, {"score": 0.5, "epoch": epoch}, None)


def test_stopper_only_failures(tmp_path: Path) -> None:
    """Five failures hold new trials back; the sweep ends once nothing runs that may succeed."""
    stopper = make_stopper(tmp_path, *[None] * MAX_FAILURES_WITHOUT_SUCCESS)
    for number in range(MAX_FAILURES_WITHOUT_SUCCESS):
        assert not stopper.holds_back
        end(stopper, str(number))
    assert stopper.holds_back
    assert stopper.outcome is None
    end(stopper, str(MAX_FAILURES_WITHOUT_SUCCESS))
    assert kind_of(stopper) == Kind.FAILURES


def test_stopper_success_after_failures(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path, *[None] * 7)
    for number in range(6):
        end(stopper, str(number))
    assert stopper.holds_back
    end(stopper, "6", Outcome.of(Kind.BY_ITSELF))
    assert not stopper.holds_back
    end(stopper, "7")
    assert stopper.outcome is None


@pytest.mark.parametrize("was_before", [True, False])
@pytest.mark.parametrize(
    ("kind", "is_success"),
    [(Kind.LAST_EPOCH, True), (Kind.BY_ITSELF, True), (Kind.NAN, False), (Kind.ASHA, False)],
)
def test_stopper_what_is_success(
    kind: Kind, is_success: bool, was_before: bool, tmp_path: Path
) -> None:
    """The same before a resume and after it: one that diverged or was stopped is no success."""
    running = [None] * MAX_FAILURES_WITHOUT_SUCCESS
    stopper = make_stopper(tmp_path, Outcome.of(kind) if was_before else None, *running)
    if not was_before:
        end(stopper, "1", Outcome.of(kind))
    for number in (0, 2, 3, 4, 5, 6):
        end(stopper, str(number))
    assert kind_of(stopper) == (None if is_success else Kind.FAILURES)


def test_stopper_trial_ahead_of_failures(tmp_path: Path) -> None:
    """A trial that has come further than all that failed may well succeed: the sweep goes on."""
    stopper = make_stopper(tmp_path, *[None] * 6)
    reported(stopper._record, "0", 1, 2)
    for number in range(MAX_FAILURES_WITHOUT_SUCCESS):
        end(stopper, str(number))
    reported(stopper._record, "5", 1, 2)
    assert stopper.holds_back
    reported(stopper._record, "5", 3)
    assert not stopper.holds_back
    end(stopper, "5", Outcome.of(Kind.NAN))
    end(stopper, "6")
    assert kind_of(stopper) == Kind.FAILURES


def test_stopper_metric_never_logged(tmp_path: Path) -> None:
    """It is missing in every trial: one failure is enough."""
    stopper = make_stopper(tmp_path)
    end(stopper, "0", Outcome("MetricNotLoggedError", Cause.TRIAL, "the model never logs 'x'", ""))
    assert kind_of(stopper) == Kind.FAILURES


def test_stopper_failures_beside_paused(tmp_path: Path) -> None:
    """A paused trial may succeed."""
    record = make_record(tmp_path, *[None] * 6)
    settings = LightningSettings(max_epochs=9)
    asha = PromotionASHA(GOAL, record, settings)
    stopper = SweepStopper(asha, record, Event(), settings)
    reported(record, "5", 1)
    asha.restore(record.started())
    paused: Any = SimpleNamespace(trial_id="5", status="PAUSED")
    asha.on_trial_add(None, paused)
    for number in range(MAX_FAILURES_WITHOUT_SUCCESS):
        end(stopper, str(number))
    assert stopper.outcome is None
    assert not stopper.holds_back


def test_stopper_first_reason_stands(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path, budget=1e-9)
    assert kind_of(stopper) == Kind.TIME_BUDGET
    stopper.interrupt()
    assert kind_of(stopper) == Kind.TIME_BUDGET
    assert stopper.decided == stopper.outcome


def test_stopper_error_of_sampler(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path)
    assert stopper.decided is None
    stopper.fail(Outcome("KeyError", Cause.TRIAL, "TPESampler failed"))
    assert kind_of(stopper) == "KeyError"


def test_stopper_storage_failure(tmp_path: Path) -> None:
    """The first failure is enough, though a trial has succeeded before."""
    stopper = make_stopper(tmp_path, Outcome.of(Kind.LAST_EPOCH))
    assert stopper.outcome is None
    fail(stopper, tmp_path, CheckpointError("a checkpoint cannot be stored: no space"))
    assert stopper.outcome is not None
    assert stopper.outcome.kind == Kind.STORAGE
    assert stopper.outcome.message == "a checkpoint cannot be stored: no space."


def test_stopper_storage_failure_interrupted(tmp_path: Path) -> None:
    """A storage that fails after Ctrl-C is what the user has to know."""
    stopper = make_stopper(tmp_path)
    stopper.interrupt()
    fail(stopper, tmp_path, CheckpointError("a checkpoint cannot be stored: no space"))
    assert stopper.outcome is not None
    assert stopper.outcome.message == "a checkpoint cannot be stored: no space."


def test_stopper_lock_lost(tmp_path: Path) -> None:
    lost = Event()
    stopper = make_stopper(tmp_path, lost=lost)
    lost.set()
    assert stopper.outcome is not None
    assert stopper.outcome.kind == Kind.LOCK_LOST
    assert stopper.outcome.message


def test_stopper_sweep_interrupted(tmp_path: Path) -> None:
    stopper = make_stopper(tmp_path)
    stopper.interrupt()
    assert stopper.outcome is not None
    assert stopper.outcome.kind == Kind.INTERRUPTED
    assert not stopper.outcome.message


@pytest.mark.parametrize(("budget", "kind"), [(1e-9, Kind.TIME_BUDGET), (1e9, None)])
def test_stopper_time_budget(budget: float, kind: Kind | None, tmp_path: Path) -> None:
    assert kind_of(make_stopper(tmp_path, budget=budget)) == kind
