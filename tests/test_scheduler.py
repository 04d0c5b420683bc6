"""The schedulers, compared with Ray's own where that one is right and where it is not."""

import errno
import math
import random
from pathlib import Path
from typing import Any

import pytest
from fake_tune import (
    FakeLedger,
    FakeTrial,
    RecordingLedger,
    add_trials,
    complete,
    gains_at_rungs,
    recorded,
    report,
    settings_of,
)
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.search.asha import PromotionASHA, StoppingASHA
from tune_jobs.engine.search.epochs import EpochScheduler

ASHAS = [PromotionASHA, StoppingASHA]
ALL = [*ASHAS, EpochScheduler]
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
MAXIMIZE = Goal("score", "max")


def make(
    kind: type[EpochScheduler],
    ledger: Any,
    halving: Halving,
    goal: Goal = MAXIMIZE,
    stop_at: float | None = None,
) -> Any:
    return kind(goal, ledger, settings_of(halving, stop_at))


def make_stock(mode: str, halving: Halving) -> Any:
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="score",
        mode=mode,
        max_t=halving.max_epochs,
        grace_period=halving.grace_epochs,
        reduction_factor=halving.reduction_factor,
        stop_last_trials=True,
    )


def stock_rungs(stock: Any) -> list[float]:
    return [milestone for milestone, _ in reversed(stock._brackets[0]._rungs)]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    "halving",
    [Halving(10, 1, 3), Halving(20, 2, 2), Halving(17, 1, 4), Halving(40, 3, 3), Halving(1, 1, 3)],
)
@pytest.mark.parametrize("seed", range(4))
def test_stopping_asha_decides_like_stock(seed: int, halving: Halving, mode: str) -> None:
    """On finite curves without gaps both take the same decisions."""
    rng = random.Random(seed)
    ledger = FakeLedger()
    ours = StoppingASHA(Goal("score", mode), ledger, settings_of(halving))
    stock = make_stock(mode, halving)
    assert ours.rungs.epochs == stock_rungs(stock)
    names = [f"t{i}" for i in range(30)]
    running = {t.trial_id: t for t in add_trials(stock, *names)}
    add_trials(ours, *names)
    epochs = dict.fromkeys(names, 0)
    decisions = set()
    while running:  # trials report in any order, as they do in parallel
        trial = running[rng.choice(sorted(running))]
        epochs[trial.trial_id] += 1
        # rounded, so that there are ties
        result = {"epoch": epochs[trial.trial_id], "score": round(rng.gauss(0, 1), 1)}
        decision = ours.on_trial_result(None, trial, result)
        assert decision == stock.on_trial_result(None, trial, result)
        decisions.add(decision)
        if decision == STOP:
            for scheduler in (ours, stock):
                scheduler.on_trial_complete(None, trial, result)
            del running[trial.trial_id]
    assert STOP in decisions
    assert halving.max_epochs == 1 or set(ledger.kinds.values()) == {"asha", "last epoch"}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("kind", ASHAS)
def test_asha_stops_diverged_trial(mode: str, score: float, kind: type[StoppingASHA]) -> None:
    ledger = FakeLedger()
    asha = make(kind, ledger, Halving(10), Goal("score", mode))
    (trial,) = add_trials(asha, "t")
    assert report(asha, trial, 1, score) == STOP
    assert ledger.kinds == {"t": "nan"}
    assert not any(gains_at_rungs(asha.rungs).values())


def test_stock_asha_continues_nan() -> None:
    stock = make_stock("max", Halving(10, 1, 3))
    good, bad = add_trials(stock, "good", "bad")
    report(stock, good, 1, 0.9)
    assert report(stock, bad, 1, math.nan) == CONTINUE


@pytest.mark.parametrize("kind", ASHAS)
def test_asha_nan_at_last_epoch(kind: type[StoppingASHA]) -> None:
    """The trial has diverged; it is not complete."""
    ledger = FakeLedger()
    asha = make(kind, ledger, Halving(3))
    (trial,) = add_trials(asha, "t")
    assert report(asha, trial, 3, math.nan) == STOP
    assert ledger.kinds == {"t": "nan"}


@pytest.mark.parametrize("kind", ASHAS)
def test_asha_results_skip_a_rung(kind: type[StoppingASHA]) -> None:
    """No score enters a rung below the highest one that its epoch has reached."""
    asha = make(kind, FakeLedger(), Halving(27, 1, 3))
    late, early = add_trials(asha, "late", "early")
    for epoch in (3, 4, 5):
        assert report(asha, late, epoch, 0.9) != STOP
    assert gains_at_rungs(asha.rungs) == {1: {}, 3: {"late": 0.9}, 9: {}, 27: {}}
    assert report(asha, early, 1, 0.5) != STOP


def test_stock_asha_results_skip_a_rung() -> None:
    """A late score enters a lower rung, and stops a trial that is compared with it there."""
    stock = make_stock("max", Halving(26, 1, 3))
    late, early = add_trials(stock, "late", "early")
    for epoch in (3, 4, 5):
        report(stock, late, epoch, 0.9)
    rungs = dict(stock._brackets[0]._rungs)
    assert rungs[1] == {"late": 0.9}  # a score of epoch 4
    assert report(stock, early, 1, 0.5) == STOP


@pytest.mark.parametrize("kind", ASHAS)
def test_asha_enters_each_rung_once(kind: type[StoppingASHA]) -> None:
    asha = make(kind, FakeLedger(), Halving(27, 1, 3))
    (trial,) = add_trials(asha, "t")
    for epoch in range(1, 10):
        report(asha, trial, epoch, epoch / 10)
    assert gains_at_rungs(asha.rungs) == {1: {"t": 0.1}, 3: {"t": 0.3}, 9: {"t": 0.9}, 27: {}}


def test_asha_spares_grace_epochs() -> None:
    ledger = FakeLedger()
    asha = make(StoppingASHA, ledger, Halving(20, grace_epochs=4))
    best, worst = add_trials(asha, "best", "worst")
    assert report(asha, best, 4, 1.0) == CONTINUE
    for epoch in (1, 2, 3):
        assert report(asha, worst, epoch, -1.0) == CONTINUE
    assert report(asha, worst, 4, -1.0) == STOP
    assert ledger.kinds == {"worst": "asha"}


@pytest.mark.parametrize(("mode", "good", "bad"), [("max", 0.9, 0.1), ("min", 0.1, 0.9)])
def test_asha_stops_worse_trial(mode: str, good: float, bad: float) -> None:
    ledger = FakeLedger()
    asha = make(StoppingASHA, ledger, Halving(10), Goal("score", mode))
    first, second = add_trials(asha, "first", "second")
    assert report(asha, first, 1, good) == CONTINUE
    assert report(asha, second, 1, bad) == STOP
    assert ledger.kinds == {"second": "asha"}


def test_rungs_lost_by_stock_asha() -> None:
    halving = Halving(243, 1, 3)
    assert make(StoppingASHA, FakeLedger(), halving).rungs.epochs == [1, 3, 9, 27, 81, 243]
    assert stock_rungs(make_stock("max", halving)) == [1, 3, 9, 27, 81]


@pytest.mark.parametrize("kind", ALL)
def test_scheduler_stops_at_last_epoch(kind: type[EpochScheduler]) -> None:
    ledger = FakeLedger()
    scheduler = make(kind, ledger, Halving(3))
    (trial,) = add_trials(scheduler, "t")
    assert STOP not in [report(scheduler, trial, epoch, 0.5) for epoch in (1, 2)]
    assert report(scheduler, trial, 3, 0.5) == STOP
    assert ledger.kinds == {"t": "last epoch"}


@pytest.mark.parametrize("kind", ASHAS)
def test_asha_loser_at_last_epoch(kind: type[StoppingASHA]) -> None:
    """A trial that loses at the last rung has been trained to its end all the same."""
    ledger = FakeLedger()
    asha = make(kind, ledger, Halving(3, 1, 3))
    best, worst = add_trials(asha, "best", "worst")
    report(asha, best, 3, 0.9)
    assert report(asha, worst, 3, 0.1) == STOP
    assert ledger.kinds["worst"] == "last epoch"
    assert asha.rungs.gains(3) == {"best": 0.9, "worst": 0.1}


def test_scheduler_without_last_epoch() -> None:
    ledger = FakeLedger()
    scheduler = EpochScheduler(MAXIMIZE, ledger, settings_of())
    (trial,) = add_trials(scheduler, "t")
    assert report(scheduler, trial, 10_000, 0.5) == CONTINUE
    assert ledger.decisions == {}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("mode", "almost", "enough"), [("max", 0.89, 0.9), ("min", 0.91, 0.9)])
def test_stop_at_ends_trial_then_sweep(
    mode: str, almost: float, enough: float, kind: type[EpochScheduler]
) -> None:
    ledger = FakeLedger()
    scheduler = make(kind, ledger, Halving(10), Goal("score", mode), stop_at=0.9)
    (trial,) = add_trials(scheduler, "t")
    assert report(scheduler, trial, 1, almost) != STOP
    assert report(scheduler, trial, 2, enough) == STOP
    assert ledger.kinds == {"t": "stop_at"}
    assert not scheduler.has_reached  # otherwise the sweep would end before the result is recorded
    complete(scheduler, trial, {"epoch": 2, "score": enough})
    assert scheduler.has_reached


def test_stop_at_not_reached() -> None:
    """A trial that ends otherwise does not end the sweep."""
    scheduler = make(EpochScheduler, FakeLedger(), Halving(1), stop_at=0.9)
    (trial,) = add_trials(scheduler, "t")
    report(scheduler, trial, 1, 0.5)
    complete(scheduler, trial, {"epoch": 1, "score": 0.5})
    assert not scheduler.has_reached


def test_decision_recorded_before_it_acts() -> None:
    """Each result is in the record, with the decision on it, before Tune is given the decision."""
    ledger = RecordingLedger()
    asha = make(StoppingASHA, ledger, Halving(10))
    good, bad = add_trials(asha, "good", "bad")
    ledger.entered.append(report(asha, good, 1, 0.9))
    ledger.entered.append(report(asha, bad, 1, 0.1))
    assert ledger.entered == [
        ("good", 0.9, 1, None, {}),
        CONTINUE,
        ("bad", 0.1, 1, "asha", {}),
        STOP,
    ]


@pytest.mark.parametrize("kind", ASHAS)
def test_asha_restored_in_any_order(kind: type[StoppingASHA]) -> None:
    """Its rungs hold what they held; nothing is decided again."""
    rng = random.Random(0)
    goal = Goal("score", "min")
    asha = make(kind, FakeLedger(), Halving(9), goal)
    curves: dict[str, dict[int, float]] = {}
    for trial in add_trials(asha, *[f"t{number}" for number in range(20)]):
        curve = curves.setdefault(trial.trial_id, {})
        for epoch in range(1, 10):
            curve[epoch] = rng.random()
            if report(asha, trial, epoch, curve[epoch]) == STOP:
                break
    ledger = FakeLedger()
    again = make(kind, ledger, Halving(9), goal)
    again.restore([recorded(trial_id, curves[trial_id]) for trial_id in reversed(curves)])
    assert gains_at_rungs(again.rungs) == gains_at_rungs(asha.rungs)
    assert (ledger.decisions, ledger.reports) == ({}, [])


@pytest.mark.parametrize("kind", ASHAS)
def test_asha_epoch_trained_again(kind: type[StoppingASHA]) -> None:
    """The later score replaces the one that its rung held."""
    asha = make(kind, FakeLedger(), Halving(9, 1, 3))
    (trial,) = add_trials(asha, "t")
    for epoch, score in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)):
        report(asha, trial, epoch, score)
    for epoch, score in ((3, 0.35), (4, 0.45)):  # its process died; it resumed from epoch 2
        report(asha, trial, epoch, score)
    assert gains_at_rungs(asha.rungs) == {1: {"t": 0.1}, 3: {"t": 0.35}, 9: {}}


def test_stop_at_reached_before_resume() -> None:
    scheduler = EpochScheduler(MAXIMIZE, FakeLedger(), settings_of(stop_at=0.9))
    scheduler.restore([recorded("t", {1: 0.5})])
    assert not scheduler.has_reached
    scheduler.restore([recorded("u", {1: 0.95})])
    assert scheduler.has_reached


def test_error_of_recovering_trial() -> None:
    """A trial that resumes after its process died has not failed."""
    ledger = FakeLedger()
    scheduler = EpochScheduler(MAXIMIZE, ledger, settings_of())
    trial = FakeTrial("t")
    trial.status = Trial.ERROR  # as Tune has it when it puts the trial back into its queue
    scheduler.on_trial_error(None, trial)
    assert ledger.decisions == {}


def test_error_of_trial_recorded(tmp_path: Path) -> None:
    """A failure of the trial is decided; one of the storage is not, as the trial can resume."""
    ledger = FakeLedger()
    scheduler = EpochScheduler(MAXIMIZE, ledger, settings_of())
    for name, error in (
        ("own", KeyError("lr")),
        ("disk", OSError(errno.ENOSPC, "No space left on device")),
    ):
        file = tmp_path / name
        file.write_bytes(cloudpickle.dumps(error))
        trial = FakeTrial(name)
        trial.pickled_error_file = str(file)
        scheduler.on_trial_error(None, trial)
    assert ledger.kinds == {"own": "KeyError"}
    assert ledger.decisions["own"].cause == Cause.TRIAL
