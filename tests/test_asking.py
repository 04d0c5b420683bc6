"""What a trial is asked to try: define-by-run functions, finite spaces, grids, the queue."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from driven import Driven, result
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search import Searcher

from tune_jobs.engine.core.outcome import Kind, outcome_of
from tune_jobs.engine.core.space import Space
from tune_jobs.engine.store.configs import config_of


class Ran:
    """A sweep whose trials all end with a score.

    Attributes:
        configs: What was trained, in order.
        is_exhausted: Whether the search said that nothing is left.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        num: int,
        queue: list[dict[str, Any]] | None = None,
        sampler: BaseSampler | None = None,
    ) -> None:
        self.driven = Driven(folder, space=space, sampler=sampler)
        self.configs: list[dict[str, Any]] = []
        self.is_exhausted = False
        for params in queue or []:
            self.driven.record.enqueue(params)
        for _ in range(num):
            self.run()

    def run(self) -> None:
        driven, trial_id = self.driven, f"t{len(self.driven.trials)}"
        config = driven.search.suggest(trial_id)
        self.is_exhausted = config == Searcher.FINISHED
        if self.is_exhausted or driven.record.trial(trial_id).state.is_finished():
            return
        assert repr(config) == repr(config_of(driven.record.trial(trial_id), driven.space))
        self.configs.append(config)
        driven.report(trial_id, 0.5)
        driven.search.on_trial_complete(trial_id, result(1, 0.5, done=True))

    @property
    def failures(self) -> list[str]:
        outcomes = [outcome_of(trial) for trial in self.driven.record.started()]
        return [outcome.message for outcome in outcomes if outcome and outcome.is_failure]


def suggest_x(trial: optuna.Trial) -> None:
    trial.suggest_float("x", 0, 1)


def test_function_config_as_returned(tmp_path: Path) -> None:
    """Names with a slash and nested dicts stay as they are; what is returned comes last."""

    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("opt/lr", 0, 1)
        trial.suggest_int("depth", 1, 3)
        return {"depth": "deep", "model": {"a/b": {1: (2,)}, "empty": {}}}

    (config,) = Ran(tmp_path, space, 1).configs
    assert config.keys() == {"opt/lr", "depth", "model"}
    assert config["depth"] == "deep"
    assert config["model"] == {"a/b": {1: (2,)}, "empty": {}}


def test_function_number_of_record(tmp_path: Path) -> None:
    """A view that has trials of another sweep counts otherwise."""

    def space(trial: optuna.Trial) -> dict[str, Any]:
        suggest_x(trial)
        return {"number": trial.number}

    ran = Ran(tmp_path, space, 0)
    ran.driven.view.add_other(_other())
    for _ in range(3):
        ran.run()
    assert [config["number"] for config in ran.configs] == [0, 1, 2]


def _other() -> FrozenTrial:
    distributions = {"x": optuna.distributions.FloatDistribution(0, 1)}
    return optuna.trial.create_trial(value=1.0, params={"x": 0.5}, distributions=distributions)


def test_function_global_random_state(tmp_path: Path) -> None:
    """What it draws depends on seed and number, and the caller's generators go on as before."""

    def space(trial: optuna.Trial) -> dict[str, Any]:
        suggest_x(trial)
        return {"a": random.random(), "b": float(np.random.rand())}

    def run(name: str) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir()
        return Ran(folder, space, 3).configs

    one = run("one")
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    assert run("other") == one
    assert (random.random(), np.random.rand()) == expected
    assert len({config[name] for config in one for name in "ab"}) == 6


def test_function_user_attributes(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        suggest_x(trial)
        trial.set_user_attr("half", 0.5)
        trial.set_user_attr("array", np.arange(2))
        trial.set_user_attr("nan", float("nan"))

    first, waiting = Ran(tmp_path, space, 2, queue=[{"x": 0.25}]).driven.trials
    for trial in (first, waiting):
        assert trial.user_attrs["half"] == 0.5
        assert trial.user_attrs["array"] == [0, 1]
        assert trial.user_attrs["nan"] in ("NaN", "nan")


def test_function_choices_are_anything(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        suggest_x(trial)
        kernel = trial.suggest_categorical("kernel", [(3, 3), (5, 5)])
        assert kernel in [(3, 3), (5, 5)]

    ran = Ran(tmp_path, space, 4, queue=[{"kernel": [5, 5]}, {"kernel": "[3, 3]"}])
    assert [config["kernel"] for config in ran.configs[:2]] == [(5, 5), (3, 3)]
    assert ran.driven.trials[0].params["kernel"] == "[5, 5]"
    again = Ran(tmp_path, space, 2)  # reopened
    assert not again.failures
    assert len(again.configs) == 2


def test_function_pruned_is_no_failure(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        suggest_x(trial)
        if trial.number == 1:
            raise optuna.TrialPruned("no sense")

    ran = Ran(tmp_path, space, 3)
    assert [trial.state.name for trial in ran.driven.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    outcome = outcome_of(ran.driven.trials[1])
    assert outcome is not None
    assert (outcome.kind, outcome.is_failure) == (Kind.PRUNED, False)
    assert config_of(ran.driven.trials[1], ran.driven.space).keys() == {"x"}


def raise_error(trial: optuna.Trial) -> None:
    suggest_x(trial)
    raise ArithmeticError("my own\nwords")


def raise_low_above_high(trial: optuna.Trial) -> None:
    trial.suggest_int("heads", 2, 1)


def leave(trial: optuna.Trial) -> None:
    suggest_x(trial)
    raise SystemExit("not so")


def return_number(trial: optuna.Trial) -> Any:
    suggest_x(trial)
    return 3


def return_key(trial: optuna.Trial) -> Any:
    return {3: trial.suggest_float("x", 0, 1)}


def return_domain(trial: optuna.Trial) -> Any:
    suggest_x(trial)
    return {"lr": [tune.uniform(0, 1)]}


def return_lock(trial: optuna.Trial) -> Any:
    import threading

    suggest_x(trial)
    return {"lock": threading.Lock()}


def ask_other_choices(trial: optuna.Trial) -> None:
    suggest_x(trial)
    trial.suggest_categorical("rate", [trial.number, 0.1])


def ask_other_kind(trial: optuna.Trial) -> None:
    suggest_x(trial)
    suggest: Any = trial.suggest_float if trial.number else trial.suggest_int
    suggest("rate", 0, 4)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (raise_error, "ArithmeticError: my own"),
        (raise_low_above_high, "ValueError: `low <= high` must hold"),
        (leave, "SystemExit: not so"),
        (return_number, "TypeError: the space returned 3; it must return None or a dict of const"),
        (return_key, "TypeError: the space returned the key 3, which is no text"),
        (return_domain, "TypeError: the space returned tune.uniform(0, 1) as 'lr'; suggest it wit"),
        (return_lock, "TypeError: cannot pickle '_thread.lock' object"),
        (
            ask_other_choices,
            "ValueError: 'rate' was asked for as one of [0, 0.1] before, and now as one of [1, "
            "0.1]; Optuna searches one domain under a name: give the two their own names, such as "
            "'rate_1' and 'rate_2'.",
        ),
        (ask_other_kind, "ValueError: 'rate' was asked for as IntDistribution("),
    ],
)
def test_function_error_fails_trial(
    space: Callable[[optuna.Trial], Any], message: str, tmp_path: Path
) -> None:
    """That trial fails in the user's words, and the search goes on; also after a resume."""
    ran = Ran(tmp_path, space, 2)
    assert ran.failures[-1].startswith(message)
    failed = ran.driven.trials[-1]
    outcome = outcome_of(failed)
    assert outcome is not None
    assert "tune_jobs" not in outcome.traceback
    Ran(tmp_path, space, 1)
    assert len(Driven(tmp_path, space=space).trials) == 3


def test_function_error_traceback(tmp_path: Path) -> None:
    Ran(tmp_path, raise_error, 1)
    outcome = outcome_of(Driven(tmp_path, space=raise_error).trials[0])
    assert outcome is not None
    assert outcome.traceback.startswith("Traceback (most recent call last):\n")
    assert 'raise ArithmeticError("my own\\nwords")' in outcome.traceback


def test_driver_dies_at_error_in_space(tmp_path: Path) -> None:
    """Between the entry of a trial and that of its end: it is not trained when resumed."""
    driven = Driven(tmp_path, space=raise_error)
    driven.search.end = lambda *args: None  # type: ignore[method-assign]
    driven.search.suggest("t")
    assert driven.trials[0].state == TrialState.RUNNING
    resumed = Driven(tmp_path, space=raise_error)
    resumed.search.end_decided()
    outcome = outcome_of(resumed.trials[0])
    assert outcome is not None
    assert outcome.message == "ArithmeticError: my own"
    assert resumed.trials[0].state.is_finished()


class Failing(RandomSampler):
    """A sampler with an error in it."""

    def sample_independent(self, *args: Any) -> Any:
        raise RuntimeError("no draw")


class FailingBefore(RandomSampler):
    def before_trial(self, *args: Any) -> None:
        raise RuntimeError("no draw")


FEW: dict[str, Any] = {"k": tune.choice([1, 2]), "m": {"c": tune.choice(["a", (1,), "a"])}}


def few(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_categorical("k", [1, 2])
    trial.suggest_float("c", 0, 1, step=0.5)
    return {"constant": [1]}


def branch(trial: optuna.Trial) -> None:
    if not trial.suggest_int("a", 0, 2):
        trial.suggest_int("b", 0, 3)


@pytest.mark.parametrize("sampler", [Failing, FailingBefore])
@pytest.mark.parametrize("space", [FEW, few, suggest_x])
def test_sampler_error_fails_trial(space: Space, sampler: Any, tmp_path: Path) -> None:
    ran = Ran(tmp_path, space, 3, sampler=sampler())
    assert ran.failures == ["RuntimeError: no draw"] * 3


@pytest.mark.parametrize(
    ("space", "params", "message"),
    [
        (FEW, {"k": 3}, "the config in the queue has k = 3, which is not in the space: Categ"),
        (FEW, {"no": 3}, "the config in the queue has 'no'; the space has k, m/c"),
        ({"x": tune.uniform(0, 1)}, {"x": 5.0}, "the config in the queue has x = 5.0, which is no"),
        (few, {"k": 3}, "the config in the queue has k = 3, which is not in the space: Categ"),
        (suggest_x, {"x": 5.0}, "the config in the queue has x = 5.0, which is not in the space"),
    ],
)
def test_queue_config_not_in_space(
    space: Space, params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """As `study.enqueue_trial` takes it, unchecked."""
    ran = Ran(tmp_path, space, 2, queue=[params])
    (failure,) = ran.failures
    assert failure.startswith(f"ValueError: {message}")
    assert len(ran.configs) == 1


@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler])
@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({"depth": tune.choice([1, 2, 3])}, 3),
        (FEW, 4),
        ({"a": tune.quniform(0, 1, 0.25), "b": tune.qloguniform(0.1, 0.4, 0.1)}, 20),
        ({"a": tune.qlograndint(8, 64, 8), "c": 7}, 8),
        (few, 6),
        (branch, 6),
    ],
)
def test_finite_space_each_config_once(
    space: Space, size: int, sampler: Any, tmp_path: Path
) -> None:
    ran = Ran(tmp_path, space, size // 2, sampler=sampler())
    again = Ran(tmp_path, space, size - size // 2, sampler=sampler())  # resumed
    configs = [repr(config) for config in ran.configs + again.configs]
    assert len(set(configs)) == len(configs) == size
    again.run()
    assert again.is_exhausted


def test_finite_space_draws_do_not_depend_on_time(tmp_path: Path) -> None:
    """A sweep that was killed after each trial tries the same configs."""
    (tmp_path / "whole").mkdir()
    whole = Ran(tmp_path / "whole", few, 6).configs
    assert [Ran(tmp_path, few, 1).configs[0] for _ in range(6)] == whole


def test_finite_space_failed_counts_as_tried(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        layers = trial.suggest_int("layers", 1, 3)
        trial.suggest_int("heads", 2, layers)

    ran = Ran(tmp_path, space, 5)
    assert ran.failures == ["ValueError: `low <= high` must hold, but got (low=2, high=1)."]
    assert len(ran.configs) == 3
    assert ran.is_exhausted


def test_finite_space_queue_is_exempt(tmp_path: Path) -> None:
    for space, given in ((FEW, {"k": 1, "m/c": "a"}), (few, {"k": 1, "c": 0.5})):
        folder = tmp_path / str(callable(space))
        folder.mkdir()
        configs = Ran(folder, space, 3, queue=[given, given]).configs
        assert configs[0] == configs[1] != configs[2]


def test_partly_finite_function(tmp_path: Path) -> None:
    """A branch without end is drawn for as long as it takes."""

    def space(trial: optuna.Trial) -> None:
        if trial.suggest_categorical("kind", ["a", "b"]) == "b":
            trial.suggest_float("x", 0, 1)

    configs = Ran(tmp_path, space, 12).configs
    assert sum(config["kind"] == "a" for config in configs) <= 1
    assert len(configs) == 12


def test_huge_finite_space(tmp_path: Path) -> None:
    space = {"a": tune.randint(0, 10**9), "b": tune.choice(range(1000))}
    assert len(Ran(tmp_path, space, 3).configs) == 3


def test_first_draw_as_ever(tmp_path: Path) -> None:
    """Sweeps of earlier versions continue as they would have: the seed of the first draw stays."""
    (config,) = Ran(tmp_path, {"x": tune.uniform(0, 1)}, 1).configs
    assert config == {"x": 0.5355993486273284}


def test_grid_each_point_in_order(tmp_path: Path) -> None:
    space = {"g": tune.grid_search([1, 2, 2]), "h": {"k": tune.grid_search(["a", (1,)])}}
    ran = Ran(tmp_path, space, 3)
    again = Ran(tmp_path, space, 2)
    points = [(config["g"], config["h"]["k"]) for config in ran.configs + again.configs]
    assert points == [(1, "a"), (1, (1,)), (2, "a"), (2, (1,))]
    assert again.is_exhausted


def test_grid_beside_random_domain(tmp_path: Path) -> None:
    space = {"g": tune.grid_search([1, 2, 3]), "x": tune.uniform(0, 1)}
    configs = Ran(tmp_path, space, 4).configs + Ran(tmp_path, space, 3).configs
    assert [config["g"] for config in configs] == [1, 2, 3, 1, 2, 3, 1]
    assert len({config["x"] for config in configs}) == 7


def test_grid_beside_finite_domain(tmp_path: Path) -> None:
    space = {"g": tune.grid_search([1, 2]), "c": tune.choice(["a", "b", "c"])}
    ran = Ran(tmp_path, space, 7)
    assert [config["g"] for config in ran.configs] == [1, 2, 1, 2, 1, 2]
    assert len({repr(config) for config in ran.configs}) == 6
    assert ran.is_exhausted


def test_grid_and_queue(tmp_path: Path) -> None:
    """A config of the queue that leaves the grid open gets the next point, and counts."""
    space = {"g": tune.grid_search([1, 2]), "h": tune.grid_search([1, 2]), "x": tune.uniform(0, 1)}
    configs = Ran(tmp_path, space, 4, queue=[{"x": 0.5}, {"g": 2}]).configs
    assert [(config["g"], config["h"]) for config in configs] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert configs[0]["x"] == 0.5
