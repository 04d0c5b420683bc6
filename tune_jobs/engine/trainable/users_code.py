"""Runs the user's code in a trial, so that whatever it raises is the user's own failure, once.

Without this, Ray takes StopIteration and `sys.exit(0)` for the end of a trial, lets others of these
kill its process, runs a trial again whose process ended so (ray#13957), and cannot name an error
that cannot be pickled, or whose class the driver cannot import.
"""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import TracebackException
from typing import TypeVar

import ray
from ray import tune
from ray.exceptions import RayError

from tune_jobs.engine.core.errors import CheckpointError, MetricNotLoggedError, TrialFailedError
from tune_jobs.engine.core.memory import is_out_of_memory
from tune_jobs.engine.core.outcome import Kind
from tune_jobs.engine.core.result import PRUNED

__all__ = ["run_users_code"]

Value = TypeVar("Value")

# The driver knows what to do about these. It also tells by the number of an OSError whether the
# storage failed.
PASSED_ON = (CheckpointError, MetricNotLoggedError, TrialFailedError, RayError, OSError)
ENGINE = str(Path(__file__).parents[1])
RAY = str(Path(ray.__file__).parent)


def run_users_code(code: Callable[[], Value]) -> Value | None:
    """Call a function.

    Returns:
        What it returns; None if it asked for the trial to be pruned.

    Raises:
        TrialFailedError: It raised, whatever it was.
        SystemExit: Ray has stopped the trial.
    """
    try:
        return code()
    except PASSED_ON:
        raise
    except BaseException as error:
        if _is_rays_stop(error):
            raise
        if _is_pruned(error):
            tune.report({PRUNED: str(error)})
            return None
        raise _describe(error) from None


def _is_rays_stop(error: BaseException) -> bool:
    """Whether Ray raised it in `tune.report`, or the engine has passed that on."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return isinstance(error, SystemExit) and file.startswith((ENGINE, RAY))


def _is_pruned(error: BaseException) -> bool:
    """By name: a trial need not import Optuna."""
    return any(base.__name__ == "TrialPruned" for base in type(error).__mro__)


def _describe(error: BaseException) -> TrialFailedError:
    kind = Kind.OUT_OF_MEMORY if is_out_of_memory(error) else type(error).__name__
    shown = TracebackException.from_exception(error)
    for part in _chain(shown):
        own = [frame for frame in part.stack if not frame.filename.startswith((ENGINE, RAY))]
        part.stack = traceback.StackSummary.from_list(own)
    return TrialFailedError(kind, _message_of(error), "".join(shown.format()).rstrip())


def _chain(shown: TracebackException) -> Iterator[TracebackException]:
    """An error, and those that it hides: its cause, and what was handled when it was raised."""
    yield shown
    for hidden in filter(None, [shown.__cause__, shown.__context__, *(shown.exceptions or ())]):
        yield from _chain(hidden)


def _message_of(error: BaseException) -> str:
    """In one line, with the error that it hides."""
    message = _one_line(error)
    hidden = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return message if hidden is None else f"{message} (after {_one_line(hidden)})"


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return f"SystemExit: the code called sys.exit({'' if error.code is None else error.code})"
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be made"
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
