"""A define-by-run function on resume: what it asks for is compared, not its source."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from driven import Driven
from optuna.trial import create_trial

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.store.replay import check_asked


def make_space(
    widths: list[Any] = [8, 16],  # noqa: B006
    high: float = 1.0,
    more: Callable[[optuna.Trial], None] = lambda trial: None,
    asks_x: bool = True,
) -> Any:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_categorical("width", widths)
        if asks_x:
            trial.suggest_float("x", 0, high)
        more(trial)
        return {}

    return space


def recorded(folder: Path, space: Any, num: int = 6) -> Record:
    driven = Driven(folder, space=space)
    for number in range(num):
        driven.run(f"t{number}", 0.5)
    return driven.record


def raise_error(trial: optuna.Trial) -> None:
    raise KeyError("a file that is not there today")


def ask_depth(trial: optuna.Trial) -> None:
    trial.suggest_int("depth", 1, 2)


def ask_layers(trial: optuna.Trial) -> None:
    for layer in range(trial.suggest_int("layers", 1, 3)):
        trial.suggest_int(f"width_{layer}", 1, 8 * (layer + 1))


@pytest.mark.parametrize(
    "now",
    [
        make_space(),
        make_space(more=raise_error),
        make_space(more=lambda trial: print("one more line")),
        make_space(more=lambda trial: trial.set_user_attr("note", 1)),
    ],
)
def test_same_questions_accepted(now: Any, tmp_path: Path) -> None:
    check_asked(now, recorded(tmp_path, make_space()).started(), 0)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (
            make_space([8, 16, 32]),
            "its space asks for width Categorical(choices=[8, 16, 32]), and asked for "
            "Categorical(choices=[8, 16]) in trial 0. Resume it unchanged",
        ),
        (make_space([8]), "asks for width Categorical(choices=[8]), and asked for Categorical("),
        (make_space([(8,), (16,)]), "asks for width Categorical(choices=['[8]', '[16]']), and ask"),
        (make_space(high=2.0), "asks for x Float(step=None, low=0.0, high=2.0, log=False), and as"),
        (make_space(more=ask_depth), "asks for depth Int(log=False, step=1, low=1, high=2), and d"),
        (make_space(asks_x=False), "does not ask for x, and asked for Float("),
    ],
)
def test_other_questions_refused(now: Any, difference: str, tmp_path: Path) -> None:
    trials = recorded(tmp_path, make_space()).started()
    with pytest.raises(SettingsError) as caught:
        check_asked(now, trials, 0)
    assert difference in str(caught.value)


def test_mended_function_accepted(tmp_path: Path) -> None:
    """Trials in which it raised are no obstacle."""

    def make(low: int) -> Any:
        def space(trial: optuna.Trial) -> None:
            layers = trial.suggest_int("layers", 1, 3)
            trial.suggest_int("heads", min(low, layers), layers)

        def broken(trial: optuna.Trial) -> None:
            layers = trial.suggest_int("layers", 1, 3)
            trial.suggest_int("heads", low, layers)

        return broken if low == 2 else space

    driven = Driven(tmp_path, space=make(2))
    for number in range(4):
        if not isinstance(driven.search.suggest(f"t{number}"), dict):
            break

    def mended(trial: optuna.Trial) -> None:
        layers = trial.suggest_int("layers", 1, 3)
        trial.suggest_int("heads", min(2, layers), layers)

    check_asked(mended, driven.record.started(), 0)
    with pytest.raises(SettingsError, match="asks for heads Int"):
        check_asked(make(1), driven.record.started(), 0)


def test_branches_are_followed(tmp_path: Path) -> None:
    trials = recorded(tmp_path, make_space(more=ask_layers)).started()
    check_asked(make_space(more=ask_layers), trials, 0)


def test_random_questions_accepted(tmp_path: Path) -> None:
    """A finite space may have been asked more than once for a trial, each time with other seeds."""

    def space(trial: optuna.Trial) -> None:
        trial.suggest_categorical(random.choice("abc"), [1, 2])

    driven = Driven(tmp_path, space=space)
    for number in range(6):
        driven.search.suggest(f"t{number}")
    check_asked(space, driven.record.started(), 0)


def test_many_trials_checked_quickly() -> None:
    num_calls = 0

    def space(trial: optuna.Trial) -> None:
        nonlocal num_calls
        num_calls += 1
        trial.suggest_float("x", 0, 1)

    distributions = {"x": optuna.distributions.FloatDistribution(0, 1)}
    trial = create_trial(value=0.0, params={"x": 0.5}, distributions=distributions)
    trial.number = 7
    check_asked(space, [trial] * 1000, 0)
    assert 25 < num_calls <= 50
