"""Runs the user's code in a trial, so that whatever it raises is the user's own failure, once.

Without this, Ray takes StopIteration and `sys.exit(0)` for the end of a trial, lets others of these
kill its process, runs a trial again whose process ended so (ray#13957), and cannot name an error
that cannot be pickled, or whose class the driver cannot import.
"""

import traceback
from collections.abc import Callable
from typing import TypeVar

from ray import tune

from tune_jobs.engine.core.errors import (
    CheckpointError,
    MetricNotLoggedError,
    TrialFailedError,
    is_of_storage,
)
from tune_jobs.engine.core.raised import HIDDEN, outcome_of_raised
from tune_jobs.engine.core.result import PRUNED

__all__ = ["run_users_code"]

Value = TypeVar("Value")


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
    except (MetricNotLoggedError, CheckpointError):  # the driver knows what to do about these
        raise
    except BaseException as error:
        if _is_rays_stop(error):
            raise
        if isinstance(error, OSError) and is_of_storage(error):  # and about these, by their numbers
            raise OSError(error.errno, error.strerror or str(error)) from error
        if _is_pruned(error):
            tune.report({PRUNED: str(error)})
            return None
        raised = outcome_of_raised(error)
        raise TrialFailedError(raised.kind, raised.message, raised.traceback) from None


def _is_rays_stop(error: BaseException) -> bool:
    """Whether Ray raised it in `tune.report`, or the engine has passed that on."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return isinstance(error, SystemExit) and file.startswith(HIDDEN)


def _is_pruned(error: BaseException) -> bool:
    """By name: a trial need not import Optuna."""
    return any(base.__name__ == "TrialPruned" for base in type(error).__mro__)
