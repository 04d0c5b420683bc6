"""Outcomes: what a trial failed of, what brought it about, and how the record keeps it."""

import errno
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.tune.experiment import Trial

from tune_jobs.engine.core.errors import CheckpointError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, outcome_of
from tune_jobs.engine.execution.queue import SweepTrial
from tune_jobs.engine.search.failures import outcome_of_failed
from tune_jobs.engine.store.entries import decision_of
from tune_jobs.engine.store.record import Record


class TorchOutOfMemoryError(RuntimeError):
    """In place of torch.OutOfMemoryError, which is a RuntimeError too."""


TorchOutOfMemoryError.__name__ = TorchOutOfMemoryError.__qualname__ = "OutOfMemoryError"


def failed(folder: Path, error: BaseException, gpus: float = 0.25) -> Any:
    """A trial that has failed with the error, as Ray leaves it."""
    file = folder / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    return SimpleNamespace(
        pickled_error_file=str(file),
        error_file=str(file),
        placement_group_factory=SimpleNamespace(required_resources={"CPU": 2, "GPU": gpus}),
    )


def wrapped(cause: Exception) -> RayTaskError:
    return RayTaskError("train", "Traceback: here", cause)


def outcome_with(folder: Path, error: BaseException, gpus: float = 0.25) -> Outcome:
    return outcome_of_failed(failed(folder, error, gpus))


def test_failure_own_exception(tmp_path: Path) -> None:
    """It has the exception's name, its first line and its traceback."""
    outcome = outcome_with(tmp_path, wrapped(KeyError("lr")))
    assert (outcome.kind, outcome.cause) == ("KeyError", Cause.TRIAL)
    assert outcome.message == "KeyError: 'lr'"
    assert "Traceback: here" in outcome.traceback


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        OutOfMemoryError("the node is low"),
        TorchOutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_failure_out_of_memory(error: Exception, tmp_path: Path) -> None:
    outcome = outcome_with(tmp_path, wrapped(error))
    assert (outcome.kind, outcome.cause) == ("oom", Cause.TRIAL)


@pytest.mark.parametrize(
    ("gpus", "advice"),
    [
        (0.25, "It had 0.25 of a GPU; try --gpus-per-trial 0.5."),
        (0.6, "It had 0.6 of a GPU; try --gpus-per-trial 1."),
        (1.0, "It had a whole GPU; search smaller models or batches."),
        (0.0, "It had 2 CPU; try --cpus-per-trial 4, so that fewer run at once."),
    ],
)
def test_out_of_memory_suggests_larger_share(gpus: float, advice: str, tmp_path: Path) -> None:
    assert outcome_with(tmp_path, MemoryError(), gpus).message == f"MemoryError. {advice}"


def test_failure_worker_died(tmp_path: Path) -> None:
    outcome = outcome_with(tmp_path, ActorDiedError())
    assert (outcome.kind, outcome.cause) == ("ActorDiedError", Cause.CLUSTER)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), CheckpointError("it ends too early")],
)
def test_failure_of_storage(error: Exception, tmp_path: Path) -> None:
    assert outcome_with(tmp_path, wrapped(error)).cause == Cause.STORAGE


def test_failure_missing_file(tmp_path: Path) -> None:
    error = wrapped(FileNotFoundError(errno.ENOENT, "No such file", "data.csv"))
    assert outcome_with(tmp_path, error).cause == Cause.TRIAL


def test_failure_unreadable_error(tmp_path: Path) -> None:
    trial = SimpleNamespace(pickled_error_file=None)
    assert outcome_of_failed(trial).kind == "error"
    (tmp_path / "error.pkl").write_text("no pickle")
    file = str(tmp_path / "error.pkl")
    outcome = outcome_of_failed(SimpleNamespace(pickled_error_file=file, error_file=file))
    assert (outcome.kind, outcome.traceback) == ("error", "no pickle")


@pytest.mark.parametrize(
    ("error", "recovers"), [(ActorDiedError(), True), (wrapped(KeyError("lr")), False)]
)
def test_trial_recovers_when_worker_died(
    error: BaseException, recovers: bool, tmp_path: Path
) -> None:
    """Ours recovers from the death of its process alone, a stock trial from any failure."""

    def make(kind: type[Trial]) -> Any:
        trial = kind.__new__(kind)
        trial.__dict__.update(vars(failed(tmp_path, error)))
        trial.run_metadata = SimpleNamespace(num_failures=1)
        trial.max_failures = 3
        return trial

    class Ours(SweepTrial):
        pickled_error_file = str(tmp_path / "error.pkl")  # Ray has a property
        error_file = pickled_error_file

    class Stock(Trial):
        pickled_error_file = Ours.pickled_error_file
        error_file = pickled_error_file

    assert make(Ours).should_recover() == recovers
    assert make(Stock).should_recover()


CAUSES = {
    Kind.BY_ITSELF: Cause.FINISHED,
    Kind.LAST_EPOCH: Cause.FINISHED,
    Kind.GOOD_ENOUGH: Cause.FINISHED,
    Kind.ASHA: Cause.JUDGED,
    Kind.SCHEDULER: Cause.JUDGED,
    Kind.NAN: Cause.JUDGED,
    Kind.PRUNED: Cause.JUDGED,
    Kind.BY_HAND: Cause.JUDGED,
    Kind.OUT_OF_MEMORY: Cause.TRIAL,
    Kind.SILENT: Cause.TRIAL,
}
FAILED = [
    Outcome("KeyError", Cause.TRIAL, "KeyError: 'lr'", "Traceback (most recent call last):\n  ..."),
    Outcome(Kind.OUT_OF_MEMORY, Cause.TRIAL, "MemoryError. It had 2 CPU; try 4.", "Traceback ..."),
    Outcome(Kind.SILENT, Cause.TRIAL, "it ended and had not reported 'score'"),
    Outcome("error", Cause.TRIAL, "an error that only the trial could name", ""),
    Outcome("UnicodeError", Cause.TRIAL, '\u00fc \u4e2d \\ "quoted"', "line\n\ttab \u2028 end"),
]
PRUNED = Outcome.of(Kind.PRUNED, "makes no sense")
ALL = [*[Outcome.of(kind) for kind in Kind], PRUNED, *FAILED]


@pytest.mark.parametrize("kind", Kind)
def test_outcome_cause_of_kind(kind: Kind) -> None:
    outcome = Outcome.of(kind)
    assert outcome.cause == CAUSES.get(kind, Cause.SWEEP)
    assert outcome.is_complete == (outcome.cause == Cause.FINISHED)
    assert outcome.is_failure == (outcome.cause == Cause.TRIAL)
    assert outcome.is_crash == (outcome.is_failure or kind == Kind.NAN)
    final = (Kind.NEVER_BEGAN, Kind.ALL_DONE, Kind.EXHAUSTED, Kind.OTHER_GOOD_ENOUGH)
    assert outcome.is_resumable == (kind not in (*final, Kind.LOCK_LOST))
    assert (outcome.state == TrialState.COMPLETE) == outcome.is_complete
    assert (outcome.state == TrialState.FAIL) == outcome.is_failure


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A record in which trial `t` has started."""
    record = Record.create(tmp_path, "sweep", Goal("score", "max"), Event())
    record.start("t", create_trial(state=TrialState.RUNNING), {})
    return record


def reopened(record: Record) -> Record:
    return Record.open(record.file.parent, Event())


@pytest.mark.parametrize("outcome", ALL, ids=lambda outcome: outcome.kind)
def test_outcome_decided_survives_reopening(outcome: Outcome, record: Record) -> None:
    """Decided, but not ended: the driver dies here."""
    record.decide("t", outcome)
    assert record.decided("t") == outcome
    again = reopened(record)
    assert again.decided("t") == outcome
    assert outcome_of(again.trial("t")) == outcome
    assert again.trial("t").state == TrialState.RUNNING


@pytest.mark.parametrize("outcome", ALL, ids=lambda outcome: outcome.kind)
def test_outcome_ended_survives_reopening(outcome: Outcome, record: Record) -> None:
    record.end("t", outcome, 0.5 if outcome.is_complete else None)
    for trial in (record.trial("t"), reopened(record).trial("t")):
        assert outcome_of(trial) == decision_of(trial) == outcome
        assert trial.state == outcome.state
        assert trial.user_attrs["reason"] == outcome.kind
        assert trial.user_attrs.get("error") == (outcome.message if outcome.is_failure else None)


@pytest.mark.parametrize("kind", Kind)
def test_outcome_from_reported_stop(kind: Kind, record: Record) -> None:
    """The decision that was entered with a result is known before the outcome is entered."""
    record.report("t", 0.5, {"epoch": 1, "score": 0.5}, None)
    assert record.decided("t") is None
    record.report("t", 0.4, {"epoch": 2, "score": 0.4}, kind)
    again = reopened(record)
    assert again.decided("t") == Outcome.of(kind)
    assert outcome_of(again.trial("t")) is None


@pytest.mark.parametrize("cause", [Cause.CLUSTER, Cause.STORAGE])
def test_outcome_recorded_failure_is_trials(cause: Cause, record: Record) -> None:
    """A failure that ended a trial for good is the trial's own after a resume."""
    record.end("t", Outcome("OSError", cause, "message", "traceback"), None)
    trial = reopened(record).trial("t")
    assert outcome_of(trial) == Outcome("OSError", Cause.TRIAL, "message", "traceback")


def test_outcome_of_running_trial(record: Record) -> None:
    trial = reopened(record).trial("t")
    assert outcome_of(trial) is decision_of(trial) is None
