"""The search after a resume, compared with Ray's own."""

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from driven import OOM, SPACE, Driven, drive_stock, make_stock, result
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from pyarrow import fs
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import STUDY_FILE
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, outcome_of
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.execution.queue import TrialQueue
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.store.configs import config_of
from tune_jobs.engine.store.entries import decision_of
from tune_jobs.engine.store.folder import SweepFolder
from tune_jobs.engine.store.study import study_storage
from tune_jobs.engine.store.warm_start import retry_failed


@pytest.mark.parametrize("sampler_type", ["grid", "brute force"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_search_ends_when_exhausted(sampler_type: str, is_resumed: bool, tmp_path: Path) -> None:
    """A sampler that has tried everything ends the search, after a resume too."""

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


def test_stock_search_exhausted() -> None:
    """It repeats what it has tried."""
    space = OptunaSearch.convert_search_space({"x": tune.choice([1])})
    sampler = optuna.samplers.GridSampler({"x": [1]}, seed=0)
    stock = OptunaSearch(space, metric="score", mode="max", sampler=sampler)
    drive_stock(stock, "a", 0.5)  # raises `Study.stop` inside, which is swallowed
    assert stock.suggest("b") is not None


def make_queue(driven: Driven, uri: str) -> TrialQueue:
    """The queue of a sweep in a folder or at a URL."""
    local = driven.record.file.parent
    folder = SweepFolder(uri, fs.LocalFileSystem(), str(local), local)
    scheduler = EpochScheduler(Goal("score", "max"), driven.record, Settings())
    sweep: Any = SimpleNamespace(space=driven.space, folder=folder)
    stopper: Any = SimpleNamespace(outcome=None, holds_back=False)
    return TrialQueue(driven.search, scheduler, driven.record, sweep, lambda: 1, stopper)


def test_snapshot_of_define_by_run(tmp_path: Path) -> None:
    """The stock search cannot save the space; ours saves nothing, as the record holds it all."""

    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    driven = Driven(tmp_path, space=space)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    queue = make_queue(driven, uri=str(tmp_path))
    queue.save_to_dir(str(snapshot), "session")
    pickle.dumps(queue)  # Tune pickles it into `tuner.pkl`
    pickle.dumps(driven.search)
    assert list(snapshot.iterdir()) == []
    assert driven.search.suggest("t") is not None
    stock = OptunaSearch(space, metric="score", mode="max")
    with pytest.raises(AttributeError, match="pickle local object"):
        stock.save(str(tmp_path / "stock"))


def test_snapshot_holds_remote_record(tmp_path: Path) -> None:
    """Where results are stored at a URL, Tune's snapshots take the record there."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    driven = Driven(tmp_path)
    driven.run("t", 0.5)
    make_queue(driven, uri="s3://bucket/sweep").save_to_dir(str(snapshot), "session")
    assert (snapshot / STUDY_FILE).read_bytes() == driven.record.file.read_bytes()


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
def test_search_killed_draws_the_same(name: str, tmp_path: Path) -> None:
    """A search that is killed at any trial draws what one draws that is not."""

    def draw(folder: Path, kill_before: set[int]) -> list[dict[str, Any]]:
        folder.mkdir()
        driven = Driven(folder, sampler=SAMPLERS[name]())
        for number in range(12):
            if number in kill_before:  # only the record is left
                driven = Driven(folder, sampler=SAMPLERS[name]())
            trial_id = str(number)
            score = float(driven.search.suggest(trial_id)["lr"])
            driven.report(trial_id, score, stop=Kind.ASHA if number % 3 else None)
            driven.search.on_trial_complete(trial_id, result(1, score, done=True))
        return [trial.params for trial in driven.trials]

    assert draw(tmp_path / "killed", {1, 4, 5, 9}) == draw(tmp_path / "whole", set())


def run_mixed_sweep(folder: Path) -> Driven:
    """Run trials that end in every way, one that still runs, and given and retried configs."""
    driven = Driven(folder, space={"x": tune.uniform(0, 1)})
    driven.record.enqueue({"x": 0.25})
    driven.run("complete", 0.5, 0.9, 0.7, stop=Kind.LAST_EPOCH)
    driven.run("asha", 0.5, 0.4, stop=Kind.ASHA)
    driven.run("nan", 0.8, math.nan, stop=Kind.NAN)
    driven.fail("oom", 0.6, failure=OOM)
    driven.fail("raise", failure=Outcome("KeyError", Cause.TRIAL, "KeyError: lr", "Traceback"))
    retry_failed(driven.record)
    driven.run("retried", 0.7, stop=Kind.LAST_EPOCH)
    driven.search.suggest("running")
    driven.report("running", 0.3, 0.4)
    return driven


def test_search_resumed_from_any_line(tmp_path: Path) -> None:
    """The record is cut after each of its lines in turn: whatever was entered is kept, what was
    decided is carried out, and the search continues."""
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
        driven.record.repair_curves("score")
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
                timed = {"duration_s": None}  # until then, by whichever driver
                assert {**now.user_attrs, **timed} == {**known.user_attrs, **timed}
                assert outcome_of(now) == outcome_of(known)
        for trial in driven.trials:  # a trial that is not decided continues
            if trial.state == TrialState.RUNNING:
                assert decision_of(trial) is None
                assert config_of(trial, driven.space) == trial.params
        crashed = {
            number for number, trial in ended.items() if trial.user_attrs["reason"] in CRASHES
        }
        for trial, shown in zip(driven.record.started(), driven.shown, strict=True):
            assert not (trial.number in crashed and shown.intermediate_values)
        driven.search.suggest("next")


CRASHES = ("nan", "oom", "KeyError")


def test_enqueued_config_after_grid_exhausted(tmp_path: Path) -> None:
    def make_driven() -> Driven:
        sampler = optuna.samplers.GridSampler({"x": [1, 2]}, seed=0)
        return Driven(tmp_path, space={"x": tune.choice([1, 2])}, sampler=sampler)

    driven = make_driven()
    driven.record.enqueue(driven.run("a", 0.5).params)
    driven.run("given", 0.5)  # Optuna's grid fails on a config that it has not given
    driven.run("b", 0.5)
    driven.record.enqueue({"x": 2})
    driven = make_driven()
    assert driven.run("late", 0.6).params == {"x": 2}
    assert make_driven().search.suggest("c") == Searcher.FINISHED


def test_stock_search_repeats_first_config() -> None:
    """Without its snapshot, a resumed search draws from the start of its seed again."""
    killed = make_stock()
    first = killed.suggest("a")
    anew = make_stock()
    anew._ot_study.add_trials(killed._ot_study.get_trials())
    assert anew.suggest("b") == first


def test_stock_searches_mix_in_storage() -> None:
    """The second search gets the trials of the first, and its direction."""
    storage = optuna.storages.InMemoryStorage()
    space = OptunaSearch.convert_search_space(SPACE)
    first = OptunaSearch(space, metric="score", mode="max", storage=storage)
    drive_stock(first, "t", 0.5)
    second = OptunaSearch(space, metric="loss", mode="min", storage=storage)
    assert len(second._ot_study.trials) == 1
    assert second._ot_study.direction == optuna.study.StudyDirection.MAXIMIZE
