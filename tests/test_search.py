"""The search, driven by hand as Tune drives it, held against Ray's own."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Blame, Endings, Failure, Reason
from tune_jobs.engine.core.settings import SettingsError
from tune_jobs.engine.search.study_search import StudySearch, convert_space
from tune_jobs.engine.store.record import Record, failure_in, is_failed, reason_of
from tune_jobs.engine.store.study import STUDY_FILE, study_storage
from tune_jobs.engine.store.warm_start import retry_failed

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "layers": tune.choice([2, 3])}


class Driven:
    """A search with its scheduler's endings, driven by hand as Tune and the scheduler drive it."""

    def __init__(self, folder: Path, mode: str = "max", **kwargs: Any) -> None:
        goal = Goal("score", mode)
        if (folder / STUDY_FILE).exists():
            self.record = Record.open(folder, Event())
        else:
            self.record = Record.create(folder, "sweep", goal, Event())
        self.endings = Endings()
        space = convert_space(kwargs.pop("space", SPACE))
        sampler = kwargs.pop("sampler", None) or optuna.samplers.RandomSampler()
        self.search = StudySearch(space, goal, self.record, sampler, 0, self.endings, **kwargs)

    @property
    def trials(self) -> list[FrozenTrial]:
        """What is recorded."""
        return self.record.study.get_trials()

    @property
    def shown(self) -> list[FrozenTrial]:
        """What the sampler is shown."""
        return self.search._ot_study.get_trials()

    def report(self, trial_id: str, *scores: float, reason: Reason | None = None) -> None:
        """Report epoch by epoch; the reason goes with the last."""
        for epoch, score in enumerate(scores, 1):
            stop = reason if epoch == len(scores) else None
            self.record.report(trial_id, score, result(epoch, score), stop)
            if stop is None:
                self.search.on_trial_result(trial_id, result(epoch, score))
            else:
                self.endings.reasons[trial_id] = stop

    def run(self, trial_id: str, *scores: float, reason: Reason | None = None) -> FrozenTrial:
        """A whole trial."""
        self.search.suggest(trial_id)
        self.report(trial_id, *scores, reason=reason)
        last = result(len(scores), scores[-1], done=True) if scores else None
        self.search.on_trial_complete(trial_id, last)
        return self.record.trial(trial_id)

    def fail(self, trial_id: str, *scores: float, failure: Failure) -> FrozenTrial:
        """A whole trial that dies."""
        self.search.suggest(trial_id)
        self.report(trial_id, *scores)
        self.endings.failures[trial_id] = failure
        self.search.on_trial_complete(trial_id, None, error=True)
        return self.record.trial(trial_id)


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


def test_suggested_config_is_the_trial_of_the_study(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    config = driven.search.suggest("abc")
    (trial,) = driven.trials
    assert config == trial.params == driven.search.config_of(trial)
    assert config.keys() == SPACE.keys()
    assert trial.user_attrs["trial_id"] == "abc"
    assert trial.state == TrialState.RUNNING


def test_define_by_run_space_is_searched(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("x", 0, 1)
        return {"constant": 7}

    driven = Driven(tmp_path, space=space)
    config = driven.search.suggest("t")
    assert config == {"constant": 7, "x": driven.trials[0].params["x"]}
    assert driven.search.config_of(driven.trials[0]) == config


@pytest.mark.parametrize(("mode", "best"), [("max", 0.9), ("min", 0.2)])
def test_complete_trial_has_its_best_epochs_value(mode: str, best: float, tmp_path: Path) -> None:
    driven = Driven(tmp_path, mode)
    driven.run("t", 0.5, 0.9, 0.2, 0.7, reason=Reason.LAST_EPOCH)
    for (trial,) in (driven.trials, driven.shown):
        assert trial.state == TrialState.COMPLETE
        assert trial.value == best
        assert trial.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.2, 4: 0.7}
    assert driven.record.study.best_value == best
    assert driven.trials[0].user_attrs == {"trial_id": "t", "reason": "last epoch"}


def test_stock_search_tells_the_last_epochs_value() -> None:
    stock = make_stock()
    drive(stock, "t", 0.5, 0.9, 0.7)
    (trial,) = stock._ot_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.7)
    assert trial.intermediate_values == {1: 0.5, 2: 0.9}


def test_trial_stopped_by_asha_is_pruned_with_its_whole_curve(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.run("t", 0.5, 0.4, 0.3, reason=Reason.ASHA)
    for (trial,) in (driven.trials, driven.shown):
        assert (trial.state, trial.value) == (TrialState.PRUNED, 0.3)
        assert trial.intermediate_values == {1: 0.5, 2: 0.4, 3: 0.3}
    assert driven.trials[0].user_attrs["reason"] == "asha"
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = driven.record.study.best_trial


def test_stock_search_tells_a_stopped_trial_as_complete_without_its_last_score() -> None:
    stock = make_stock()
    drive(stock, "t", 0.5, 0.4, 0.3)
    (trial,) = stock._ot_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.3)
    assert 3 not in trial.intermediate_values


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_diverged_trial_is_recorded_with_its_finite_curve_and_shown_without(
    score: float, tmp_path: Path
) -> None:
    driven = Driven(tmp_path)
    driven.run("t", 0.5, score, reason=Reason.NAN)
    (trial,), (shown,) = driven.trials, driven.shown
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.5})
    assert trial.user_attrs["reason"] == "nan"
    assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.PRUNED, None, {})


def test_trial_that_only_reports_nan_is_pruned_without_a_value(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t", math.nan, reason=Reason.NAN)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, None, {})


def test_stock_search_leaves_a_trial_with_nan_running() -> None:
    stock = make_stock()
    drive(stock, "t", 0.5, math.nan)
    (trial,) = stock._ot_study.get_trials()
    assert trial.state == TrialState.RUNNING


OOM = Failure(Reason.OUT_OF_MEMORY, Blame.TRIAL, "out of memory; try more", "Traceback ...")


def test_failed_trial_is_recorded_with_its_curve_and_shown_pruned_without_values(
    tmp_path: Path,
) -> None:
    driven = Driven(tmp_path)
    trial = driven.fail("t", 0.5, 0.9, failure=OOM)
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.5, 2: 0.9})
    assert is_failed(trial)
    assert failure_in(trial) == OOM
    assert trial.user_attrs["reason"] == "oom"
    assert trial.user_attrs["error"] == "out of memory; try more"
    (shown,) = driven.shown
    assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.PRUNED, None, {})


def test_stock_search_tells_a_crash_as_fail() -> None:
    stock = make_stock()
    stock.suggest("t")
    stock.on_trial_complete("t", None, error=True)
    assert stock._ot_study.get_trials()[0].state == TrialState.FAIL  # which samplers leave out


def test_sampler_keeps_away_from_where_trials_crashed(tmp_path: Path) -> None:
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
        driven.endings.failures[trial_id] = OOM
        driven.search.on_trial_complete(trial_id, None, error=True)

    space = {"x": tune.uniform(0, 1)}
    driven = Driven(tmp_path, space=space, sampler=optuna.samplers.TPESampler())
    stock = OptunaSearch(
        OptunaSearch.convert_search_space(space), metric="score", mode="max", seed=0
    )
    ours = num_crashes(driven.search, crash_ours)
    theirs = num_crashes(stock, lambda trial_id: stock.on_trial_complete(trial_id, error=True))
    assert ours < theirs


def test_trial_whose_storage_failed_has_not_ended(tmp_path: Path) -> None:
    full = Failure("OSError", Blame.STORAGE, "no space left on device")
    assert Driven(tmp_path).fail("t", 0.5, failure=full).state == TrialState.RUNNING


def test_trial_that_ends_by_itself_is_complete(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t", 0.5, 0.6)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.6)


def test_trial_that_ends_and_has_reported_nothing_has_failed(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t")
    assert trial.state == TrialState.PRUNED
    assert is_failed(trial)
    assert trial.user_attrs["reason"] == "reported nothing"


def test_trial_that_reached_the_score_that_is_good_enough_is_complete(tmp_path: Path) -> None:
    trial = Driven(tmp_path).run("t", 0.5, 0.95, reason=Reason.GOOD_ENOUGH)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.95)


def test_unfinished_trials_are_pruned_and_finished_ones_left(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.run("done", 0.5)
    driven.search.suggest("cut")
    driven.report("cut", 0.8)
    driven.search.suggest("new")
    driven.search.end_unfinished(Reason.OTHER_GOOD_ENOUGH)
    done, cut, new = driven.trials
    assert [t.state for t in (done, cut, new)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
    ]
    assert cut.user_attrs["reason"] == new.user_attrs["reason"] == "another reached stop_at"
    assert cut.intermediate_values == {1: 0.8}
    assert driven.record.study.best_value == 0.5


def test_trial_is_told_once_however_often_it_ends(tmp_path: Path) -> None:
    ended: list[int] = []
    driven = Driven(tmp_path, on_trial_end=lambda trial: ended.append(trial.number))
    driven.run("t", 0.5)
    driven.search.on_trial_complete("t", result(2, 0.9, done=True))
    driven.search.end_unfinished(Reason.OTHER_GOOD_ENOUGH)
    assert ended == [0]
    assert driven.record.study.best_value == 0.5


def test_end_of_each_trial_is_announced_with_its_final_state(tmp_path: Path) -> None:
    ended: list[tuple[int, str]] = []

    def announce(trial: FrozenTrial) -> None:
        ended.append((trial.number, trial.state.name))

    driven = Driven(tmp_path, on_trial_end=announce)
    driven.run("a", 0.5)
    driven.run("b", 0.1, reason=Reason.ASHA)
    assert ended == [(0, "COMPLETE"), (1, "PRUNED")]


def test_constants_of_the_space_are_in_every_config_also_nested(tmp_path: Path) -> None:
    space = {"lr": tune.uniform(0, 1), "batch_size": 32, "model": {"layers": tune.choice([2])}}
    space["model"]["name"] = "mlp"
    driven = Driven(tmp_path, space=space)
    config = driven.search.suggest("t")
    assert config == {
        "lr": driven.trials[0].params["lr"],
        "batch_size": 32,
        "model": {"layers": 2, "name": "mlp"},
    }
    assert driven.search.config_of(driven.trials[0]) == config


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
@pytest.mark.parametrize("is_resumed", [False, True])
def test_sampler_that_has_tried_everything_ends_the_search(
    sampler_type: str, is_resumed: bool, tmp_path: Path
) -> None:
    def make_driven() -> Driven:
        if sampler_type == "grid":
            sampler: Any = optuna.samplers.GridSampler({"x": [1, 2]}, seed=0)
        else:
            with pytest.warns(optuna.exceptions.ExperimentalWarning):
                sampler = optuna.samplers.BruteForceSampler(seed=0)
        return Driven(tmp_path, space={"x": tune.choice([1, 2])}, sampler=sampler)

    driven = make_driven()
    driven.run("a", 0.5)
    if is_resumed:
        driven = make_driven()
    driven.run("b", 0.6)
    if is_resumed:
        driven = make_driven()
    assert driven.search.suggest("c") == Searcher.FINISHED
    assert [t.state for t in driven.trials] == [TrialState.COMPLETE] * 2
    assert sorted(t.params["x"] for t in driven.trials) == [1, 2]


def test_stock_search_raises_when_its_sampler_has_tried_everything() -> None:
    space = OptunaSearch.convert_search_space({"x": tune.choice([1])})
    sampler = optuna.samplers.GridSampler({"x": [1]}, seed=0)
    stock = OptunaSearch(space, metric="score", mode="max", sampler=sampler)
    drive(stock, "a", 0.5)  # raises `Study.stop` inside, which is swallowed
    assert stock.suggest("b") is not None  # and goes on with what it has tried


def test_snapshot_of_a_define_by_run_search_can_be_saved(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    driven = Driven(tmp_path, space=space)
    driven.search.save(str(tmp_path / "state"))
    assert driven.search.suggest("t") is not None
    stock = OptunaSearch(space, metric="score", mode="max")
    with pytest.raises(AttributeError, match="pickle local object"):
        stock.save(str(tmp_path / "stock"))


def test_record_goes_with_the_snapshots_where_results_go_to_a_url(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    driven = Driven(tmp_path, goes_with_snapshots=True)
    driven.run("t", 0.5)
    driven.search.save(str(staging / "state"))
    assert (staging / STUDY_FILE).read_bytes() == driven.record.file.read_bytes()


SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=3),
    "random": optuna.samplers.RandomSampler,
    "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=3),
    "qmc": lambda: quiet(optuna.samplers.QMCSampler),
}


def quiet(make: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(seed=0)


@pytest.mark.parametrize("name", ["tpe", "random", "nsga2", "qmc"])
def test_search_that_was_killed_at_any_trial_draws_what_one_draws_that_was_not(
    name: str, tmp_path: Path
) -> None:
    def draw(folder: Path, kill_before: set[int]) -> list[dict[str, Any]]:
        folder.mkdir()
        driven = Driven(folder, sampler=SAMPLERS[name]())
        for number in range(12):
            if number in kill_before:  # nothing but the record is left
                driven = Driven(folder, sampler=SAMPLERS[name]())
            trial_id = str(number)
            score = float(driven.search.suggest(trial_id)["lr"])
            driven.report(trial_id, score, reason=Reason.ASHA if number % 3 else None)
            driven.search.on_trial_complete(trial_id, result(1, score, done=True))
        return [trial.params for trial in driven.trials]

    assert draw(tmp_path / "killed", {1, 4, 5, 9}) == draw(tmp_path / "whole", set())


def run_mixed_sweep(folder: Path) -> Driven:
    """Trials that end in every way, one that runs, and configs that were given or retried."""
    driven = Driven(folder, space={"x": tune.uniform(0, 1)})
    driven.record.enqueue({"x": 0.25})
    driven.run("complete", 0.5, 0.9, 0.7, reason=Reason.LAST_EPOCH)
    driven.run("asha", 0.5, 0.4, reason=Reason.ASHA)
    driven.run("nan", 0.8, math.nan, reason=Reason.NAN)
    driven.fail("oom", 0.6, failure=OOM)
    driven.fail("raise", failure=Failure("KeyError", Blame.TRIAL, "KeyError: lr", "Traceback"))
    retry_failed(driven.record)
    driven.run("retried", 0.7, reason=Reason.LAST_EPOCH)
    driven.search.suggest("running")
    driven.report("running", 0.3, 0.4)
    return driven


def test_sweep_can_be_gone_on_with_wherever_its_driver_died(tmp_path: Path) -> None:
    """The record is cut after each of its lines in turn: whatever was entered is kept, what was
    decided is carried out, and the next trial is what it would have been."""
    (tmp_path / "whole").mkdir()
    whole = run_mixed_sweep(tmp_path / "whole")
    lines = whole.record.file.read_bytes().splitlines(keepends=True)
    ended = {trial.number: trial for trial in whole.trials if trial.state.is_finished()}
    assert len(lines) > 40
    for num_lines in range(1, len(lines) + 1):
        folder = tmp_path / str(num_lines)
        folder.mkdir()
        (folder / STUDY_FILE).write_bytes(b"".join(lines[:num_lines]))
        before = optuna.load_study(study_name="sweep", storage=study_storage(folder)).get_trials()
        driven = Driven(folder, space={"x": tune.uniform(0, 1)})
        driven.record.mend_curves("score")
        driven.search.end_decided()
        for then, now in zip(before, driven.trials, strict=True):
            assert then.intermediate_values.items() <= now.intermediate_values.items()
            if now.state.is_finished():
                known = ended[now.number]
                assert (now.state, now.values, now.params) == (
                    known.state,
                    known.values,
                    known.params,
                )
                assert now.user_attrs == known.user_attrs
                assert failure_in(now) == failure_in(known)
        for trial in driven.trials:  # what is not decided goes on
            if trial.state == TrialState.RUNNING:
                assert reason_of(trial) is None
                driven.search.config_of(trial)
        crashed = {
            number for number, trial in ended.items() if trial.user_attrs["reason"] in CRASHES
        }
        for trial, shown in zip(driven.record.started(), driven.shown, strict=True):
            assert not (trial.number in crashed and shown.intermediate_values)
        driven.search.suggest("next")


CRASHES = ("nan", "oom", "KeyError")


def test_given_config_is_tried_also_where_a_grid_has_been_tried_to_its_end(tmp_path: Path) -> None:
    def make_driven() -> Driven:
        sampler = optuna.samplers.GridSampler({"x": [1, 2]}, seed=0)
        return Driven(tmp_path, space={"x": tune.choice([1, 2])}, sampler=sampler)

    driven = make_driven()
    driven.run("a", 0.5)
    driven.record.enqueue({"x": 1})
    driven.run("given", 0.5)  # Optuna's grid stumbles over it
    driven.run("b", 0.5)
    driven.record.enqueue({"x": 2})
    driven = make_driven()
    assert driven.run("late", 0.6).params == {"x": 2}
    assert make_driven().search.suggest("c") == Searcher.FINISHED


def test_stock_search_without_its_snapshot_tries_its_first_config_again() -> None:
    killed = make_stock()
    first = killed.suggest("a")
    anew = make_stock()  # the same seed and all that is in the database, but no snapshot
    anew._ot_study.add_trials(killed._ot_study.get_trials())
    assert anew.suggest("b") == first


def test_stock_searches_in_one_storage_mix_and_take_over_the_direction() -> None:
    storage = optuna.storages.InMemoryStorage()
    space = OptunaSearch.convert_search_space(SPACE)
    first = OptunaSearch(space, metric="score", mode="max", storage=storage)
    drive(first, "t", 0.5)
    second = OptunaSearch(space, metric="loss", mode="min", storage=storage)
    assert len(second._ot_study.trials) == 1
    assert second._ot_study.direction == optuna.study.StudyDirection.MAXIMIZE
