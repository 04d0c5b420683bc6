"""Promotion ASHA on curves made by hand, compared with its paper's pseudocode."""

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tune import FakeLedger, FakeTrial, complete, gains_at_rungs, recorded, settings_of
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.search.asha import PromotionASHA

PAUSE, STOP = TrialScheduler.PAUSE, TrialScheduler.STOP


class Slots:
    """Slots that train trials as the scheduler decides, driven as Tune and the queue drive it.

    Args:
        asha: The scheduler.
        curves: Id -> the scores of its epochs.
        num_slots: Trials that run in parallel.

    Attributes:
        trained: Trial and epoch, in the order in which they were trained.
        running: The trials that hold a slot.
        starts: The trials that the slots were given, in order.
    """

    def __init__(self, asha: PromotionASHA, curves: dict[str, list[float]], num_slots: int) -> None:
        self.asha, self.curves, self.num_slots = asha, curves, num_slots
        self.new = list(curves)
        self.epochs = dict.fromkeys(curves, 0)
        self.running: list[FakeTrial] = []
        self.trained: list[tuple[str, int]] = []
        self.starts: list[str] = []
        self.is_over = False

    def _set_trial_status(self, trial: FakeTrial, status: str) -> None:  # Tune's
        trial.status = status

    def stop_trial(self, trial: FakeTrial) -> None:  # Tune's, for a paused one
        assert trial.status == Trial.PAUSED
        self.asha.on_trial_remove(None, trial)
        trial.status = Trial.TERMINATED

    def fill(self) -> None:
        while len(self.running) < self.num_slots and not self.is_over:
            is_last = not self.new and not self.running
            if self.asha.promote(is_last):
                trial = self.asha.choose_trial_to_run(None)
                assert trial is not None
                self._start(trial)
            elif self.new:
                trial = FakeTrial(self.new.pop(0), Trial.PENDING)
                trial.controller = self
                self.asha.on_trial_add(None, trial)
                self._keep_controller(trial)
                self._start(trial)
            else:
                if is_last:
                    self.asha.stop_paused()
                    self.is_over = True
                return

    def step(self, trial: FakeTrial) -> str:
        """Train an epoch of a running trial."""
        self.epochs[trial.trial_id] += 1
        epoch = self.epochs[trial.trial_id]
        self.trained.append((trial.trial_id, epoch))
        result = {"epoch": epoch, "score": self.curves[trial.trial_id][epoch - 1]}
        decision = self.asha.on_trial_result(None, trial, result)
        if decision == PAUSE:
            trial.status = Trial.PAUSED
            self.running.remove(trial)
        elif decision == STOP:
            complete(self.asha, trial, result)
            trial.status = Trial.TERMINATED
            self.running.remove(trial)
        return str(decision)

    def run(self, rng: random.Random | None = None) -> None:
        """Train to the end; the slots finish their epochs in turn, or in any order."""
        self.fill()
        while self.running:
            self.step(rng.choice(self.running) if rng else self.running[0])
            self.fill()

    def _start(self, trial: FakeTrial) -> None:
        trial.status = Trial.RUNNING
        self.running.append(trial)
        self.starts.append(trial.trial_id)

    def _keep_controller(self, trial: FakeTrial) -> None:
        trial.controller = self  # `on_trial_add` takes Tune's


def make_asha(
    max_epochs: int,
    mode: str = "max",
    factor: float = 3,
    ledger: FakeLedger | None = None,
    stop_at: float | None = None,
) -> PromotionASHA:
    halving = Halving(max_epochs, reduction_factor=factor)
    settings = settings_of(halving, stop_at)
    return PromotionASHA(Goal("score", mode), ledger or FakeLedger(), settings)


def constant(scores: list[float], max_epochs: int) -> dict[str, list[float]]:
    """Trials a, b, c ... that score the same in each epoch."""
    return {chr(ord("a") + i): [score] * max_epochs for i, score in enumerate(scores)}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_promotion_worked_by_hand(mode: str) -> None:
    """One slot, nine trials, factor 3, rungs 1, 3 and 9.

    Rung 1 gets .5 .7 .6: b, .7, is the best third of three. b trains to 3 and pauses there, alone.
    .2 .8 .1: two of six may continue; e, .8, does. .9 .3 .4: of nine, three may: g, .9. Now rung 3
    has b, e, g: its best third is g, which trains to its end.
    """
    scores = [0.5, 0.7, 0.6, 0.2, 0.8, 0.1, 0.9, 0.3, 0.4]
    if mode == "min":
        scores = [-score for score in scores]
    ledger = FakeLedger()
    slots = Slots(make_asha(9, mode, ledger=ledger), constant(scores, 9), num_slots=1)
    slots.run()
    one = [("a", 1), ("b", 1), ("c", 1), ("b", 2), ("b", 3)]
    two = [("d", 1), ("e", 1), ("f", 1), ("e", 2), ("e", 3)]
    # g leads at six as well, and continues, as the sixth trial is not needed for it
    three = [("g", 1), ("g", 2), ("g", 3), *[("g", epoch) for epoch in range(4, 10)]]
    assert slots.trained[:5] == one
    assert sorted(slots.trained) == sorted([*one, *two, *three, ("h", 1), ("i", 1)])
    assert {t: stop for t, _, _, stop in ledger.reports if stop} == {"g": Kind.LAST_EPOCH}
    assert ledger.kinds == {**dict.fromkeys("abcdefhi", Kind.ASHA), "g": Kind.LAST_EPOCH}
    assert set(ledger.promotions) == {("b", 1), ("e", 1), ("g", 1), ("g", 3)}


def test_stock_asha_continues_all_improving() -> None:
    """Nine trials, each better than the last: the stock one trains each of them to its end."""
    curves = constant([0.1 * i for i in range(9)], 9)
    stock = AsyncHyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=9, reduction_factor=3
    )
    num_epochs = 0
    for trial_id, curve in curves.items():
        trial: Any = FakeTrial(trial_id, Trial.PENDING)
        stock.on_trial_add(None, trial)
        for epoch, score in enumerate(curve, 1):
            num_epochs += 1
            if stock.on_trial_result(None, trial, {"epoch": epoch, "score": score}) == STOP:
                break
    slots = Slots(make_asha(9), curves, num_slots=1)
    slots.run()
    assert num_epochs == 81
    assert len(slots.trained) == 53


def papers_choice(
    rungs: dict[int, dict[str, float]], busy: set[str], factor: float, order: dict[str, int]
) -> str | None:
    """Algorithm 2 of arXiv 1810.05934, `get_job`, word for word; None: a new trial.

    Args:
        rungs: Rung -> trial -> gain, of all that have reached it.
        busy: Trials that run or have ended; those in higher rungs have been promoted.
        factor: eta.
        order: Trial -> its place among equals.
    """
    epochs = sorted(rungs)
    for k in reversed(range(len(epochs))):
        entries = rungs[epochs[k]]
        ranked = sorted(entries, key=lambda t: (-entries[t], order[t]))
        candidates = ranked[: int(len(entries) / factor)]
        above = {t for epoch in epochs[k + 1 :] for t in rungs[epoch]}
        promotable = [t for t in candidates if t not in above | busy]
        if promotable:
            return promotable[0]
    return None


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("num_slots", "factor"), [(1, 3), (2, 2), (4, 3), (7, 2.5), (16, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_promotion_follows_paper(seed: int, num_slots: int, factor: float, mode: str) -> None:
    rng = random.Random(seed)
    # rounded, so that there are ties
    curves = {f"t{i}": [round(rng.gauss(0, 1), 1) for _ in range(27)] for i in range(60)}
    asha = make_asha(27, mode, factor)
    order = {trial_id: number for number, trial_id in enumerate(curves)}
    slots = Slots(asha, curves, num_slots)
    num_choices = 0
    ended: set[str] = set()
    slots.fill()
    while slots.running and slots.new:
        trial = rng.choice(slots.running)
        before = len(slots.starts)
        decision = slots.step(trial)
        if decision == STOP:
            ended.add(trial.trial_id)
        if slots.epochs[trial.trial_id] in asha.rungs.epochs:
            busy = ended | {t.trial_id for t in slots.running if t is not trial}
            choice = papers_choice(gains_at_rungs(asha.rungs), busy, factor, order)
            fresh = slots.new[0]
            slots.fill()
            given = slots.starts[before] if decision != "CONTINUE" else trial.trial_id
            assert given == (choice or fresh)
            num_choices += 1
    assert num_choices > 50


def test_promotion_once_per_rung() -> None:
    rng = random.Random(0)
    ledger = FakeLedger()
    curves = {f"t{i}": [rng.random() for _ in range(27)] for i in range(80)}
    slots = Slots(make_asha(27, ledger=ledger), curves, num_slots=5)
    slots.run(rng)
    assert len(ledger.promotions) == len(set(ledger.promotions)) > 30
    assert len(slots.trained) == len(set(slots.trained))  # and no epoch is trained twice


def test_promotion_highest_rung_first() -> None:
    """New trials do not starve the last rung."""
    curves = constant([0.1 * i for i in range(60)], 27)  # each better than those before
    slots = Slots(make_asha(27), curves, num_slots=1)
    slots.run()
    first_at_top = next(i for i, (_, epoch) in enumerate(slots.trained) if epoch == 27)
    new_after = [trial for trial, epoch in slots.trained[first_at_top:] if epoch == 1]
    assert len(new_after) > 10


@pytest.mark.parametrize("num_trials", [1, 2, 5])
def test_promotion_too_few_trials(num_trials: int) -> None:
    """With fewer trials than a rung needs, the best one is trained to its end."""
    ledger = FakeLedger()
    asha = make_asha(9, ledger=ledger)
    slots = Slots(asha, constant([0.3, 0.5, 0.4, 0.2, 0.1][:num_trials], 9), num_slots=2)
    slots.run()
    best = "a" if num_trials == 1 else "b"
    assert slots.is_over
    assert asha.is_settled
    assert [t for t, kind in ledger.kinds.items() if kind == Kind.LAST_EPOCH] == [best]
    assert len(slots.trained) == num_trials - 1 + 9


def test_promotion_after_best_diverges() -> None:
    """The best of the others is trained to its end."""
    ledger = FakeLedger()
    curves = {"a": [0.3] * 9, "b": [0.5, math.nan]}
    slots = Slots(make_asha(9, ledger=ledger), curves, num_slots=1)
    slots.run()
    assert ledger.kinds == {"a": Kind.LAST_EPOCH, "b": Kind.NAN}
    assert slots.trained.count(("b", 2)) == 1


def test_promotion_diverged_trials_take_no_place() -> None:
    curves = {**constant([0.1, 0.2, 0.3], 9), "x": [math.nan], "y": [math.nan], "z": [math.nan]}
    asha = make_asha(9)
    slots = Slots(asha, curves, num_slots=1)
    slots.run()
    assert asha.rungs.gains(1).keys() == {"a", "b", "c"}
    assert [t for t, e in slots.trained if t in "xyz"] == ["x", "y", "z"]


def test_promotion_stop_at_ends_paused() -> None:
    ledger = FakeLedger()
    asha = make_asha(9, ledger=ledger, stop_at=0.9)
    slots = Slots(asha, constant([0.1, 0.2, 0.95], 9), num_slots=1)
    slots.fill()
    for _ in range(3):
        slots.step(slots.running[0])
        if not asha.has_reached:
            slots.fill()
    assert asha.has_reached
    assert asha.is_settled
    assert ledger.kinds == {"a": "asha", "b": "asha", "c": "stop_at"}


def test_promotion_trial_ends_itself() -> None:
    """A trial that one of its callbacks ends at a rung does not pause there."""
    ledger = FakeLedger()
    asha = make_asha(9, ledger=ledger)
    trial = FakeTrial("a", Trial.RUNNING)
    asha.on_trial_add(None, trial)
    result = {"epoch": 1, "score": 0.5, "ends_itself": True}
    assert asha.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    assert not asha.is_paused("a")  # nor after a resume
    assert ledger.promotions == [("a", 1)]


@pytest.mark.parametrize("is_complete", [True, False])
def test_promotion_complete_before_resume(is_complete: bool) -> None:
    """Nobody else is trained to the end if a trial had ended by itself before the resume."""
    ledger = FakeLedger()
    if is_complete:
        ledger.decide("a", Outcome.of(Kind.BY_ITSELF))
    asha = make_asha(9, ledger=ledger)
    asha.restore([recorded("a", {1: 0.5, 2: 0.5}), *[recorded(t, {1: 0.4}) for t in "bc"]])
    for trial_id in "bc":
        asha.on_trial_add(None, FakeTrial(trial_id, Trial.PAUSED))
    assert asha.promote(is_last=True) != is_complete


def test_promotion_ties_by_start() -> None:
    """Of equals, the trials that started first are promoted."""
    ledger = FakeLedger()
    slots = Slots(make_asha(3, ledger=ledger), constant([0.5] * 9, 3), num_slots=3)
    slots.run(random.Random(1))
    assert {t for t, rung in ledger.promotions} == {"a", "b", "c"}


def test_promotion_rungs_to_243() -> None:
    assert make_asha(243).rungs.epochs == [1, 3, 9, 27, 81, 243]


def test_promotion_worker_dies_while_pausing() -> None:
    """The trial stays paused though Tune puts it back into its queue."""
    curves = {name: [gain] * 9 for name, gain in zip("abc", (0.9, 0.5, 0.1), strict=True)}
    slots = Slots(make_asha(9), curves, num_slots=3)
    slots.fill()
    worst = slots.running[-1]
    slots.asha.on_trial_result(None, worst, {"epoch": 1, "score": 0.1})
    worst.status = Trial.ERROR
    slots.asha.on_trial_error(None, worst)
    worst.status = Trial.PENDING  # as Tune puts it back into its queue
    slots.asha.on_trial_add(SimpleNamespace(_tune_controller=slots), worst)
    assert worst.status == Trial.PAUSED
    assert slots.asha.num_paused == 1
    assert not slots.asha.promote(is_last=False)


def resume(ledger: FakeLedger, asha: PromotionASHA, curves: dict[str, list[float]]) -> Slots:
    """Resume what is recorded, as another driver does."""
    promoted = dict(ledger.promotions)
    asha.restore([recorded(t, curve, promoted.get(t)) for t, curve in ledger.curves.items()])
    slots = Slots(asha, curves, num_slots=3)
    for trial_id, curve in ledger.curves.items():
        slots.new.remove(trial_id)
        slots.epochs[trial_id] = max(curve)
        if trial_id in ledger.decisions:
            continue
        is_paused = asha.is_paused(trial_id)
        trial = FakeTrial(trial_id, Trial.PAUSED if is_paused else Trial.PENDING)
        asha.on_trial_add(None, trial)
        trial.controller = slots
        if not is_paused:
            slots._start(trial)
    return slots


@pytest.mark.parametrize("seed", range(4))
def test_promotion_resumed_after_kill(seed: int) -> None:
    """The scheduler of the next driver has the same rungs, and follows the same rule."""
    rng = random.Random(seed)
    curves = {f"t{i}": [rng.random() for _ in range(9)] for i in range(30)}
    ledger = FakeLedger()
    slots = Slots(make_asha(9, ledger=ledger), curves, num_slots=3)
    slots.fill()
    for _ in range(40):
        slots.step(rng.choice(slots.running))
        slots.fill()
    running = {t.trial_id for t in slots.running}
    paused = {t for t in slots.epochs if t in ledger.curves} - running - ledger.decisions.keys()
    asha = make_asha(9, ledger=ledger)
    again = resume(ledger, asha, curves)
    assert gains_at_rungs(asha.rungs) == gains_at_rungs(slots.asha.rungs)
    reported = {t for t in running if t in ledger.curves}
    assert {t.trial_id for t in again.running} == reported
    assert asha.num_paused == len(paused)
    again.run(rng)
    assert asha.is_settled
    assert len(ledger.promotions) == len(set(ledger.promotions))
    assert {max(ledger.curves[t]) for t in ledger.curves} == {1, 3, 9}
