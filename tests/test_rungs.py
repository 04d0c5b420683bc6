"""The rule of successive halving, and which trial reached which rung."""

import random

import pytest
from fake_tune import gains_at_rungs

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.rungs import Halving, Rungs

MAXIMIZE = Goal("score", "max")


def make_rungs(*epochs: int, mode: str = "max") -> Rungs:
    return Rungs(Goal("score", mode), epochs)


def report(rungs: Rungs, trial_id: str, curve: dict[int, float]) -> list[int | None]:
    """Report a curve; the rungs that its epochs entered."""
    return [rungs.report(trial_id, epoch, score) for epoch, score in curve.items()]


@pytest.mark.parametrize(
    ("grace", "max_epochs", "factor", "rungs"),
    [
        (1, 243, 3, (1, 3, 9, 27, 81, 243)),
        (1, 1, 3, (1,)),
        (5, 5, 2, (5,)),
        (1, 10, 3, (1, 3, 9)),
        (2, 20, 3.0, (2, 6, 18)),
        (1, 5, 1.5, (1, 2, 3, 5)),
        (1, 4, 1.1, (1, 2, 3, 4)),
        (1, 10, 100, (1,)),
    ],
)
def test_halving_rungs_are_whole_epochs(
    grace: int, max_epochs: int, factor: float, rungs: tuple[int, ...]
) -> None:
    """Each rung is there once, and none is lost to rounding."""
    assert Halving(max_epochs, grace, factor).rungs == rungs


def test_rungs_are_sorted() -> None:
    assert make_rungs(9, 1, 3).epochs == [1, 3, 9]


def test_rungs_report_returns_rung() -> None:
    rungs = make_rungs(2, 4, 8)
    curve = dict.fromkeys(range(1, 9), 0.5)
    assert report(rungs, "a", curve) == [None, 2, None, 4, None, None, None, 8]
    assert [rungs.reached_by(epoch) for epoch in (1, 2, 3, 4, 7, 8, 99)] == [
        None, 2, 2, 4, 4, 8, 8,
    ]  # fmt: skip
    assert rungs.highest("a") == 8
    assert rungs.highest("b") is None


def test_rungs_keep_first_epoch() -> None:
    """A later epoch before the next rung changes nothing."""
    rungs = make_rungs(1, 4)
    assert report(rungs, "a", {1: 0.1, 2: 0.2, 3: 0.9}) == [1, None, None]
    assert rungs.gains(1) == {"a": 0.1}


def test_rungs_skipped_stay_empty() -> None:
    """A trial enters the highest rung that its epoch has reached, and counts in those below."""
    rungs = make_rungs(1, 3, 9, 27)
    assert report(rungs, "a", {10: 0.5, 11: 0.6}) == [9, None]
    assert gains_at_rungs(rungs) == {1: {}, 3: {}, 9: {"a": 0.5}, 27: {}}
    assert [rungs.num_reached(rung) for rung in rungs.epochs] == [1, 1, 1, 0]


def test_rungs_retrained_epoch_replaces() -> None:
    rungs = make_rungs(1, 3, 9)
    report(rungs, "a", {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
    assert report(rungs, "a", {3: 0.35, 4: 0.45}) == [3, None]
    assert gains_at_rungs(rungs) == {1: {"a": 0.1}, 3: {"a": 0.35}, 9: {}}
    assert [rungs.num_reached(rung) for rung in rungs.epochs] == [1, 1, 0]


def test_rungs_retrained_epoch_ranks_anew() -> None:
    rungs = make_rungs(1)
    for trial_id, score in (("a", 0.9), ("b", 0.5), ("c", 0.1)):
        rungs.report(trial_id, 1, score)
    rungs.report("a", 1, 0.2)
    assert list(rungs.best(1, 1)) == ["b", "a", "c"]


def test_rungs_earlier_epoch_replaces() -> None:
    """After a retry a rung may be entered with an earlier epoch than before."""
    rungs = make_rungs(2, 8)
    report(rungs, "a", {4: 0.4})
    assert report(rungs, "a", {3: 0.3, 4: 0.45}) == [2, None]
    assert rungs.gains(2) == {"a": 0.3}


def test_rungs_lower_rung_after_retry() -> None:
    """A trial that is trained again below its highest rung keeps the rungs that it had reached."""
    rungs = make_rungs(1, 2, 4)
    report(rungs, "a", {1: 0.1, 2: 0.2, 4: 0.4})
    assert report(rungs, "a", {2: 0.25}) == [2]
    assert rungs.highest("a") == 4
    assert [rungs.num_reached(rung) for rung in rungs.epochs] == [1, 1, 1]


@pytest.mark.parametrize(("mode", "gain"), [("max", 0.4), ("min", -0.4)])
def test_rungs_gains_follow_mode(mode: str, gain: float) -> None:
    rungs = make_rungs(1, mode=mode)
    rungs.report("a", 1, 0.4)
    assert rungs.gains(1) == {"a": gain}
    assert rungs.score_from("a", 1) == 0.4


def test_rungs_score_from_level() -> None:
    """The score at the lowest rung from the level on that the trial has entered."""
    rungs = make_rungs(1, 2, 4, 8)
    report(rungs, "a", {1: 0.1, 5: 0.5, 8: 0.8})
    assert [rungs.score_from("a", level) for level in (0, 1, 2, 3, 4, 5, 8, 9)] == [
        0.1, 0.1, 0.5, 0.5, 0.5, 0.8, 0.8, None,
    ]  # fmt: skip
    assert rungs.score_from("b", 1) is None


def test_rungs_num_reached_counts_once() -> None:
    rungs = make_rungs(1, 2, 4)
    report(rungs, "a", {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
    report(rungs, "b", {1: 0.1, 2: 0.2})
    report(rungs, "c", {1: 0.1})
    report(rungs, "c", {1: 0.2})
    assert [rungs.num_reached(rung) for rung in rungs.epochs] == [3, 2, 1]


@pytest.mark.parametrize(("mode", "ranked"), [("max", "dbcae"), ("min", "eabcd")])
def test_rungs_best_ties_by_start(mode: str, ranked: str) -> None:
    """Of equals, the trial that started first is the better, whichever reported first."""
    rungs = make_rungs(1, mode=mode)
    for trial_id in "abcde":
        rungs.start(trial_id)
    for trial_id, score in {"e": 0.1, "c": 0.5, "d": 0.9, "b": 0.5, "a": 0.3}.items():
        rungs.report(trial_id, 1, score)
    assert "".join(rungs.best(1, 1)) == ranked


@pytest.mark.parametrize(
    ("factor", "num_best"), [(1, 7), (1.5, 4), (2, 3), (3, 2), (7, 1), (7.5, 0)]
)
def test_rungs_best_share(factor: float, num_best: int) -> None:
    """The best floor(n / factor) of seven trials."""
    rungs = make_rungs(1)
    for number in range(7):
        rungs.report(f"t{number}", 1, number)
    assert list(rungs.best(1, factor)) == ["t6", "t5", "t4", "t3", "t2", "t1", "t0"][:num_best]


def test_rungs_promoted_trial_still_ranks() -> None:
    """The share is that of all trials which have reached the rung."""
    rungs = make_rungs(1, 2)
    for trial_id, score in (("a", 0.9), ("b", 0.5), ("c", 0.1), ("d", 0.2)):
        rungs.report(trial_id, 1, score)
    rungs.promote("a")
    rungs.report("a", 2, 0.1)
    assert list(rungs.best(1, 2)) == ["a", "b"]
    assert list(rungs.best(2, 2)) == []


def test_rungs_waits_until_promoted() -> None:
    rungs = make_rungs(2, 4)
    rungs.start("a")
    assert not rungs.is_paused("a")
    rungs.report("a", 1, 0.5)
    assert not rungs.is_paused("a")  # it has reached no rung
    rungs.report("a", 2, 0.5)
    assert rungs.is_paused("a")
    assert rungs.promote("a") == 2
    assert not rungs.is_paused("a")
    rungs.report("a", 3, 0.5)
    assert not rungs.is_paused("a")
    rungs.report("a", 4, 0.5)
    assert rungs.is_paused("a")
    assert rungs.promote("a") == 4
    assert not rungs.is_paused("a")


def test_rungs_waits_not_after_retraining() -> None:
    """A promoted trial that reports its rung again, as its process died, is not to wait there."""
    rungs = make_rungs(2, 4)
    rungs.report("a", 2, 0.5)
    rungs.promote("a")
    rungs.report("a", 2, 0.6)
    assert not rungs.is_paused("a")


def test_rungs_restored_trial_waits() -> None:
    rungs = make_rungs(1, 3, 9)
    rungs.restore("waits", {1: 0.1})
    rungs.restore("promoted", {1: 0.3, 2: 0.4}, promoted_from=1)
    rungs.restore("waits above", {1: 0.3, 3: 0.4}, promoted_from=1)
    rungs.restore("new", {})
    waiting = [t for t in ("waits", "promoted", "waits above", "new") if rungs.is_paused(t)]
    assert waiting == ["waits", "waits above"]
    assert gains_at_rungs(rungs) == {
        1: {"waits": 0.1, "promoted": 0.3, "waits above": 0.3},
        3: {"waits above": 0.4},
        9: {},
    }
    assert list(rungs.best(1, 1)) == ["promoted", "waits above", "waits"]


def test_rungs_restored_curve_unordered() -> None:
    """The record's curves need not be in the order of the epochs."""
    rungs = make_rungs(1, 3)
    rungs.restore("a", {4: 0.4, 2: 0.2, 3: 0.3, 1: 0.1})
    assert gains_at_rungs(rungs) == {1: {"a": 0.1}, 3: {"a": 0.3}}


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(5))
def test_rungs_restored_equal_reported(seed: int, mode: str) -> None:
    """Trials that report in parallel, with gaps and epochs trained again, against their curves."""
    rng = random.Random(seed)
    goal = Goal("score", mode)
    epochs = Halving(27, 1, 3).rungs
    live, again = Rungs(goal, epochs), Rungs(goal, epochs)
    curves: dict[str, dict[int, float]] = {f"t{number}": {} for number in range(20)}
    step = {trial_id: rng.choice((1, 1, 2, 5)) for trial_id in curves}
    at = dict.fromkeys(curves, 0)
    for trial_id in curves:
        live.start(trial_id)
    for _ in range(400):
        trial_id = rng.choice(sorted(curves))
        if rng.random() < 0.1:  # its process died; it resumes from its last checkpoint but one
            at[trial_id] = max(0, at[trial_id] - 2 * step[trial_id])
        at[trial_id] += step[trial_id]
        score = round(rng.gauss(0, 1), 1)
        curves[trial_id][at[trial_id]] = score
        live.report(trial_id, at[trial_id], score)
    for trial_id, curve in curves.items():
        again.restore(trial_id, curve)
    assert gains_at_rungs(again) == gains_at_rungs(live)
    for rung in epochs:
        assert list(again.best(rung, 2)) == list(live.best(rung, 2))
        assert again.num_reached(rung) == live.num_reached(rung)


def test_rungs_none_to_reach() -> None:
    rungs = Rungs(MAXIMIZE)
    assert rungs.epochs == []
    assert rungs.report("a", 5, 0.5) is None
    assert not rungs.is_paused("a")
    assert rungs.score_from("a", 0) is None
