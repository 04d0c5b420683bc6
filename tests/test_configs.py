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
from tune_jobs.engine.store.configs import CONFIG_ATTR, PICKLED, config_of, pack_config
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
