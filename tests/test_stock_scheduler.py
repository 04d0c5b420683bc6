"""Tune's own schedulers in a sweep: `StockScheduler`, compared with the bare schedulers."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tune import (
    FakeLedger,
    FakeTrial,
    RecordingLedger,
    add_trials,
    complete,
    report,
    settings_of,
)
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
    TrialScheduler,
)
from ray.tune.schedulers.pb2 import PB2
from stock_sweep import (
    CONTINUE,
    MAKERS,
    MAXIMIZE,
    NOTHING_PENDING,
    STOP,
    make_asha,
    make_median,
    scored,
    state_of,
)

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Outcome
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.search.stock import StockScheduler, check_scheduler


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", range(3))
def test_stock_scheduler_decides_like_bare(seed: int, name: str, mode: str) -> None:
    """On finite curves it takes the decisions of the scheduler that it wraps."""
    rng = random.Random(seed)
    ledger = FakeLedger()
    ours = StockScheduler(Goal("score", mode), ledger, settings_of(), MAKERS[name]())
    bare = MAKERS[name](metric="score", mode=mode)
    names = [f"t{number}" for number in range(20)]
    running = {trial.trial_id: trial for trial in add_trials(ours, *names)}
    for trial in running.values():
        bare.on_trial_add(None, trial)
    epochs = dict.fromkeys(names, 0)
    stopped = set()
    while running:
        trial = running[rng.choice(sorted(running))]
        epochs[trial.trial_id] += 1
        result = {"epoch": epochs[trial.trial_id], "score": rng.gauss(0, 1)}
        decision = ours.on_trial_result(NOTHING_PENDING, trial, dict(result))
        assert decision == bare.on_trial_result(NOTHING_PENDING, trial, dict(result))
        if decision == STOP:
            stopped.add(trial.trial_id)
        if decision == STOP or result["epoch"] == 20:  # by itself
            for scheduler in (ours, bare):
                scheduler.on_trial_complete(NOTHING_PENDING, trial, dict(result))
            del running[trial.trial_id]
    assert ledger.kinds == dict.fromkeys(stopped, "scheduler")
    assert bool(stopped) == (name != "fifo")


def test_stock_scheduler_records_before_acting() -> None:
    """Each result is in the record, with the decision on it, before Tune is given the decision."""
    ledger = RecordingLedger()
    scheduler = StockScheduler(MAXIMIZE, ledger, settings_of(), make_asha())
    good, bad = add_trials(scheduler, "good", "bad")
    ledger.entered.append(report(scheduler, good, 1, 0.9))
    ledger.entered.append(report(scheduler, bad, 1, 0.1))
    assert ledger.entered == [
        ("good", 0.9, 1, None, {}),
        CONTINUE,
        ("bad", 0.1, 1, "scheduler", {}),
        STOP,
    ]
    assert ledger.decisions == {"bad": Outcome("scheduler", Cause.JUDGED)}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", MAKERS)
def test_stock_scheduler_stops_diverged_trial(name: str, score: float) -> None:
    ledger = FakeLedger()
    scheduler = StockScheduler(MAXIMIZE, ledger, settings_of(Halving(1)), MAKERS[name]())
    (trial,) = add_trials(scheduler, "t")
    assert report(scheduler, trial, 1, score) == STOP  # though it is the last epoch, too
    assert ledger.kinds == {"t": "nan"}


@pytest.mark.parametrize("name", MAKERS)
def test_stock_scheduler_last_epoch(name: str) -> None:
    ledger = FakeLedger()
    scheduler = StockScheduler(MAXIMIZE, ledger, settings_of(Halving(3)), MAKERS[name]())
    (trial,) = add_trials(scheduler, "t")
    decisions = [scheduler.on_trial_result(NOTHING_PENDING, trial, scored(n)) for n in (1, 2, 3)]
    assert decisions == [CONTINUE, CONTINUE, STOP]
    assert ledger.kinds == {"t": "last epoch"}


@pytest.mark.parametrize("name", MAKERS)
def test_stock_scheduler_stop_at(name: str) -> None:
    ledger = FakeLedger()
    scheduler = StockScheduler(MAXIMIZE, ledger, settings_of(Halving(9), 0.9), MAKERS[name]())
    (trial,) = add_trials(scheduler, "t")
    assert report(scheduler, trial, 1, 0.89) == CONTINUE
    assert report(scheduler, trial, 2, 0.9) == STOP
    assert ledger.kinds == {"t": "stop_at"}
    assert not scheduler.has_reached
    complete(scheduler, trial, {"epoch": 2, "score": 0.9})
    assert scheduler.has_reached


@pytest.mark.parametrize("time_attr", ["epoch", "training_iteration"])
def test_stock_scheduler_counts_epochs(time_attr: str) -> None:
    """Every third epoch is validated, and `training_iteration` counts the validations."""
    asha = make_asha(time_attr=time_attr, grace_period=3)
    scheduler = StockScheduler(MAXIMIZE, FakeLedger(), settings_of(), asha)
    bare = make_asha(time_attr="training_iteration", grace_period=3, metric="score", mode="max")
    (trial,) = add_trials(scheduler, "t")
    bare.on_trial_add(None, trial)
    for iteration in range(1, 7):
        result = {"epoch": 3 * iteration, "training_iteration": iteration, "score": 3 * iteration}
        for each in (scheduler, bare):
            assert each.on_trial_result(None, trial, dict(result)) == CONTINUE
    assert state_of(asha) == {3: {"t": 3}, 9: {"t": 9}, 27: {}, 81: {}}
    assert state_of(bare) == {3: {"t": 9}, 9: {}, 27: {}, 81: {}}


def test_stock_scheduler_counts_reports() -> None:
    """A plain function reports no epoch; the number of its reports counts."""
    asha = make_asha(time_attr="training_iteration")
    scheduler = StockScheduler(MAXIMIZE, FakeLedger(), settings_of(), asha)
    (trial,) = add_trials(scheduler, "t")
    for iteration in (1, 2, 3):
        result = {"training_iteration": iteration, "score": iteration}
        assert scheduler.on_trial_result(None, trial, result) == CONTINUE
    assert state_of(asha) == {1: {"t": 1}, 3: {"t": 3}, 9: {}, 27: {}, 81: {}}


def test_stock_scheduler_keeps_slot() -> None:
    """A trial that the median rule would pause, to give others a turn, continues."""
    pending = FakeTrial("p", Trial.PENDING)
    controller = SimpleNamespace(get_live_trials=lambda: [pending])
    ledger = FakeLedger()
    scheduler = StockScheduler(MAXIMIZE, ledger, settings_of(), make_median())
    bare = make_median(metric="score", mode="max")
    (trial,) = add_trials(scheduler, "t")
    bare.on_trial_add(None, trial)
    assert scheduler.on_trial_result(controller, trial, scored(2)) == CONTINUE
    assert bare.on_trial_result(controller, trial, scored(2)) == TrialScheduler.PAUSE
    assert ledger.decisions == {}


def test_stock_scheduler_records_failure(tmp_path: Path) -> None:
    ledger = FakeLedger()
    scheduler = StockScheduler(MAXIMIZE, ledger, settings_of(), make_asha())
    (trial,) = add_trials(scheduler, "t")
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(KeyError("lr")))
    trial.pickled_error_file = str(file)
    scheduler.on_trial_error(None, trial)
    outcome = ledger.decisions["t"]
    assert (outcome.kind, outcome.cause) == ("KeyError", Cause.TRIAL)


def test_stock_scheduler_removed_trial() -> None:
    """A trial that ends before it runs is forgotten, as by the bare scheduler."""
    asha = make_asha()
    scheduler = StockScheduler(MAXIMIZE, FakeLedger(), settings_of(), asha)
    (trial,) = add_trials(scheduler, "t")
    scheduler.on_trial_remove(None, trial)
    assert asha._trial_info == {}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_stock_scheduler_ignores_diverged_score(score: float) -> None:
    """A trial that diverged takes no place among the others' scores."""
    asha = make_asha()
    scheduler = StockScheduler(MAXIMIZE, FakeLedger(), settings_of(), asha)
    bad, good, better = add_trials(scheduler, "bad", "good", "better")
    assert report(scheduler, bad, 1, score) == STOP
    scheduler.on_trial_complete(None, bad, scored(1, score))
    assert state_of(asha)[1] == {}
    assert report(scheduler, good, 1, 0.5) == CONTINUE
    assert report(scheduler, better, 1, 0.9) == CONTINUE


def make_replay(folder: Path) -> Any:
    file = folder / "policy.txt"
    policy = ["t0", "t1", 1, 1, {"lr": 0.1}, {"lr": 0.2}]
    file.write_text(json.dumps(policy) + "\n")
    return PopulationBasedTrainingReplay(str(file))


REFUSED: dict[str, Callable[[Path], Any]] = {
    "HyperBandScheduler": lambda folder: HyperBandScheduler(),
    "HyperBandForBOHB": lambda folder: HyperBandForBOHB(),
    "PopulationBasedTraining": lambda folder: PopulationBasedTraining(
        hyperparam_mutations={"lr": [0.1, 0.2]}
    ),
    "PopulationBasedTrainingReplay": make_replay,
    "PB2": lambda folder: PB2(hyperparam_bounds={"lr": [0, 1]}),
    "ResourceChangingScheduler": lambda folder: ResourceChangingScheduler(),
}
REASONS = {
    "HyperBandScheduler": "pauses trials until whole brackets are full",
    "HyperBandForBOHB": "pauses trials until whole brackets are full",
    "PopulationBasedTraining": "changes the config of running trials",
    "PopulationBasedTrainingReplay": "changes the config of running trials",
    "PB2": "changes the config of running trials",
    "ResourceChangingScheduler": "changes the resources of running trials",
}
RULE = "scheduler must be one of Tune's that only continue or stop trials, got "
KNOWN = "give ASHAScheduler, MedianStoppingRule or FIFOScheduler."


def refusal_of(scheduler: Any) -> str:
    with pytest.raises(SettingsError) as error:
        check_scheduler(scheduler, MAXIMIZE)
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_scheduler_refused_by_name(name: str, tmp_path: Path) -> None:
    message = f"{RULE}{name}, which {REASONS[name]}; {KNOWN}"
    assert refusal_of(REFUSED[name](tmp_path)) == message


@pytest.mark.parametrize("given", ["asha", 3, ASHAScheduler])
def test_scheduler_refused_non_scheduler(given: Any) -> None:
    assert refusal_of(given) == f"{RULE}{given!r}; {KNOWN}"


@pytest.mark.parametrize("kind", [ASHAScheduler, MedianStoppingRule])
@pytest.mark.parametrize(
    ("metric", "mode", "has"),
    [
        ("loss", "max", "loss (max)"),
        ("score", "min", "score (min)"),
        ("loss", None, "loss (None)"),
        (None, "min", "None (min)"),
    ],
)
def test_scheduler_refused_other_goal(
    kind: type[Any], metric: str | None, mode: str | None, has: str
) -> None:
    assert refusal_of(kind(metric=metric, mode=mode)) == (
        f"scheduler optimizes {has}, and the sweep score (max); "
        f"leave metric and mode of {kind.__name__} out."
    )


@pytest.mark.parametrize("kind", [ASHAScheduler, MedianStoppingRule])
@pytest.mark.parametrize("metric", ["score", None])
@pytest.mark.parametrize("mode", ["min", None])
def test_scheduler_accepted_same_goal(
    kind: type[Any], metric: str | None, mode: str | None
) -> None:
    """It is given what it lacks."""
    goal = Goal("score", "min")
    scheduler = kind(metric=metric, mode=mode)
    check_scheduler(scheduler, goal)
    check_scheduler(FIFOScheduler(), goal)
    StockScheduler(goal, FakeLedger(), settings_of(), scheduler)
    assert (scheduler.metric, scheduler._mode) == ("score", "min")
