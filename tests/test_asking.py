"""What a trial is asked to try: define-by-run functions, finite spaces, grids, the queue."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from asked import Ran
from driven import Driven
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from tune_jobs.engine.core.outcome import Kind, outcome_of
from tune_jobs.engine.core.space import Space
from tune_jobs.engine.store.configs import config_of


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


@pytest.mark.parametrize("name", ["trial_id", "reason", "metrics", "paused_at"])
def test_function_reserved_attribute_fails(name: str, tmp_path: Path) -> None:
    """What the sweep enters itself would take its place without a word."""

    def space(trial: optuna.Trial) -> None:
        suggest_x(trial)
        trial.set_user_attr("reasons", 1)
        trial.set_user_attr(name, "mine")

    (failure,) = Ran(tmp_path, space, 1).failures
    assert failure.startswith(f"ValueError: the user attribute '{name}' is one that the sweep")
    assert failure.endswith("give yours another name")


@pytest.mark.parametrize("space", [suggest_x, {"x": tune.uniform(0, 1)}])
@pytest.mark.parametrize("name", ["trial_id", "error", "errors"])
def test_queue_reserved_attribute_fails(name: str, space: Space, tmp_path: Path) -> None:
    ran = Ran(tmp_path, space, 0)
    ran.driven.record.study.enqueue_trial({"x": 0.5}, user_attrs={name: "mine"})
    again = Ran(tmp_path, space, 2)  # reopened
    assert len(again.configs) == 1 + (name == "errors")
    assert [f"user attribute '{name}'" in text for text in again.failures] == [True] * (
        name != "errors"
    )


def test_queue_interrupted_start_goes_on(tmp_path: Path) -> None:
    """The driver died when all was entered but the state."""
    ran = Ran(tmp_path, suggest_x, 1, queue=[{"x": 0.5}])
    file = ran.driven.record.file
    lines = file.read_text().splitlines(keepends=True)
    begun = next(n for n, line in enumerate(lines) if '"trial_id":"t0"' in line)
    file.write_text("".join(lines[: begun + 1]))
    again = Ran(tmp_path, suggest_x, 1)
    assert (again.configs, again.failures) == ([{"x": 0.5}], [])


def test_function_choices_are_anything(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        suggest_x(trial)
        trial.suggest_categorical("act", {"relu", "tanh", "elu"})  # type: ignore[arg-type]
        kernel = trial.suggest_categorical("kernel", [(3, 3), (5, 5)])
        assert kernel in [(3, 3), (5, 5)]

    ran = Ran(tmp_path, space, 4, queue=[{"kernel": [5, 5]}, {"kernel": "[3, 3]"}])
    assert [config["kernel"] for config in ran.configs[:2]] == [(5, 5), (3, 3)]
    assert ran.driven.trials[0].params["kernel"] == "[5, 5]"
    act = ran.driven.trials[0].distributions["act"]
    assert act == optuna.distributions.CategoricalDistribution(["elu", "relu", "tanh"])
    again = Ran(tmp_path, space, 2)  # reopened
    assert not again.failures
    assert len(again.configs) == 2


def test_function_params_are_values(tmp_path: Path) -> None:
    """Also of a name that is asked for twice."""

    def space(trial: optuna.Trial) -> dict[str, Any]:
        first = trial.suggest_categorical("layers", [[64], [32]])
        first.append(3)
        assert trial.params["layers"] in ([64], [32])
        assert trial.suggest_categorical("layers", [[64], [32]]) == trial.params["layers"]
        return trial.params

    ran = Ran(tmp_path, space, 2, queue=[{"layers": [64]}])
    assert [config["layers"] for config in ran.configs] == [[64], [32]]


def layered(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_categorical("layers", [[64], [32]])
    return {"b": 16}


def test_constraints_given_config(tmp_path: Path) -> None:
    """The values of the config, where the study holds labels and numbers off the grid."""
    domains = {"layers": tune.choice([[64], [32]]), "b": tune.qlograndint(8, 64, 8)}
    for name, space in {"dict": {"m": domains}, "function": layered}.items():
        (tmp_path / name).mkdir()
        seen: list[Any] = []

        def violations(trial: FrozenTrial, seen: list[Any] = seen) -> list[float]:
            seen.append(trial.user_attrs["config"])
            return [0.0]

        with pytest.warns(FutureWarning):
            sampler = optuna.samplers.TPESampler(constraints_func=violations)
        ran = Ran(tmp_path / name, space, 3, sampler=sampler)
        prefix = "m/" if name == "dict" else ""
        given = [config.get("m", config) for config in ran.configs]
        assert seen == [{f"{prefix}{key}": v for key, v in config.items()} for config in given]
        assert all("config" not in trial.user_attrs for trial in ran.driven.trials)


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


@pytest.mark.parametrize("sampler", [Failing, FailingBefore])
@pytest.mark.parametrize("space", [FEW, few, suggest_x])
def test_sampler_error_fails_trial(space: Space, sampler: Any, tmp_path: Path) -> None:
    ran = Ran(tmp_path, space, 3, sampler=sampler())
    assert ran.failures == ["RuntimeError: no draw"] * 3


def test_queue_config_in_dynamic_range(tmp_path: Path) -> None:
    """What the config leaves out is drawn until its values fit."""

    def space(trial: optuna.Trial) -> None:
        layers = trial.suggest_int("layers", 1, 3)
        trial.suggest_int("width", 1, 10 * layers)

    ran = Ran(tmp_path, space, 7, queue=[{"width": 29}] * 4 + [{"width": 31}])
    assert ran.configs[:4] == [{"layers": 3, "width": 29}] * 4
    (failure,) = ran.failures
    assert "has width = 31, which is not in the space: Int" in failure
    assert len({trial.number for trial in ran.driven.trials}) == 7


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
