"""Why a sweep has no result, or a trial failed, in words."""

from collections import Counter
from typing import Any

from optuna.trial import FrozenTrial

from tune_jobs.engine.core.errors import MetricNotLoggedError
from tune_jobs.engine.core.goal import is_feasible
from tune_jobs.engine.core.layout import ERROR_FILE, trial_folder
from tune_jobs.engine.core.outcome import Kind, Outcome, outcome_of

__all__ = ["describe_end", "describe_failure", "explain_failure"]


def describe_failure(path: str, trial: FrozenTrial) -> str:
    """What a failed trial failed of, and where its log is.

    Args:
        path: The sweep's folder or URL.
        trial: The recorded trial.
    """
    outcome = outcome_of(trial)
    message = "" if outcome is None else outcome.message.rstrip(".")
    return f"{message}, see {log_of(path, trial)}"


def log_of(path: str, trial: FrozenTrial) -> str:
    """The path of a failed trial's log."""
    return f"{path}/{trial_folder(trial.number)}/{ERROR_FILE}"


def explain_failure(
    path: str, rows: list[dict[str, Any]], trials: list[FrozenTrial], ended: Outcome
) -> str:
    """Why there is no winner.

    Args:
        path: The sweep's folder or URL.
        rows: The rows of trials.csv.
        trials: The recorded trials.
        ended: Why the sweep ended.
    """
    failed = [(trial, outcome) for trial in trials if (outcome := _failure_of(trial))]
    early = f"stopped early: {ended.message}" if ended.kind == Kind.FAILURES else ""
    if not failed:
        fates = Counter(map(_fate_of, trials, rows))
        counts = ", ".join(f"{count} {fate}" for fate, count in fates.items())
        return f"no trial of {path} can win: {counts or 'none was started'}."
    retried = {trial.system_attrs.get("retry_of") for trial in trials}
    last_attempts = [pair for pair in failed if pair[0].number not in retried]
    first, outcome = (last_attempts or failed[-1:])[0]
    if outcome.kind == MetricNotLoggedError.__name__:
        text = outcome.message.partition(": ")[2]
        return f"{early}: {text}" if early else text
    head = early or f"no trial succeeded, {len(failed)} failed"
    log = log_of(path, first)
    return f"{head}; the first one, {log}:\n{outcome.traceback or outcome.message}".rstrip()


def _failure_of(trial: FrozenTrial) -> Outcome | None:
    outcome = outcome_of(trial)
    return outcome if outcome is not None and outcome.is_failure else None


def _fate_of(trial: FrozenTrial, row: dict[str, Any]) -> str:
    if not trial.state.is_finished():
        return f"unfinished ({row['reason']})"
    if not is_feasible(trial):
        return "violated a constraint"
    return describe_end(row["reason"])


def describe_end(reason: str) -> str:
    """What a number of trials did that ended for this reason, in words."""
    words: dict[str, str] = {
        Kind.ASHA: "stopped by ASHA",
        Kind.NAN: "gave NaN or infinity",
        Kind.PRUNED: "pruned by their own code",
        Kind.BY_HAND: "ended by hand",
        Kind.SCHEDULER: "stopped by the scheduler",
        Kind.OTHER_GOOD_ENOUGH: "cut short as another reached the score to stop at",
    }
    return words.get(reason, f"ended by {reason}")
