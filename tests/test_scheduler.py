"""The scheduler, held against Ray's own where that one is right and where it is not."""

import math
import random
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.search.asha import (
    ASHA,
    EpochScheduler,
    PromotionASHA,
    StoppingASHA,
    make_rungs,
)

KINDS = [PromotionASHA, StoppingASHA]
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class FakeTrial:
    pickled_error_file: str | None = None
    status = Trial.RUNNING

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def make_stock(mode: str, max_epochs: int, grace: int = 1, factor: float = 3) -> Any:
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="score",
        mode=mode,
        max_t=max_epochs,
        grace_period=grace,
        reduction_factor=factor,
        stop_last_trials=True,
    )


def report(scheduler: Any, trial: FakeTrial, epoch: int, score: float) -> str:
    return str(scheduler.on_trial_result(None, trial, {"epoch": epoch, "score": score}))


def add(scheduler: Any, *names: str) -> list[FakeTrial]:
    trials = [FakeTrial(name) for name in names]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return trials


def stock_rungs(stock: Any) -> list[float]:
    return [milestone for milestone, _ in reversed(stock._brackets[0]._rungs)]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    ("grace", "max_epochs", "factor"), [(1, 10, 3), (2, 20, 2), (1, 17, 4), (3, 40, 3), (1, 1, 3)]
)
@pytest.mark.parametrize("seed", range(4))
def test_asha_decides_as_the_stock_one_on_finite_curves_without_gaps(
    seed: int, grace: int, max_epochs: int, factor: float, mode: str
) -> None:
    rng = random.Random(seed)
    ours = StoppingASHA(Goal("score", mode), max_epochs, grace, factor)
    stock = make_stock(mode, max_epochs, grace, factor)
    assert list(ours.rungs) == stock_rungs(stock)
    names = [f"t{i}" for i in range(30)]
    running = {t.trial_id: t for t in add(stock, *names)}
    add(ours, *names)
    epochs = dict.fromkeys(names, 0)
    decisions = set()
    while running:  # trials report in any order, as they do side by side
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
    assert max_epochs == 1 or set(ours.endings.reasons.values()) == {"asha", "last epoch"}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("kind", KINDS)
def test_asha_stops_a_trial_that_diverges(mode: str, score: float, kind: type[ASHA]) -> None:
    asha = kind(Goal("score", mode), max_epochs=10)
    (trial,) = add(asha, "t")
    assert report(asha, trial, 1, score) == STOP
    assert asha.endings.reasons == {"t": "nan"}
    assert all(not recorded for recorded in asha.rungs.values())


def test_stock_asha_lets_nan_run_on() -> None:
    stock = make_stock("max", 10)
    good, bad = add(stock, "good", "bad")
    report(stock, good, 1, 0.9)
    assert report(stock, bad, 1, math.nan) == CONTINUE


@pytest.mark.parametrize("kind", KINDS)
def test_nan_at_the_last_epoch_is_no_completed_trial(kind: type[ASHA]) -> None:
    asha = kind(Goal("score", "max"), max_epochs=3)
    (trial,) = add(asha, "t")
    assert report(asha, trial, 3, math.nan) == STOP
    assert asha.endings.reasons == {"t": "nan"}


@pytest.mark.parametrize("kind", KINDS)
def test_asha_ignores_lower_rungs_when_results_skip_a_milestone(kind: type[ASHA]) -> None:
    asha = kind(Goal("score", "max"), max_epochs=27, reduction_factor=3)
    late, early = add(asha, "late", "early")
    for epoch in (3, 4, 5):
        assert report(asha, late, epoch, 0.9) != STOP
    assert asha.rungs == {1: {}, 3: {"late": 0.9}, 9: {}, 27: {}}
    assert report(asha, early, 1, 0.5) != STOP


def test_stock_asha_poisons_lower_rungs_when_results_skip_a_milestone() -> None:
    stock = make_stock("max", 26)
    late, early = add(stock, "late", "early")
    for epoch in (3, 4, 5):
        report(stock, late, epoch, 0.9)
    rungs = dict(stock._brackets[0]._rungs)
    assert rungs[1] == {"late": 0.9}  # a score of epoch 4
    assert report(stock, early, 1, 0.5) == STOP


@pytest.mark.parametrize("kind", KINDS)
def test_asha_records_a_trial_once_at_each_rung(kind: type[ASHA]) -> None:
    asha = kind(Goal("score", "max"), max_epochs=27, reduction_factor=3)
    (trial,) = add(asha, "t")
    for epoch in range(1, 10):
        report(asha, trial, epoch, epoch / 10)
    assert asha.rungs == {1: {"t": 0.1}, 3: {"t": 0.3}, 9: {"t": 0.9}, 27: {}}


def test_asha_spares_trials_before_the_first_rung() -> None:
    asha = StoppingASHA(Goal("score", "max"), max_epochs=20, grace_epochs=4)
    best, worst = add(asha, "best", "worst")
    assert report(asha, best, 4, 1.0) == CONTINUE
    for epoch in (1, 2, 3):
        assert report(asha, worst, epoch, -1.0) == CONTINUE
    assert report(asha, worst, 4, -1.0) == STOP
    assert asha.endings.reasons == {"worst": "asha"}


def test_asha_stops_what_is_worse_in_either_mode() -> None:
    for mode, good, bad in (("max", 0.9, 0.1), ("min", 0.1, 0.9)):
        asha = StoppingASHA(Goal("score", mode), max_epochs=10)
        first, second = add(asha, "first", "second")
        assert report(asha, first, 1, good) == CONTINUE
        assert report(asha, second, 1, bad) == STOP
        assert asha.endings.reasons == {"second": "asha"}


def test_no_rung_is_lost_to_rounding() -> None:
    assert make_rungs(1, 243, 3) == [1, 3, 9, 27, 81, 243]
    assert stock_rungs(make_stock("max", 243)) == [1, 3, 9, 27, 81]


@pytest.mark.parametrize(
    ("grace", "max_epochs", "factor", "rungs"),
    [
        (1, 1, 3, [1]),
        (5, 5, 2, [5]),
        (1, 10, 3, [1, 3, 9]),
        (2, 20, 3.0, [2, 6, 18]),
        (1, 5, 1.5, [1, 2, 3, 5]),
        (1, 4, 1.1, [1, 2, 3, 4]),
        (1, 10, 100, [1]),
    ],
)
def test_rungs_are_whole_epochs_each_once(
    grace: int, max_epochs: int, factor: float, rungs: list[int]
) -> None:
    assert make_rungs(grace, max_epochs, factor) == rungs


@pytest.mark.parametrize("kind", [PromotionASHA, StoppingASHA, EpochScheduler])
def test_trial_ends_at_its_last_epoch(kind: type[EpochScheduler]) -> None:
    scheduler = kind(Goal("score", "max"), max_epochs=3)
    (trial,) = add(scheduler, "t")
    assert STOP not in [report(scheduler, trial, epoch, 0.5) for epoch in (1, 2)]
    assert report(scheduler, trial, 3, 0.5) == STOP
    assert scheduler.endings.reasons == {"t": "last epoch"}


@pytest.mark.parametrize("kind", KINDS)
def test_trial_at_its_last_epoch_is_complete_even_if_it_loses_its_rung(kind: type[ASHA]) -> None:
    asha = kind(Goal("score", "max"), max_epochs=3, reduction_factor=3)
    best, worst = add(asha, "best", "worst")
    report(asha, best, 3, 0.9)
    assert report(asha, worst, 3, 0.1) == STOP
    assert asha.endings.reasons["worst"] == "last epoch"
    assert asha.rungs[3] == {"best": 0.9, "worst": 0.1}


def test_epoch_scheduler_without_last_epoch_lets_trials_run() -> None:
    scheduler = EpochScheduler(Goal("score", "max"))
    (trial,) = add(scheduler, "t")
    assert report(scheduler, trial, 10_000, 0.5) == CONTINUE
    assert scheduler.endings.reasons == {}


@pytest.mark.parametrize("kind", [PromotionASHA, StoppingASHA, EpochScheduler])
@pytest.mark.parametrize(("mode", "almost", "enough"), [("max", 0.89, 0.9), ("min", 0.91, 0.9)])
def test_score_that_is_good_enough_ends_the_trial_then_the_sweep(
    mode: str, almost: float, enough: float, kind: type[EpochScheduler]
) -> None:
    scheduler = kind(Goal("score", mode), max_epochs=10, stop_at=0.9)
    (trial,) = add(scheduler, "t")
    assert report(scheduler, trial, 1, almost) != STOP
    assert report(scheduler, trial, 2, enough) == STOP
    assert scheduler.endings.reasons == {"t": "stop_at"}
    assert not scheduler.reached  # else the sweep would end before this result is recorded
    scheduler.on_trial_complete(None, trial, {"epoch": 2, "score": enough})
    assert scheduler.reached


def test_trial_that_ends_otherwise_does_not_end_the_sweep() -> None:
    scheduler = EpochScheduler(Goal("score", "max"), max_epochs=1, stop_at=0.9)
    (trial,) = add(scheduler, "t")
    report(scheduler, trial, 1, 0.5)
    scheduler.on_trial_complete(None, trial, {"epoch": 1, "score": 0.5})
    assert not scheduler.reached


def test_result_is_recorded_with_the_decision_before_anything_acts_on_it() -> None:
    recorded: list[Any] = []

    class Recorder:
        def report(self, trial_id: str, score: float, result: Any, reason: str | None) -> None:
            ended = dict(asha.endings.reasons)
            recorded.append((trial_id, score, result["epoch"], reason, ended))

    asha = StoppingASHA(Goal("score", "max"), max_epochs=10, record=Recorder())
    good, bad = add(asha, "good", "bad")
    report(asha, good, 1, 0.9)
    report(asha, bad, 1, 0.1)
    assert recorded == [("good", 0.9, 1, None, {}), ("bad", 0.1, 1, "asha", {})]


@pytest.mark.parametrize("kind", KINDS)
def test_rungs_are_rebuilt_from_the_curves_whatever_their_order(kind: type[ASHA]) -> None:
    rng = random.Random(0)
    asha = kind(Goal("score", "min"), max_epochs=9)
    curves: dict[str, dict[int, float]] = {}
    for trial in add(asha, *[f"t{number}" for number in range(20)]):
        curve = curves.setdefault(trial.trial_id, {})
        for epoch in range(1, 10):
            curve[epoch] = rng.random()
            if report(asha, trial, epoch, curve[epoch]) == STOP:
                break
    again = kind(Goal("score", "min"), max_epochs=9)
    for trial_id in reversed(curves):
        again.replay(trial_id, curves[trial_id])
    assert again.rungs == asha.rungs
    assert again.endings.reasons == {}


@pytest.mark.parametrize("kind", KINDS)
def test_epoch_that_is_trained_again_replaces_what_its_rung_held(kind: type[ASHA]) -> None:
    asha = kind(Goal("score", "max"), max_epochs=9, reduction_factor=3)
    (trial,) = add(asha, "t")
    for epoch, score in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)):
        report(asha, trial, epoch, score)
    for epoch, score in ((3, 0.35), (4, 0.45)):  # its process died at epoch 2's checkpoint
        report(asha, trial, epoch, score)
    assert asha.rungs == {1: {"t": 0.1}, 3: {"t": 0.35}, 9: {}}


def test_sweep_whose_score_was_good_enough_has_reached_it_again() -> None:
    scheduler = EpochScheduler(Goal("score", "max"), stop_at=0.9)
    scheduler.replay("t", {1: 0.5})
    assert not scheduler.reached
    scheduler.replay("u", {1: 0.95})
    assert scheduler.reached


def test_trial_that_goes_on_after_its_process_died_has_not_failed() -> None:
    scheduler = EpochScheduler(Goal("score", "max"))
    trial = FakeTrial("t")
    trial.status = Trial.ERROR  # as Tune has it when it puts the trial back into its queue
    scheduler.on_trial_error(None, trial)
    assert scheduler.endings.failures == {}
