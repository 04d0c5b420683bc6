"""One score and one state a trial: in trials.csv, in the study, in the printed line."""

import math
from pathlib import Path
from typing import Any

import pytest
from driven import Driven
from optuna.trial import FrozenTrial

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.result import EPOCH, RETURNED
from tune_jobs.engine.execution.progress import format_trial
from tune_jobs.engine.report.files import make_row

INTERRUPTED = Outcome.of(Kind.INTERRUPTED)
RAISED = Outcome("KeyError", Cause.TRIAL, "KeyError: 'lr'", "Traceback ...")
SILENT = Outcome(Kind.SILENT, Cause.TRIAL, "it ended and had not reported 'score'", "")

# Each: outcome, reports, what was returned -> state, score, best epoch
CASES: list[tuple[Outcome, list[float], float | None, str, float | None, int | None]] = [
    (Outcome.of(Kind.LAST_EPOCH), [0.5, 0.9, 0.2], None, "COMPLETE", 0.9, 2),
    (Outcome.of(Kind.BY_ITSELF), [0.5, 0.9, 0.2], None, "COMPLETE", 0.9, 2),
    (Outcome.of(Kind.BY_ITSELF), [0.5, 0.9, 0.2], 0.3, "COMPLETE", 0.3, None),
    (Outcome.of(Kind.BY_ITSELF), [0.5, 0.9, 0.2], 0.9, "COMPLETE", 0.9, None),
    (Outcome.of(Kind.BY_ITSELF), [], 0.3, "COMPLETE", 0.3, None),
    (Outcome.of(Kind.BY_ITSELF), [], None, "FAIL", None, None),
    (Outcome.of(Kind.GOOD_ENOUGH), [0.5, 0.9], None, "COMPLETE", 0.9, 2),
    (Outcome.of(Kind.ASHA), [0.5, 0.9, 0.2], None, "PRUNED", 0.9, 2),
    (Outcome.of(Kind.SCHEDULER), [0.5, 0.9, 0.2], None, "PRUNED", 0.9, 2),
    (Outcome.of(Kind.PRUNED, "no sense"), [0.5, 0.9, 0.2], None, "PRUNED", 0.9, 2),
    (Outcome.of(Kind.PRUNED, "no sense"), [], None, "PRUNED", None, None),
    (Outcome.of(Kind.NAN), [0.5, 0.9, math.nan], None, "PRUNED", 0.9, 2),
    (Outcome.of(Kind.NAN), [math.nan], None, "PRUNED", None, None),
    (Outcome.of(Kind.NAN), [0.5, 0.9], math.nan, "PRUNED", None, None),
    (Outcome.of(Kind.OTHER_GOOD_ENOUGH), [0.5, 0.9, 0.2], None, "PRUNED", 0.9, 2),
    (RAISED, [0.5, 0.9, 0.2], None, "FAIL", None, None),
    (RAISED, [], None, "FAIL", None, None),
    (Outcome(Kind.OUT_OF_MEMORY, Cause.TRIAL, "no memory", ""), [0.5], None, "FAIL", None, None),
    (Outcome("ActorDiedError", Cause.CLUSTER, "died", ""), [0.5], None, "FAIL", None, None),
    (SILENT, [], None, "FAIL", None, None),
]
SIGNS = {"max": 1, "min": -1}


def ended(
    driven: Driven, sign: int, outcome: Outcome, reports: list[float], returned: float | None
) -> FrozenTrial:
    """A trial that reported, perhaps returned, and ended so."""
    driven.search.suggest("t")
    for epoch, score in enumerate(reports, 1):
        result = {"score": sign * score, EPOCH: epoch, "training_iteration": epoch}
        driven.record.report("t", sign * score, result, None)
    if returned is not None:
        result = {"score": sign * returned, RETURNED: True, "training_iteration": 99}
        driven.record.report_returned("t", result, None)
    driven.search.end("t", outcome)
    return driven.record.trial("t")


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].kind}, {case[1]}, {case[2]}")
def test_trial_has_one_score(case: Any, mode: str, tmp_path: Path) -> None:
    outcome, reports, returned, state, score, best_epoch = case
    goal, sign = Goal("score", mode), SIGNS[mode]
    trial = ended(Driven(tmp_path, mode), sign, outcome, reports, returned)
    expected = None if score is None else sign * score
    row = make_row(goal, trial, {}, INTERRUPTED)
    assert (trial.state.name, trial.value) == (state, expected)
    assert (row["state"], row["score"], row["best_epoch"]) == (state, expected, best_epoch)
    assert row["reason"] == trial.user_attrs["reason"]
    line = format_trial(goal, trial, None)
    shown = [] if expected is None else [f" with value {expected:.5g}"]
    assert [part for part in shown if part in line] == shown
    assert (" with value" in line) == bool(shown)
    assert f"Trial 0 {state}" in line


@pytest.mark.parametrize("mode", ["max", "min"])
def test_unfinished_trial_best_so_far(mode: str, tmp_path: Path) -> None:
    """The study has no value for it yet."""
    driven, goal, sign = Driven(tmp_path, mode), Goal("score", mode), SIGNS[mode]
    driven.search.suggest("t")
    for epoch, score in enumerate((0.5, 0.9, 0.2), 1):
        driven.record.report("t", sign * score, {"score": sign * score, EPOCH: epoch}, None)
    trial = driven.record.trial("t")
    row = make_row(goal, trial, {}, INTERRUPTED)
    assert (row["state"], row["reason"], row["score"]) == ("RUNNING", "interrupted", sign * 0.9)
    assert trial.value is None


def test_every_outcome_has_a_case() -> None:
    of_sweeps = {
        Kind.ALL_DONE,
        Kind.EXHAUSTED,
        Kind.TIME_BUDGET,
        Kind.FAILURES,
        Kind.INTERRUPTED,
        Kind.STORAGE,
        Kind.LOCK_LOST,
        Kind.NEVER_BEGAN,
    }
    assert {outcome.kind for outcome, *_ in CASES} >= set(Kind) - of_sweeps - {Kind.BY_HAND}
