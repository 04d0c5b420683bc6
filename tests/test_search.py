"""The search, driven as Tune drives it, compared with Ray's own."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from driven import OOM, SPACE, Driven, drive_stock, make_stock, result
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, outcome_of
from tune_jobs.engine.store.configs import config_of


def test_search_suggested_config_recorded(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    config = driven.search.suggest("abc")
    (trial,) = driven.trials
    assert config == trial.params == config_of(trial, driven.space)
    assert config.keys() == SPACE.keys()
    assert trial.user_attrs["trial_id"] == "abc"
    assert trial.state == TrialState.RUNNING


def test_search_define_by_run(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("x", 0, 1)
        return {"constant": 7}

    driven = Driven(tmp_path, space=space)
    config = driven.search.suggest("t")
    assert config == {"constant": 7, "x": driven.trials[0].params["x"]}
    assert config_of(driven.trials[0], driven.space) == config


@pytest.mark.parametrize(("mode", "best"), [("max", 0.9), ("min", 0.2)])
def test_complete_trial_best_epoch(mode: str, best: float, tmp_path: Path) -> None:
    driven = Driven(tmp_path, mode)
    driven.run("t", 0.5, 0.9, 0.2, 0.7, stop=Kind.LAST_EPOCH)
    for (trial,) in (driven.trials, driven.shown):
        assert trial.state == TrialState.COMPLETE
        assert trial.value == best
        assert trial.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.2, 4: 0.7}
    assert driven.record.study.best_value == best
    attrs = driven.trials[0].user_attrs
    assert (attrs["trial_id"], attrs["reason"]) == ("t", "last epoch")
    assert attrs["metrics"]["score"] == best


def test_stock_search_last_epoch() -> None:
    stock = make_stock()
    drive_stock(stock, "t", 0.5, 0.9, 0.7)
    (trial,) = stock._ot_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.7)
    assert trial.intermediate_values == {1: 0.5, 2: 0.9}


def test_asha_trial_whole_curve(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.run("t", 0.5, 0.4, 0.3, stop=Kind.ASHA)
    for (trial,) in (driven.trials, driven.shown):
        assert (trial.state, trial.value) == (TrialState.PRUNED, 0.5)
        assert trial.intermediate_values == {1: 0.5, 2: 0.4, 3: 0.3}
    assert driven.trials[0].user_attrs["reason"] == "asha"
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = driven.record.study.best_trial


def test_stock_search_stopped_trial() -> None:
    """It is COMPLETE, and its curve lacks the last score."""
    stock = make_stock()
    drive_stock(stock, "t", 0.5, 0.4, 0.3)
    (trial,) = stock._ot_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.3)
    assert 3 not in trial.intermediate_values


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_diverged_trial_finite_curve(score: float, tmp_path: Path) -> None:
    """The record has the finite scores; the sampler is shown none."""
    driven = Driven(tmp_path)
    driven.run("t", 0.5, score, stop=Kind.NAN)
    (trial,), (shown,) = driven.trials, driven.shown
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.5})
    assert trial.user_attrs["reason"] == "nan"
    assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.PRUNED, None, {})


def test_diverged_trial_without_score(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t", math.nan, stop=Kind.NAN)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, None, {})


def test_stock_search_nan_keeps_running() -> None:
    stock = make_stock()
    drive_stock(stock, "t", 0.5, math.nan)
    (trial,) = stock._ot_study.get_trials()
    assert trial.state == TrialState.RUNNING


def test_failed_trial_curve(tmp_path: Path) -> None:
    """The record has its scores; the sampler is shown none."""
    driven = Driven(tmp_path)
    trial = driven.fail("t", 0.5, 0.9, failure=OOM)
    assert (trial.state, trial.intermediate_values) == (TrialState.FAIL, {1: 0.5, 2: 0.9})
    outcome = outcome_of(trial)
    assert outcome == OOM
    assert outcome.is_failure
    assert trial.user_attrs["reason"] == "oom"
    assert trial.user_attrs["error"] == "out of memory; try more"
    (shown,) = driven.shown
    assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.PRUNED, None, {})


def test_stock_search_crash_is_fail() -> None:
    stock = make_stock()
    stock.suggest("t")
    stock.on_trial_complete("t", None, error=True)
    assert stock._ot_study.get_trials()[0].state == TrialState.FAIL  # which samplers leave out


def test_sampler_avoids_crashes(tmp_path: Path) -> None:
    def num_crashes(search: OptunaSearch, crash: Callable[[str], None]) -> int:
        crashes = 0
        for number in range(60):
            x = search.suggest(str(number))["x"]
            if x > 0.5:
                crashes += 1
                crash(str(number))
            else:
                report_score(search, str(number), x)
        return crashes

    def report_score(search: OptunaSearch, trial_id: str, x: float) -> None:
        if search is driven.search:
            driven.report(trial_id, x)
        search.on_trial_complete(trial_id, result(1, x, done=True))

    def crash_ours(trial_id: str) -> None:
        # after better and more epochs than any trial that did not crash
        driven.report(trial_id, 2.0, 3.0, 4.0)
        driven.record.decide(trial_id, OOM)
        driven.search.on_trial_complete(trial_id, None, error=True)

    space = {"x": tune.uniform(0, 1)}
    driven = Driven(tmp_path, space=space, sampler=optuna.samplers.TPESampler())
    stock = OptunaSearch(
        OptunaSearch.convert_search_space(space), metric="score", mode="max", seed=0
    )
    ours = num_crashes(driven.search, crash_ours)
    theirs = num_crashes(stock, lambda trial_id: stock.on_trial_complete(trial_id, error=True))
    assert ours < theirs


def test_storage_failure_leaves_trial_running(tmp_path: Path) -> None:
    full = Outcome("OSError", Cause.STORAGE, "no space left on device")
    assert Driven(tmp_path).fail("t", 0.5, failure=full).state == TrialState.RUNNING


def test_trial_ends_by_itself(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t", 0.5, 0.6)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.6)


def test_trial_reported_nothing(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t")
    assert trial.state == TrialState.FAIL
    outcome = outcome_of(trial)
    assert outcome is not None
    assert outcome.is_failure
    assert outcome.message == "it ended and had not reported 'score'"
    assert trial.user_attrs["reason"] == "reported nothing"


def test_trial_reached_stop_at(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t", 0.5, 0.95, stop=Kind.GOOD_ENOUGH)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.95)


def test_unfinished_trials_pruned(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.run("done", 0.5)
    driven.search.suggest("cut")
    driven.report("cut", 0.8)
    driven.search.suggest("new")
    driven.search.end_unfinished(Outcome.of(Kind.OTHER_GOOD_ENOUGH))
    done, cut, new = driven.trials
    assert [t.state for t in (done, cut, new)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
    ]
    assert cut.user_attrs["reason"] == new.user_attrs["reason"] == "another reached stop_at"
    assert cut.intermediate_values == {1: 0.8}
    assert driven.record.study.best_value == 0.5


def test_trial_end_announced_once(tmp_path: Path) -> None:
    ended: list[int] = []
    driven = Driven(tmp_path, on_trial_end=lambda trial: ended.append(trial.number))
    driven.run("t", 0.5)
    driven.search.on_trial_complete("t", result(2, 0.9, done=True))
    driven.search.end_unfinished(Outcome.of(Kind.OTHER_GOOD_ENOUGH))
    assert ended == [0]
    assert driven.record.study.best_value == 0.5


def test_trial_end_announced_final_state(tmp_path: Path) -> None:
    ended: list[tuple[int, str]] = []

    def announce(trial: FrozenTrial) -> None:
        ended.append((trial.number, trial.state.name))

    driven = Driven(tmp_path, on_trial_end=announce)
    driven.run("a", 0.5)
    driven.run("b", 0.1, stop=Kind.ASHA)
    assert ended == [(0, "COMPLETE"), (1, "PRUNED")]


def test_config_has_nested_constants(tmp_path: Path) -> None:
    space = {"lr": tune.uniform(0, 1), "batch_size": 32, "model": {"layers": tune.choice([2])}}
    space["model"]["name"] = "mlp"
    driven = Driven(tmp_path, space=space)
    config = driven.search.suggest("t")
    assert config == {
        "lr": driven.trials[0].params["lr"],
        "batch_size": 32,
        "model": {"layers": 2, "name": "mlp"},
    }
    assert config_of(driven.trials[0], driven.space) == config
