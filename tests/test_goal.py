"""The goal: which way is better, and which epoch is best."""

import pytest

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.settings import SettingsError


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
def test_best_epoch_is_the_latest_of_equals(
    mode: str, curve: dict[int, float], epoch: int | None
) -> None:
    assert Goal("score", mode).best_epoch(curve) == epoch


@pytest.mark.parametrize(("mode", "direction"), [("max", "maximize"), ("min", "minimize")])
def test_direction_is_optunas_word_for_the_mode(mode: str, direction: str) -> None:
    assert Goal("score", mode).direction == direction


def test_gain_is_larger_for_what_is_better() -> None:
    assert Goal("score", "max").gain(2.0) > Goal("score", "max").gain(1.0)
    assert Goal("score", "min").gain(1.0) > Goal("score", "min").gain(2.0)


@pytest.mark.parametrize("mode", ["maximize", "", "MAX"])
def test_unknown_mode_is_refused_with_its_value(mode: str) -> None:
    with pytest.raises(SettingsError, match=f"mode must be 'max' or 'min', got {mode!r}"):
        Goal("score", mode)
