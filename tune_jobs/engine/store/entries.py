"""How a trial is kept in the record, and what can be read of it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.core.outcome import Kind, Outcome, outcome_of

__all__ = [
    "ENDED_IN_SPACE",
    "OTHER_REPORT",
    "PROMOTED",
    "RESULT",
    "RETURNED",
    "STOP",
    "SWEEP",
    "decision_of",
    "duration_of",
    "has_ended_in_space",
    "id_of",
    "own_of",
    "promoted_from",
    "reports_of",
    "results_of",
    "returned_by",
    "to_entry",
]

# System attributes are Optuna's place for what is not the user's: a dashboard does not list them.
RESULT = "tune_jobs:result:"
OTHER_REPORT = "tune_jobs:report:"
RETURNED = "tune_jobs:returned"
STOP = "tune_jobs:stop"
PROMOTED = "tune_jobs:promoted"
ENDED_IN_SPACE = "tune_jobs:ended_in_space"
SWEEP = "tune_jobs:sweep"  # of the study, and of each trial that its drivers start

# What Tune adds to every result for itself; `config/...` is recorded once, with the trial.
TUNES_OWN = {"trial_id", "done", "should_checkpoint", "experiment_tag", "timesteps_total"}


def id_of(trial: FrozenTrial) -> str:
    """Tune's id of a trial that has started."""
    trial_id: str = trial.user_attrs["trial_id"]
    return trial_id


def own_of(trials: Iterable[FrozenTrial], sweep: str | None) -> list[FrozenTrial]:
    """The trials that a driver of the sweep has started, not those that the user added.

    A copy of another sweep's trial names that one; a copy of an own trial has its `trial_id`.

    Args:
        trials: Those of the study, in order.
        sweep: The record's id; None: it is an old one, whose trials name none.
    """
    own: dict[str, FrozenTrial] = {}
    for trial in trials:
        has_started = "trial_id" in trial.user_attrs and trial.state != TrialState.WAITING
        if has_started and trial.system_attrs.get(SWEEP) == sweep:
            own.setdefault(id_of(trial), trial)
    return list(own.values())


def has_ended_in_space(trial: FrozenTrial) -> bool:
    """Whether a trial ended while its config was drawn: its search space raised."""
    return ENDED_IN_SPACE in trial.system_attrs


def decision_of(trial: FrozenTrial) -> Outcome | None:
    """Why a trial ended or must end; None: it continues."""
    outcome = outcome_of(trial)
    if outcome is None:
        entries = [*results_of(trial).values(), returned_by(trial) or {}]
        stop = next((entry[STOP] for entry in entries if STOP in entry), None)
        outcome = None if stop is None else Outcome.of(Kind(stop))
    return outcome


def promoted_from(trial: FrozenTrial) -> int | None:
    """The last rung that it was promoted from; None: it was not promoted."""
    rung: int | None = trial.system_attrs.get(PROMOTED)
    return rung


def results_of(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """Its results, epoch -> result, in order."""
    return _entries(trial, RESULT)


def returned_by(trial: FrozenTrial) -> dict[str, Any] | None:
    """What its function returned, as a result; None: nothing, or it has not returned."""
    entry: dict[str, Any] | None = trial.system_attrs.get(RETURNED)
    return entry


def reports_of(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """All that it reported, with the metric and without, and what it returned: number of the report
    -> result, in order."""
    numbered = [*_entries(trial, OTHER_REPORT).items(), *results_of(trial).items()]
    returned = returned_by(trial)
    if returned is not None:
        numbered.append((len(numbered) + 1, returned))
    reports = {int(r.get("training_iteration", number)): r for number, r in numbered}
    return dict(sorted(reports.items()))


def duration_of(trial: FrozenTrial) -> float | None:
    """Seconds that it was trained, without pauses; None: it has reported nothing."""
    seconds = [report.get("time_total_s", 0.0) for report in reports_of(trial).values()]
    return round(max(seconds), 3) if seconds else None


def _entries(trial: FrozenTrial, prefix: str) -> dict[int, dict[str, Any]]:
    names = sorted(name for name in trial.system_attrs if name.startswith(prefix))
    return {int(name.removeprefix(prefix)): trial.system_attrs[name] for name in names}


def to_entry(result: Mapping[str, Any], stop: Kind | None) -> dict[str, Any]:
    """A result as it is recorded, with the decision on it."""
    entry = _to_json(result)
    if stop is not None:
        entry[STOP] = str(stop)
    return entry


def _to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, value in result.items():
        if name in TUNES_OWN or name.startswith("config/"):
            continue
        plain = value.item() if getattr(value, "size", 0) == 1 else value
        if isinstance(plain, float) and not math.isfinite(plain):
            plain = str(plain)  # JSON has no NaN, and the browser of a dashboard insists on that
        if plain is None or isinstance(plain, (bool, int, float, str)):
            entry[name] = plain
    return entry
