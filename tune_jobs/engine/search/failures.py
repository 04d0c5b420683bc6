"""Classifies the error of a failed Tune trial: `outcome_of_failed`.

Ray's `FailureConfig(max_failures)` counts all failures alike.
"""

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError

from tune_jobs.engine.core.errors import TrialFailedError, is_of_storage
from tune_jobs.engine.core.memory import is_out_of_memory
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.raised import one_line

__all__ = ["outcome_of_failed"]


def outcome_of_failed(trial: Any) -> Outcome:
    """What a Tune trial failed of.

    It reads the file that the driver has just written: `Trial.get_pickled_error` reads the storage,
    to which Tune copies it later.
    """
    error, text = _load_error(trial)
    if error is None:
        return Outcome("error", Cause.TRIAL, "an error that only the trial could name", text)
    if isinstance(error, TrialFailedError):
        return _outcome_of_users_code(error, trial)
    message = one_line(error)
    if is_out_of_memory(error):
        message = _with_advice(message, trial)
        return Outcome(Kind.OUT_OF_MEMORY, Cause.TRIAL, message, text)
    return Outcome(type(error).__name__, _cause(error), message, text)


def _outcome_of_users_code(error: TrialFailedError, trial: Any) -> Outcome:
    is_oom = error.kind == Kind.OUT_OF_MEMORY
    message = _with_advice(error.message, trial) if is_oom else error.message
    return Outcome(error.kind, Cause.TRIAL, message, error.traceback)


def _with_advice(message: str, trial: Any) -> str:
    return f"{message.rstrip('.')}. {_more_memory(trial)}"


def _load_error(trial: Any) -> tuple[BaseException | None, str]:
    if trial.pickled_error_file is None:
        return None, ""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # the exception's class may be one that only the trial could import
        return None, Path(trial.error_file).read_text()
    return getattr(error, "cause", None) or error, str(error)


def _cause(error: BaseException) -> Cause:
    if isinstance(error, (RayActorError, WorkerCrashedError, NodeDiedError)):
        return Cause.CLUSTER
    return Cause.STORAGE if is_of_storage(error) else Cause.TRIAL


def _more_memory(trial: Any) -> str:
    """The larger share to try. A share of a GPU is a share of its memory; more CPUs for a trial
    give it more memory in that fewer trials run in parallel."""
    held = trial.placement_group_factory.required_resources
    gpus, cpus = held.get("GPU", 0), held.get("CPU", 0)
    if gpus and gpus < 1:
        return f"It had {gpus:g} of a GPU; try --gpus-per-trial {min(1.0, 2 * gpus):g}."
    if gpus:
        return "It had a whole GPU; search smaller models or batches."
    return f"It had {cpus:g} CPU; try --cpus-per-trial {2 * cpus:g}, so that fewer run at once."
