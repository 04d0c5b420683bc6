"""Whose fault a failure is."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.tune.experiment import Trial

from tune_jobs.engine.core.outcome import Blame, CheckpointError, Failure, failure_of
from tune_jobs.engine.execution.queue import SweepTrial


class TorchOutOfMemoryError(RuntimeError):
    """Stands for torch.OutOfMemoryError, which is one as well."""


TorchOutOfMemoryError.__name__ = TorchOutOfMemoryError.__qualname__ = "OutOfMemoryError"


def die(folder: Path, error: BaseException, gpus: float = 0.25) -> Any:
    """A trial that has died of the error, as Ray leaves it."""
    file = folder / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    return SimpleNamespace(
        pickled_error_file=str(file),
        error_file=str(file),
        placement_group_factory=SimpleNamespace(required_resources={"CPU": 2, "GPU": gpus}),
    )


def wrapped(cause: Exception) -> RayTaskError:
    return RayTaskError("train", "Traceback: here", cause)


def judge(folder: Path, error: BaseException, gpus: float = 0.25) -> Failure:
    return failure_of(die(folder, error, gpus))


def test_own_exception_is_named_with_its_first_line_and_the_traceback(tmp_path: Path) -> None:
    failure = judge(tmp_path, wrapped(KeyError("lr")))
    assert (failure.reason, failure.blame) == ("KeyError", Blame.TRIAL)
    assert failure.message == "KeyError: 'lr'"
    assert "Traceback: here" in failure.text


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
def test_out_of_memory_is_known_in_all_its_forms(error: Exception, tmp_path: Path) -> None:
    failure = judge(tmp_path, wrapped(error))
    assert (failure.reason, failure.blame) == ("oom", Blame.TRIAL)


@pytest.mark.parametrize(
    ("gpus", "advice"),
    [
        (0.25, "It had 0.25 of a GPU; try --gpus-per-trial 0.5."),
        (0.6, "It had 0.6 of a GPU; try --gpus-per-trial 1."),
        (1.0, "It had a whole GPU; search smaller models or batches."),
        (0.0, "It had 2 CPU; try --cpus-per-trial 4, so that fewer run at once."),
    ],
)
def test_out_of_memory_names_the_larger_share_to_try(
    gpus: float, advice: str, tmp_path: Path
) -> None:
    assert judge(tmp_path, MemoryError(), gpus).message == f"MemoryError. {advice}"


def test_death_of_the_process_is_the_clusters_fault(tmp_path: Path) -> None:
    failure = judge(tmp_path, ActorDiedError())
    assert (failure.reason, failure.blame) == ("ActorDiedError", Blame.CLUSTER)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), CheckpointError("it ends too early")],
)
def test_full_disk_and_damaged_checkpoint_are_the_storages_fault(
    error: Exception, tmp_path: Path
) -> None:
    assert judge(tmp_path, wrapped(error)).blame == Blame.STORAGE


def test_file_that_is_missing_is_the_trials_fault(tmp_path: Path) -> None:
    error = wrapped(FileNotFoundError(errno.ENOENT, "No such file", "data.csv"))
    assert judge(tmp_path, error).blame == Blame.TRIAL


def test_error_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    trial = SimpleNamespace(pickled_error_file=None)
    assert failure_of(trial).reason == "error"
    (tmp_path / "error.pkl").write_text("no pickle")
    file = str(tmp_path / "error.pkl")
    failure = failure_of(SimpleNamespace(pickled_error_file=file, error_file=file))
    assert (failure.reason, failure.text) == ("error", "no pickle")


@pytest.mark.parametrize(
    ("error", "recovers"), [(ActorDiedError(), True), (wrapped(KeyError("lr")), False)]
)
def test_trial_recovers_from_the_death_of_its_process_alone_and_a_stock_one_from_all(
    error: BaseException, recovers: bool, tmp_path: Path
) -> None:
    def make(kind: type[Trial]) -> Any:
        trial = kind.__new__(kind)
        trial.__dict__.update(vars(die(tmp_path, error)))
        trial.run_metadata = SimpleNamespace(num_failures=1)
        trial.max_failures = 3
        return trial

    class Ours(SweepTrial):
        pickled_error_file = str(tmp_path / "error.pkl")  # a property of Ray's
        error_file = pickled_error_file

    class Stock(Trial):
        pickled_error_file = Ours.pickled_error_file
        error_file = pickled_error_file

    assert make(Ours).should_recover() == recovers
    assert make(Stock).should_recover()
