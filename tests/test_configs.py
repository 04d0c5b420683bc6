"""Configs in the record: what is kept as JSON, what is pickled, and how they are read again."""

import json
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray import tune

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.space import SearchSpace, convert_space
from tune_jobs.engine.store.configs import CONFIG_ATTR, PICKLED, config_of, pack_config, recordable
from tune_jobs.engine.store.record import Record

EMPTY = SearchSpace({})


class Color(Enum):
    RED = 1


@dataclass(frozen=True)
class Point:
    x: float


def ask(x: float = 0.5) -> FrozenTrial:
    distributions = {"x": FloatDistribution(0, 1)}
    return create_trial(state=TrialState.RUNNING, params={"x": x}, distributions=distributions)


def reopened(folder: Path, suggested: dict[str, Any]) -> FrozenTrial:
    """A trial of this config, read from the file by another driver."""
    Record.create(folder, "s", Goal("score", "max"), Event()).start("a", ask(), suggested)
    (trial,) = Record.open(folder, Event()).trials()
    return trial


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(2**70),
        0.1,
        1e-300,
        "text",
        "",
        [1, 2.5, "a", None],
        [[1], []],
        {"a": {"b": [1]}},
        [{"lr": 0.1}],
        [],
        {},
    ],
    ids=repr,
)
def test_pack_keeps_json(value: Any) -> None:
    assert pack_config({"v": value}) == {"v": value}


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        [(1, 2)],
        {"a": (1, 2)},
        {1: "a"},
        [{1: "a"}],
        {None: 1},
        math.inf,
        [math.inf],
        np.float64(0.5),
        np.float32(0.1),
        np.int64(3),
        np.bool_(True),
        np.str_("a"),
        [np.int64(3)],
        {1, 2},
        b"bytes",
        1 + 2j,
        Path("a/b"),
        Color.RED,
        Point(0.5),
        {PICKLED: "a user's own"},
        [{PICKLED: "a user's own"}],
    ],
    ids=repr,
)
def test_pack_pickles_others(value: Any, tmp_path: Path) -> None:
    """Values that JSON would change come back with their own type, on every level."""
    (packed,) = pack_config({"v": value}).values()
    assert packed.keys() == {PICKLED}
    json.dumps(packed, allow_nan=False)
    (back,) = config_of(reopened(tmp_path, {"v": value}), EMPTY).values()
    assert repr(back) == repr(value)
    assert back == value
    assert type(back) is type(value)


def test_pack_pickles_nan(tmp_path: Path) -> None:
    back = config_of(reopened(tmp_path, {"v": math.nan, "w": [math.nan]}), EMPTY)
    assert math.isnan(back["v"])
    assert math.isnan(back["w"][0])
    assert "NaN" not in (tmp_path / "study.log").read_text()


def test_pack_pickles_array(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = config_of(reopened(tmp_path, {"v": array}), EMPTY)["v"]
    assert back.dtype == np.float32
    assert np.array_equal(back, array)


def test_pack_pickles_local_class(tmp_path: Path) -> None:
    class Local:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Local)

        def __hash__(self) -> int:
            return 0

    assert config_of(reopened(tmp_path, {"v": Local()}), EMPTY) == {"v": Local()}


def test_config_nested_names(tmp_path: Path) -> None:
    """The record has flat names; the config is nested, with the space's constants."""
    nested = {"model": {"lr": tune.uniform(0, 1), "sizes": (8, 9)}, "name": "net"}
    space = convert_space(nested)
    trial = reopened(tmp_path, {"model/lr": 0.5})
    assert trial.system_attrs[CONFIG_ATTR] == {"model/lr": 0.5}
    assert config_of(trial, space) == {"model": {"lr": 0.5, "sizes": (8, 9)}, "name": "net"}


def test_config_function_not_called(tmp_path: Path) -> None:
    """A define-by-run function is not run again where the record has its config."""

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        raise AssertionError("called again")

    trial = reopened(tmp_path, {"x": 0.5, "model/depth": (1, 2), "model": {"a/b": {}}})
    config = {"x": 0.5, "model/depth": (1, 2), "model": {"a/b": {}}}
    assert config_of(trial, convert_space(suggest)) == config


def test_config_queued_trial(tmp_path: Path) -> None:
    """A trial from the queue is recorded with its whole config, too."""
    record = Record.create(tmp_path, "s", Goal("score", "max"), Event())
    record.enqueue({"x": 0.25})
    record.start("a", ask(0.25), {"x": 0.25, "sizes": (8, 9)})
    (trial,) = Record.open(tmp_path, Event()).trials()
    assert config_of(trial, EMPTY) == {"x": 0.25, "sizes": (8, 9)}


def old_trial(recorded: dict[str, Any]) -> FrozenTrial:
    """A trial of a record that was written when every name with "/" was nested."""
    attrs = {"tune_jobs:config": pack_config(recorded)}
    return create_trial(state=TrialState.RUNNING, system_attrs=attrs)


def test_flat_config_nested_again() -> None:
    def suggest(trial: optuna.Trial) -> None:
        raise AssertionError("called again")

    trial = old_trial({"x": 0.5, "model/depth": (1, 2)})
    assert config_of(trial, convert_space(suggest)) == {"x": 0.5, "model": {"depth": (1, 2)}}


def test_flat_config_dict_space() -> None:
    nested = {"model": {"lr": tune.uniform(0, 1), "sizes": {"a": (8, 9)}}}
    trial = old_trial({"model/lr": 0.5})
    assert config_of(trial, convert_space(nested)) == {"model": {"lr": 0.5, "sizes": {"a": (8, 9)}}}


def test_large_choice_not_recorded(tmp_path: Path) -> None:
    """Each trial would record it again; its label stands for it."""
    arrays = [np.zeros(20_000), np.ones(20_000)]
    space = convert_space({"data": tune.choice(arrays), "x": tune.uniform(0, 1), "y": 3})
    (name, other) = space.parameters["data"].distribution.choices  # type: ignore[attr-defined]
    assert (name, other) == ("array of shape (20000,)", "array of shape (20000,) (2)")
    distributions = {"data": space.parameters["data"].distribution}
    asked = create_trial(
        state=TrialState.RUNNING, params={"data": other}, distributions=distributions
    )
    values = recordable({"data": arrays[1], "x": 0.5}, space)
    Record.create(tmp_path, "s", Goal("score", "max"), Event()).start("a", asked, values)
    (trial,) = Record.open(tmp_path, Event()).trials()
    assert (tmp_path / "study.log").stat().st_size < 5_000
    config = config_of(trial, space)
    assert config.keys() == {"data", "x", "y"}
    assert np.array_equal(config["data"], arrays[1])


def test_choice_class_is_gone() -> None:
    """A value that cannot be unpickled is that of its label."""
    space = convert_space({"c": tune.choice([Color.RED, (1,)])})
    asked = create_trial(
        state=TrialState.RUNNING,
        params={"c": "RED"},
        distributions={"c": space.parameters["c"].distribution},
        system_attrs={CONFIG_ATTR: {"c": {PICKLED: "AAAA"}}},
    )
    assert config_of(asked, space) == {"c": Color.RED}


def test_old_config_dict_space() -> None:
    """Records of format 1 have the parameters alone; the space has the constants."""
    space = convert_space({"x": tune.uniform(0, 1), "model": {"depth": (3, 4)}})
    assert config_of(ask(), space) == {"x": 0.5, "model": {"depth": (3, 4)}}


def test_old_config_nested_parameter() -> None:
    space = convert_space({"model": {"lr": tune.uniform(0, 1)}, "epochs": 3})
    distributions = {"model/lr": FloatDistribution(0, 1)}
    trial = create_trial(value=1.0, params={"model/lr": 0.5}, distributions=distributions)
    assert config_of(trial, space) == {"model": {"lr": 0.5}, "epochs": 3}


def test_old_config_define_by_run() -> None:
    """For records of format 1, the function is run again, with the recorded parameters."""

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        x = trial.suggest_float("x", 0, 1)
        return {"double": 2 * x, "model": {"sizes": (8, 9)}}

    expected = {"x": 0.5, "double": 1.0, "model": {"sizes": (8, 9)}}
    assert config_of(ask(), convert_space(suggest)) == expected


def test_old_config_function_without_constants() -> None:
    def suggest(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    assert config_of(ask(), convert_space(suggest)) == {"x": 0.5}
