"""The goal: which direction is better, which epoch is best, and which trial."""

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import OUTCOME_ATTR, Cause, Kind, Outcome
from tune_jobs.engine.core.result import epoch_of

RAISED = Outcome("KeyError", Cause.TRIAL, "KeyError: 'lr'", "Traceback ...")


def make_trial(number: int, outcome: Outcome | None, *curve: float) -> FrozenTrial:
    """A recorded trial; without an outcome it still runs. Its value is its best score by size."""
    value = max(curve, key=abs, default=None)
    trial = create_trial(
        state=TrialState.RUNNING if outcome is None else outcome.state,
        value=None if outcome is None or not curve or outcome.is_failure else value,
        intermediate_values=dict(enumerate(curve, 1)),
        system_attrs={} if outcome is None else {OUTCOME_ATTR: outcome.to_entry()},
    )
    trial.number = number
    return trial


@pytest.mark.parametrize(
    ("mode", "curve", "epoch"),
    [
        ("max", {1: 0.1, 2: 0.9, 3: 0.5}, 2),
        ("min", {1: 0.1, 2: 0.9, 3: 0.5}, 1),
        ("max", {1: 0.9, 2: 0.9, 3: 0.5}, 2),
        ("min", {1: 0.1, 2: 0.5, 3: 0.1}, 3),
        ("max", {}, None),
    ],
)
def test_goal_best_epoch_latest_of_equals(
    mode: str, curve: dict[int, float], epoch: int | None
) -> None:
    assert Goal("score", mode).best_epoch(curve) == epoch


@pytest.mark.parametrize(("mode", "direction"), [("max", "maximize"), ("min", "minimize")])
def test_goal_direction_is_optunas(mode: str, direction: str) -> None:
    assert Goal("score", mode).direction == direction


def test_goal_gain_larger_is_better() -> None:
    assert Goal("score", "max").gain(2.0) > Goal("score", "max").gain(1.0)
    assert Goal("score", "min").gain(1.0) > Goal("score", "min").gain(2.0)


@pytest.mark.parametrize("mode", ["maximize", "", "MAX"])
def test_goal_unknown_mode_refused(mode: str) -> None:
    with pytest.raises(SettingsError, match=f"mode must be 'max' or 'min', got {mode!r}"):
        Goal("score", mode)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_goal_ranks_trials(mode: str) -> None:
    """Complete trials come first, failed ones last, whatever their scores."""
    sign = 1 if mode == "max" else -1
    complete, pruned = Outcome.of(Kind.LAST_EPOCH), Outcome.of(Kind.ASHA)
    ranked = [
        make_trial(9, complete, sign * 0.2, sign * 0.4, sign * 0.3),  # its best epoch counts
        make_trial(1, complete, sign * 0.3),
        make_trial(7, complete, sign * 0.3),  # of equals, the trial that started first
        make_trial(6, pruned, sign * 0.8),
        make_trial(0, None, sign * 0.7),
        make_trial(8, Outcome.of(Kind.NAN), sign * 0.6),
        make_trial(2, RAISED, sign * 0.9),
    ]
    goal = Goal("score", mode)
    assert sorted(ranked, key=goal.rank, reverse=True) == ranked
    for first in range(len(ranked) - 1):
        assert goal.best(reversed(ranked[first:])) is ranked[first]


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [make_trial(0, RAISED, 0.9)],
        [make_trial(0, None), make_trial(1, Outcome.of(Kind.NAN)), make_trial(2, RAISED, 0.9)],
    ],
)
def test_goal_best_of_none(trials: list[FrozenTrial]) -> None:
    """A failed trial is never the best, nor is one without a score."""
    assert Goal("score", "max").best(trials) is None


def test_goal_ranks_trial_without_scores() -> None:
    """A function may report NaN alone, with a checkpoint, which is then ranked."""
    scored = create_trial(state=TrialState.PRUNED, value=1.0, intermediate_values={1: 1.0})
    diverged = create_trial(state=TrialState.PRUNED)
    assert Goal("loss", "min").rank(diverged) < Goal("loss", "min").rank(scored)


@pytest.mark.parametrize(
    ("result", "epoch"),
    [
        ({"epoch": 6, "training_iteration": 2}, 6),
        ({"training_iteration": 2}, 2),
        ({}, 0),
    ],
)
def test_epoch_of_result(result: dict[str, int], epoch: int) -> None:
    assert epoch_of(result) == epoch
