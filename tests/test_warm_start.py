"""Configs to try first, other sweeps to learn from, failed trials to retry."""

import json
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.space import Space, convert_space
from tune_jobs.engine.search.study_search import StudySearch
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.entries import id_of
from tune_jobs.engine.store.manifest import Manifest
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.store.warm_start import (
    check_configs,
    enqueue,
    others_of,
    read_configs,
    read_others,
    retry_failed,
)

GOAL = Goal("score", "max")
SPACE = {"x": tune.uniform(0, 1), "n": tune.choice([1, 2]), "constant": 7}
SEARCH_SPACE = convert_space(SPACE)
FAILURE = Outcome("KeyError", Cause.TRIAL, "KeyError: lr", "Traceback")


def write(folder: Path, content: Any) -> str:
    file = folder / "configs.json"
    file.write_text(json.dumps(content))
    return str(file)


def make_view(record: Record, others: Iterable[dict[str, Any]] = ()) -> View:
    view = View(GOAL, TPESampler(n_startup_trials=5), Rungs(GOAL))
    for other in others_of(others):
        view.add_other(other)
    for trial in record.started():
        view.add(trial, id_of(trial))
    return view


def make_search(record: Record, view: View | None = None) -> StudySearch:
    return StudySearch(SEARCH_SPACE, GOAL, record, view or make_view(record), 0)


def run(search: StudySearch, record: Record, trial_id: str, score: float) -> dict[str, Any]:
    config: dict[str, Any] = search.suggest(trial_id)
    record.report(trial_id, score, {"epoch": 1, "score": score}, None)
    search.on_trial_complete(trial_id)
    return config


def test_enqueued_configs_run_first(tmp_path: Path) -> None:
    """Parameters that a config leaves out are searched."""
    record = Record.create(tmp_path, "s", GOAL, Event())
    file = write(tmp_path, [{"x": 0.25, "n": 2}, {"x": 0.75, "constant": 7}])
    assert enqueue(record, read_configs(file, SEARCH_SPACE)) == 2
    search = make_search(record)
    assert run(search, record, "a", 0.1) == {"x": 0.25, "n": 2, "constant": 7}
    second = run(search, record, "b", 0.1)
    assert second["x"] == 0.75
    assert second["n"] in (1, 2)
    assert run(search, record, "c", 0.1)["x"] not in (0.25, 0.75)
    assert [trial.number for trial in record.trials()] == [0, 1, 2]


def test_enqueue_skips_duplicates(tmp_path: Path) -> None:
    record = Record.create(tmp_path, "s", GOAL, Event())
    assert enqueue(record, [{"x": 0.25}, {"x": 0.25}]) == 1


def branching(trial: optuna.Trial) -> dict[str, Any]:
    if trial.suggest_categorical("kind", ["a", "b"]) == "a":
        trial.suggest_float("lr", 0, 1)
    else:
        trial.suggest_int("depth", 1, 3)
    return {"constant": 7}


def test_read_configs_define_by_run(tmp_path: Path) -> None:
    """A config is accepted if any branch of the space asks for its parameters."""
    space = convert_space(branching)
    for config in ({"depth": 2}, {"lr": 0.5}, {"kind": "b", "depth": 3}):
        assert read_configs(write(tmp_path, config), space) == [config]
    with pytest.raises(SettingsError, match="has 'lrr'; the space has"):
        read_configs(write(tmp_path, {"lrr": 0.5}), space)
    with pytest.raises(SettingsError, match="depth = 9, which is not in the space"):
        read_configs(write(tmp_path, {"depth": 9}), space)


def test_other_sweep_define_by_run(tmp_path: Path) -> None:
    """Trials agree if the space asks for exactly their parameters when it gets their values."""

    def other(trial: optuna.Trial) -> None:
        trial.suggest_categorical("kind", ["a"])
        trial.suggest_float("lr", 0, 1)

    make_other(tmp_path / "agrees", space=other)
    assert len(read_others("agrees", GOAL, convert_space(branching), str(tmp_path))) == 4
    make_other(tmp_path / "differs")
    with pytest.raises(SettingsError, match="none of the 4 trials"):
        read_others("differs", GOAL, convert_space(branching), str(tmp_path))


def test_enqueue_repeated_on_resume(tmp_path: Path) -> None:
    """A config is tried once in the life of a sweep."""
    record = Record.create(tmp_path, "s", GOAL, Event())
    configs = read_configs(write(tmp_path, {"x": 0.25}), SEARCH_SPACE)
    assert enqueue(record, configs) == 1
    assert enqueue(record, configs) == 0
    search = make_search(record)
    run(search, record, "a", 0.1)
    again = Record.open(tmp_path, Event())
    assert enqueue(again, configs) == 0
    search = make_search(again)
    assert run(search, again, "b", 0.1)["x"] != 0.25


def test_stock_search_enqueues_again(tmp_path: Path) -> None:
    """Ray's own search enqueues `points_to_evaluate` each time it is created."""
    storage = optuna.storages.InMemoryStorage()
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for trial_id in ("a", "b"):  # the second stands for what a restored sweep makes
        stock = OptunaSearch(
            space, metric="score", mode="max", storage=storage, points_to_evaluate=[{"x": 0.25}]
        )
        assert stock.suggest(trial_id) == {"x": 0.25}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"y": 1}], "has 'y'; the space has x, n"),
        ([{"x": 2.0}], "has x = 2.0, which is not in the space: FloatDistribution"),
        ([{"n": 3}], "has n = 3, which is not in the space: CategoricalDistribution"),
        ([{"x": "a"}], "has x = 'a', which is not in the space"),
        ([{"constant": 8}], "has constant = 8, which is not in the space: 7"),
        ([], "must hold a list of configs"),
        ([3], "must hold a list of configs"),
        ([{}], "must hold a list of configs"),
    ],
)
def test_read_configs_outside_space_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        read_configs(write(tmp_path, content), SEARCH_SPACE)


WORDS: dict[str, Any] = {
    "model": {"layers": tune.choice([[32], [64, 64]]), "act": tune.choice([dict, list])},
    "lr": tune.qloguniform(1e-4, 1e-1, 1e-4),
    "grid": tune.grid_search([(1, 2), (3, 4)]),
    "fixed": {"sizes": [1, 2]},
}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model": {"layers": [64, 64]}}, ["model/layers"]),
        ({"model/layers": [32], "model/act": list}, ["model/act", "model/layers"]),
        ({"model": {"act": "dict"}, "fixed": {"sizes": [1, 2]}}, ["model/act"]),
        ({"grid": (3, 4), "lr": np.float64(0.01)}, ["grid", "lr"]),
        ({"grid": [3, 4], "lr": np.float32(0.5)}, None),
        ({"model": {"layers": [16]}}, None),
    ],
)
def test_check_configs_users_values(config: dict[str, Any], names: list[str] | None) -> None:
    """A config is written as a trial gets it; what the study holds can be recorded."""
    space = convert_space(WORDS)
    if names is None:
        with pytest.raises(SettingsError, match=r"^enqueue\[1\] has .*, which is not in the space"):
            check_configs([{"lr": 0.01}, config], space)
        return
    (held,) = json.loads(json.dumps(check_configs([config], space)))
    assert sorted(held) == names
    assert sorted(check_configs((config for _ in [1]), space)[0]) == names


def test_check_configs_whole_config() -> None:
    """What a trial was given can be tried first in the next sweep."""
    space = convert_space(WORDS)
    point = {"model/layers": [32], "model/act": dict, "lr": 0.002, "grid": (1, 2)}
    config = space.config(point)
    (held,) = check_configs([config], space)
    assert space.config(space.decode(held)) == config


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ("configs.json", r"^enqueue must be a list of configs, .*, got 'configs.json'; a file wi"),
        (3, r"^enqueue must be a list of configs, .*, got 3"),
        ([{"x": 0.5}, 3], r"^enqueue\[1\] must be a config, .*, got 3"),
        ([{"x": 0.5}, {}], r"^enqueue\[1\] must be a config, .*, got \{\}"),
        ([{"x": 0.5}, {"x": 0.5}, {"y": 1}], r"^enqueue\[2\] has 'y'; the space has x, n"),
        ([{"x": 2.0}], r"^enqueue\[0\] has x = 2.0, which is not in the space: Float"),
        ([{3: 2.0}], r"^enqueue\[0\] has '3'; the space has x, n"),
        ([{"constant": 8}], r"^enqueue\[0\] has constant = 8, which is not in the space: 7"),
    ],
)
def test_check_configs_refused(configs: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_configs(configs, SEARCH_SPACE)


def raising(trial: optuna.Trial) -> None:
    if trial.suggest_int("depth", 1, 3) < 3:
        raise ArithmeticError("of the user's space")
    trial.suggest_float("lr", 0, 1)


@pytest.mark.parametrize(
    ("config", "held"),
    [
        ({"depth": np.int64(2)}, {"depth": 2}),
        ({"lr": np.float32(0.5)}, {"lr": 0.5}),
        ({"depth": 4}, "has depth = 4, which is not"),
        ({2: 4}, r"enqueue\[0\] has '2'; the space has depth, lr"),
    ],
)
def test_check_configs_define_by_run(config: dict[Any, Any], held: Any) -> None:
    """Also of a space that raises in some of its branches."""
    space = convert_space(raising)
    if isinstance(held, str):
        with pytest.raises(SettingsError, match=held):
            check_configs([config], space)
    else:
        assert json.loads(json.dumps(check_configs(config, space))) == [held]


def test_read_configs_unreadable_file_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_configs(str(tmp_path / "none.json"), SEARCH_SPACE)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_configs(str(tmp_path / "bad.json"), SEARCH_SPACE)


def fail(search: StudySearch, record: Record, trial_id: str) -> None:
    search.suggest(trial_id)
    record.decide(trial_id, FAILURE)
    search.on_trial_complete(trial_id, error=True)


def test_retry_runs_as_new_trial(tmp_path: Path) -> None:
    """The retry's result enters the study; the failed trial stays in the record."""
    record = Record.create(tmp_path, "s", GOAL, Event())
    search = make_search(record)
    fail(search, record, "a")
    run(search, record, "b", 0.5)
    assert retry_failed(record) == 1
    assert record.num_retries == 1
    config = run(search, record, "c", 0.9)
    failed, _, retried = record.trials()
    assert retried.params == failed.params == {"x": config["x"], "n": config["n"]}
    assert (failed.state, retried.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert record.study.best_value == 0.9
    assert retried.system_attrs["failed_trial"] == 0
    assert retry_failed(record) == 0


def test_retry_failed_twice(tmp_path: Path) -> None:
    """There is a third attempt, which names the first trial and both failures."""
    record = Record.create(tmp_path, "s", GOAL, Event())
    search = make_search(record)
    fail(search, record, "a")
    retry_failed(record)
    fail(search, record, "b")
    assert retry_failed(record) == 1
    waiting = record.next_waiting()
    assert waiting is not None
    assert waiting.system_attrs["failed_trial"] == 0
    assert waiting.system_attrs["retry_history"] == [0, 1]


def test_stock_search_ignores_retries() -> None:
    """Ray's own search does not take in the result of a retried trial."""
    stock = OptunaSearch(
        OptunaSearch.convert_search_space({"x": tune.uniform(0, 1)}), metric="score", mode="max"
    )
    stock.suggest("a")
    stock.on_trial_complete("a", error=True)
    stock.on_trial_complete("a", {"score": 0.9})  # with `resume_errored`
    assert stock._ot_study.get_trials()[0].value is None
    with pytest.raises(KeyError):  # with `restart_errored`, under a new id
        stock.on_trial_complete("b", {"score": 0.9})


def make_other(folder: Path, space: Space = SPACE, goal: Goal = GOAL) -> str:
    """Another sweep: complete, stopped, diverged and failed trials, and one that is running."""
    folder.mkdir()
    Manifest.of(Settings(), goal, convert_space(space), None).write(folder)
    record = Record.create(folder, "other", goal, Event())
    view = View(goal, TPESampler(), Rungs(goal))
    search = StudySearch(convert_space(space), goal, record, view, 1)
    for number, stop in enumerate((None, Kind.ASHA, Kind.NAN)):
        trial_id = str(number)
        search.suggest(trial_id)
        record.report(trial_id, 0.5, {"epoch": 1, "score": 0.5}, stop)
        search.on_trial_complete(trial_id)
    fail(search, record, "3")
    search.suggest("4")
    return str(folder)


def test_other_sweep_shown_to_sampler(tmp_path: Path) -> None:
    """The sampler sees the other sweep's finished trials; they are not in this record."""
    other = make_other(tmp_path / "other")
    packed = read_others(other, GOAL, SEARCH_SPACE, str(tmp_path))
    folder = tmp_path / "s"
    folder.mkdir()
    record = Record.create(folder, "s", GOAL, Event())
    packed = json.loads(json.dumps(packed))  # as the manifest keeps them
    for opened in (record, Record.open(folder, Event())):
        view = make_view(opened, packed)
        search = make_search(opened, view)
        shown = view.study.get_trials()
        assert [t.state.name for t in shown] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"]
        assert [t.intermediate_values for t in shown] == [{1: 0.5}, {1: 0.5}, {}, {}]
        assert not opened.trials()
    run(search, opened, "a", 0.1)
    assert opened.trials()[0].number == 0
    assert opened.study.best_value == 0.1


def test_other_sweep_unfinished_trials(tmp_path: Path) -> None:
    """Trials that the other sweep left running or paused are read as pruned."""
    other = make_other(tmp_path / "other")
    record = Record.open(tmp_path / "other", Event())
    (running,) = record.running()
    record.report("4", 0.7, {"epoch": 1, "score": 0.7}, None)
    *_, left = others_of(read_others(other, GOAL, SEARCH_SPACE, str(tmp_path)))
    assert left.params == running.params
    assert (left.state.name, left.intermediate_values) == ("PRUNED", {1: 0.7})


def test_other_sweep_by_name(tmp_path: Path) -> None:
    make_other(tmp_path / "other")
    assert len(read_others("other", GOAL, SEARCH_SPACE, str(tmp_path))) == 4


def test_other_sweep_at_url(tmp_path: Path) -> None:
    make_other(tmp_path / "other")
    assert len(read_others(f"file://{tmp_path}/other", GOAL, SEARCH_SPACE, str(tmp_path))) == 4


def test_other_sweep_overlapping_spaces(tmp_path: Path) -> None:
    """Trials are read if they could have been drawn from this sweep's space."""
    make_other(tmp_path / "other")
    values = [
        trial["params"]["x"] for trial in read_others("other", GOAL, SEARCH_SPACE, str(tmp_path))
    ]
    upper = sorted(values)[2]
    narrow = convert_space({**SPACE, "x": tune.uniform(0, upper)})
    notices: list[str] = []
    assert len(read_others("other", GOAL, narrow, str(tmp_path), notices.append)) == 3
    assert notices == ["Learning from 3 of the 4 trials of other"]


@pytest.mark.parametrize(
    ("goal", "space", "message"),
    [
        (Goal("score", "min"), SPACE, r"optimizes score \(max\), not score \(min\)"),
        (Goal("loss", "max"), SPACE, r"optimizes score \(max\), not loss \(max\)"),
        (GOAL, {"z": tune.uniform(0, 1)}, "none of the 4 trials"),
    ],
)
def test_other_sweep_incompatible_refused(
    goal: Goal, space: Space, message: str, tmp_path: Path
) -> None:
    make_other(tmp_path / "other")
    with pytest.raises(SettingsError, match=message):
        read_others("other", goal, convert_space(space), str(tmp_path))


def test_other_sweep_missing_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="warm_start: no sweep can be read at"):
        read_others("none", GOAL, SEARCH_SPACE, str(tmp_path))
