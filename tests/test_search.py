"""The search, driven by hand as Tune drives it, held against Ray's own."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.goal import Goal
from tune_jobs.engine.reasons import Reason
from tune_jobs.engine.search import StudySearch, convert_space
from tune_jobs.engine.settings import SettingsError

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "layers": tune.choice([2, 3])}


def make_search(
    mode: str = "max", reasons: dict[str, str] | None = None, **kwargs: Any
) -> tuple[StudySearch, optuna.Study]:
    study = optuna.create_study(
        study_name="sweep",
        direction="maximize" if mode == "max" else "minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    space, goal = convert_space(kwargs.pop("space", SPACE)), Goal("score", mode)
    return StudySearch(space, goal, study, reasons or {}, **kwargs), study


def make_stock() -> OptunaSearch:
    space = OptunaSearch.convert_search_space(SPACE)
    return OptunaSearch(space, metric="score", mode="max", seed=0)


def result(epoch: int, score: float, done: bool = False) -> dict[str, Any]:
    return {"score": score, "epoch": epoch, "training_iteration": epoch, "done": done}


def drive(search: OptunaSearch, trial_id: str, *scores: float, twice: bool = False) -> None:
    """Report as Tune does: a stopped trial's last result comes with its end only."""
    search.suggest(trial_id)
    for epoch, score in enumerate(scores[:-1], 1):
        search.on_trial_result(trial_id, result(epoch, score))
    last = result(len(scores), scores[-1], done=True)
    if twice:  # of a trial that ended by itself
        search.on_trial_result(trial_id, last)
    search.on_trial_complete(trial_id, last)


def test_suggested_config_is_the_trial_of_the_study() -> None:
    search, study = make_search()
    config = search.suggest("abc")
    (trial,) = study.get_trials()
    assert config == trial.params
    assert config.keys() == SPACE.keys()
    assert trial.user_attrs["trial_id"] == "abc"
    assert trial.state == TrialState.RUNNING


def test_define_by_run_space_is_searched() -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("x", 0, 1)
        return {"constant": 7}

    search, study = make_search(space=space)
    config = search.suggest("t")
    assert config == {"constant": 7, "x": study.get_trials()[0].params["x"]}


def test_study_keeps_its_own_name() -> None:
    search, study = make_search()
    assert search._ot_study is study
    assert study.study_name == "sweep"


@pytest.mark.parametrize(("mode", "best"), [("max", 0.9), ("min", 0.2)])
def test_complete_trial_has_its_best_epochs_value(mode: str, best: float) -> None:
    search, study = make_search(mode, {"t": "last epoch"})
    drive(search, "t", 0.5, 0.9, 0.2, 0.7)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.COMPLETE
    assert trial.value == study.best_value == best
    assert trial.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.2, 4: 0.7}
    assert trial.user_attrs == {"trial_id": "t", "reason": "last epoch"}


def test_stock_search_tells_the_last_epochs_value() -> None:
    stock = make_stock()
    drive(stock, "t", 0.5, 0.9, 0.7)
    (trial,) = stock._ot_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.7)
    assert trial.intermediate_values == {1: 0.5, 2: 0.9}


def test_trial_stopped_by_asha_is_pruned_with_its_whole_curve() -> None:
    search, study = make_search(reasons={"t": "asha"})
    drive(search, "t", 0.5, 0.4, 0.3)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.5, 2: 0.4, 3: 0.3}
    assert trial.user_attrs["reason"] == "asha"
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = study.best_trial


def test_stock_search_tells_a_stopped_trial_as_complete_without_its_last_score() -> None:
    stock = make_stock()
    drive(stock, "t", 0.5, 0.4, 0.3)
    (trial,) = stock._ot_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.3)
    assert 3 not in trial.intermediate_values


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_diverged_trial_is_pruned_with_its_finite_curve(score: float) -> None:
    search, study = make_search(reasons={"t": "nan"})
    drive(search, "t", 0.5, score)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.5}
    assert trial.user_attrs["reason"] == "nan"


def test_trial_that_only_reports_nan_is_pruned_without_a_value() -> None:
    search, study = make_search(reasons={"t": "nan"})
    drive(search, "t", math.nan)
    (trial,) = study.get_trials()
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, None, {})


def test_stock_search_leaves_a_trial_with_nan_running() -> None:
    stock = make_stock()
    drive(stock, "t", 0.5, math.nan)
    (trial,) = stock._ot_study.get_trials()
    assert trial.state == TrialState.RUNNING


def test_failed_trial_is_told_as_failed() -> None:
    search, study = make_search(reasons={"t": "ZeroDivisionError"})
    search.suggest("t")
    search.on_trial_result("t", result(1, 0.5))
    search.on_trial_complete("t", None, error=True)
    (trial,) = study.get_trials()
    assert (trial.state, trial.value) == (TrialState.FAIL, None)
    assert trial.user_attrs["reason"] == "ZeroDivisionError"
    assert trial.intermediate_values == {1: 0.5}


def test_last_result_that_comes_twice_is_recorded_once() -> None:
    search, study = make_search()
    drive(search, "t", 0.5, 0.6, twice=True)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.COMPLETE
    assert trial.intermediate_values == {1: 0.5, 2: 0.6}


def test_trial_that_reached_the_score_that_is_good_enough_is_complete() -> None:
    search, study = make_search(reasons={"t": "stop_at"})
    drive(search, "t", 0.5, 0.95)
    (trial,) = study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.95)


def test_unfinished_trials_are_pruned_and_finished_ones_left() -> None:
    search, study = make_search()
    drive(search, "done", 0.5)
    search.suggest("cut")
    search.on_trial_result("cut", result(1, 0.8))
    search.suggest("new")
    search.tell_unfinished(Reason.TIME_BUDGET)
    done, cut, new = study.get_trials()
    assert [t.state for t in (done, cut, new)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
    ]
    assert cut.user_attrs["reason"] == new.user_attrs["reason"] == "time budget"
    assert cut.intermediate_values == {1: 0.8}
    assert study.best_value == 0.5


def test_trial_is_told_once_however_often_it_ends() -> None:
    ended: list[int] = []
    search, study = make_search(on_trial_end=lambda study, trial: ended.append(trial.number))
    drive(search, "t", 0.5)
    search.on_trial_complete("t", result(2, 0.9, done=True))
    search.tell_unfinished(Reason.TIME_BUDGET)
    assert ended == [0]
    assert study.best_value == 0.5


def test_end_of_each_trial_is_announced_with_its_final_state() -> None:
    ended: list[tuple[int, str]] = []

    def announce(study: optuna.Study, trial: FrozenTrial) -> None:
        ended.append((trial.number, trial.state.name))

    search, _ = make_search(reasons={"b": "asha"}, on_trial_end=announce)
    drive(search, "a", 0.5)
    drive(search, "b", 0.1)
    assert ended == [(0, "COMPLETE"), (1, "PRUNED")]


def test_constants_of_the_space_are_in_every_config_also_nested() -> None:
    space = {"lr": tune.uniform(0, 1), "batch_size": 32, "model": {"layers": tune.choice([2])}}
    space["model"]["name"] = "mlp"
    search, study = make_search(space=space)
    config = search.suggest("t")
    assert config == {
        "lr": study.get_trials()[0].params["lr"],
        "batch_size": 32,
        "model": {"layers": 2, "name": "mlp"},
    }


def test_stock_conversion_drops_constants() -> None:
    assert OptunaSearch.convert_search_space({"lr": tune.uniform(0, 1), "b": 32}).keys() == {"lr"}


def test_distributions_of_optuna_are_searched() -> None:
    distribution = optuna.distributions.IntDistribution(1, 3)
    assert convert_space({"n": distribution, "c": 5}) == ({"n": distribution}, {"c": 5})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "holds nothing to search"),
        ({"lr": 0.1}, "holds nothing to search"),
        ({"lr": tune.grid_search([1, 2])}, "cannot be searched by Optuna: Grid search"),
        ({"lr": tune.randn(0, 1)}, "cannot be searched by Optuna: Optuna search does not support"),
        ({"a/b": tune.uniform(0, 1)}, "cannot be searched by Optuna"),
        ({"layers": tune.choice([[64], [64, 64]])}, "choices of 'layers' must be None, bool, int"),
    ],
)
def test_space_that_cannot_be_searched_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        convert_space(space)


@pytest.mark.parametrize("sampler_type", ["grid", "brute force"])
def test_sampler_that_has_tried_everything_ends_the_search(sampler_type: str) -> None:
    search, study = make_search(space={"x": tune.choice([1, 2])})
    if sampler_type == "grid":
        study.sampler = optuna.samplers.GridSampler({"x": [1, 2]}, seed=0)
    else:
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            study.sampler = optuna.samplers.BruteForceSampler(seed=0)
    drive(search, "a", 0.5)
    drive(search, "b", 0.6)
    assert search.suggest("c") == Searcher.FINISHED
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE] * 2
    assert sorted(t.params["x"] for t in study.get_trials()) == [1, 2]


def test_stock_search_raises_when_its_sampler_has_tried_everything() -> None:
    space = OptunaSearch.convert_search_space({"x": tune.choice([1])})
    sampler = optuna.samplers.GridSampler({"x": [1]}, seed=0)
    stock = OptunaSearch(space, metric="score", mode="max", sampler=sampler)
    drive(stock, "a", 0.5)  # raises `Study.stop` inside, which is swallowed
    assert stock.suggest("b") is not None  # and goes on with what it has tried


def test_snapshot_of_a_define_by_run_search_is_saved_and_restored(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    search, _ = make_search(space=space)
    search.save(str(tmp_path / "state"))
    search.restore(str(tmp_path / "state"))
    assert search.suggest("t") is not None
    stock = OptunaSearch(space, metric="score", mode="max")
    with pytest.raises(AttributeError, match="pickle local object"):
        stock.save(str(tmp_path / "stock"))


def test_stock_searches_in_one_storage_mix_and_take_over_the_direction() -> None:
    storage = optuna.storages.InMemoryStorage()
    space = OptunaSearch.convert_search_space(SPACE)
    first = OptunaSearch(space, metric="score", mode="max", storage=storage)
    drive(first, "t", 0.5)
    second = OptunaSearch(space, metric="loss", mode="min", storage=storage)
    assert len(second._ot_study.trials) == 1
    assert second._ot_study.direction == optuna.study.StudyDirection.MAXIMIZE
