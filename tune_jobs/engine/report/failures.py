"""Why a sweep has no result, or a trial failed, in words."""

import re
from collections import Counter
from typing import Any

from optuna.trial import FrozenTrial

from tune_jobs.engine.core.errors import MetricNotLoggedError
from tune_jobs.engine.core.layout import ERROR_FILE, trial_folder
from tune_jobs.engine.core.outcome import Kind, Outcome, outcome_of

__all__ = ["explain_failure", "log_of"]


def log_of(path: str, trial: FrozenTrial) -> str:
    """The path of a failed trial's log; after running out of memory, also what to try.

    Args:
        path: The sweep's folder or URL.
        trial: The recorded trial.
    """
    log = f"{path}/{trial_folder(trial.number)}/{ERROR_FILE}"
    outcome = outcome_of(trial)
    is_oom = outcome is not None and outcome.kind == Kind.OUT_OF_MEMORY
    return f"{log}\n    {trial.user_attrs['error']}" if is_oom else log


def explain_failure(path: str, rows: list[dict[str, Any]], trials: list[FrozenTrial]) -> str:
    """Why no trial has a score.

    Args:
        path: The sweep's folder or URL.
        rows: The rows of trials.csv.
        trials: The recorded trials.
    """
    failed = [(trial, outcome) for trial in trials if (outcome := _failure_of(trial))]
    if not failed:
        reasons = Counter(
            f"unfinished ({row['reason']})"
            if row["state"] == "RUNNING"
            else f"ended by {row['reason']}"
            for row in rows
        )
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        return f"no trial of {path} has a score: {counts or 'none was started'}."
    first, outcome = failed[0]
    if outcome.kind == MetricNotLoggedError.__name__:
        return outcome.message.partition(": ")[2]
    text = _own_traceback(outcome.traceback or outcome.message)
    head = f"no trial succeeded, {len(failed)} failed; the first one, {log_of(path, first)}:"
    return f"{head}\n{text}"


def _failure_of(trial: FrozenTrial) -> Outcome | None:
    outcome = outcome_of(trial)
    return outcome if outcome is not None and outcome.is_failure else None


def _own_traceback(log: str) -> str:
    """The part of a Ray error log below the engine: the user's frames, and Lightning's."""
    _, *frames = re.split(r'^(?=  File ")', log, flags=re.MULTILINE)
    ours = [n for n, frame in enumerate(frames) if "engine/trainable/" in frame.splitlines()[0]]
    is_chained = "\n\nDuring handling of" in log or "\n\nThe above exception was" in log
    if is_chained or not ours or ours[-1] == len(frames) - 1:
        return log.rstrip()
    return "".join(["Traceback (most recent call last):\n", *frames[ours[-1] + 1 :]]).rstrip()
