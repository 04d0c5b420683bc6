"""What a sampler is shown of a sweep with rungs."""

import math
import random

import optuna
import pytest
from fake_tune import gains_at_rungs
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import OUTCOME_ATTR, Cause, Kind, Outcome
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.search.view import Ending, View

COMPLETE, FAIL, PRUNED, RUNNING = (
    TrialState.COMPLETE,
    TrialState.FAIL,
    TrialState.PRUNED,
    TrialState.RUNNING,
)
SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(1e-4, 1, log=True)}
RUNGS = (1, 2, 8, 16, 32)  # those from 8 on are shown
EPOCHS = (8, 9, 16, 17, 18, 19, 20, 21, 32)  # those that are reported
NUM_ENOUGH = 3 * len(SPACE)


def whole(*curve: float) -> dict[int, float]:
    return dict(zip(EPOCHS, curve, strict=False))


def ending(state: TrialState, curve: dict[int, float], crashed: bool = False) -> Ending:
    """How a trial ended: trained to its end, stopped or diverged."""
    kind = Kind.NAN if crashed else Kind.LAST_EPOCH if state == COMPLETE else Kind.ASHA
    value = curve[max(curve)] if curve else None
    return Ending(Outcome.of(kind), value, curve, {}, {})


class Shown:
    """A view of trials named by letters; the tests report what the trials do.

    Attributes:
        rungs: The rungs, which the scheduler fills in a sweep.
        paused: The trials that are paused.
        view: The view.
    """

    def __init__(
        self,
        sampler: BaseSampler | None = None,
        mode: str = "max",
        rungs: tuple[int, ...] = RUNGS,
        paused: set[str] | None = None,
    ) -> None:
        goal = Goal("score", mode)
        self.rungs = Rungs(goal, rungs)
        self._names: list[str] = []  # by number
        self.paused = set() if paused is None else paused
        is_paused = self.paused.__contains__
        self.view = View(goal, sampler or RandomSampler(), self.rungs, is_paused=is_paused)

    def start(self, *names: str) -> None:
        for name in names:
            self.view.refresh()
            self.view.study.ask(SPACE)
            self.view.start(name)
            self._names.append(name)

    def report(self, name: str, *curve: float) -> None:
        """Report the first of `EPOCHS`."""
        for epoch, value in whole(*curve).items():
            self.report_at(name, epoch, value)

    def report_at(self, name: str, epoch: int, value: float) -> None:
        self.rungs.report(name, epoch, value)
        self.view.touch(name)

    def end(self, name: str, state: TrialState, *curve: float, crashed: bool = False) -> None:
        """Report the first of `EPOCHS`, then the end."""
        for epoch, value in whole(*curve).items():
            self.rungs.report(name, epoch, value)
        self.view.end(name, ending(state, whole(*curve), crashed))

    def trial(self, name: str) -> FrozenTrial:
        return self.view.study.get_trials()[self._names.index(name)]

    def states(self) -> list[tuple[TrialState, float | None]]:
        self.view.refresh()
        return [(trial.state, trial.value) for trial in self.view.study.get_trials()]


def test_view_running_trial_at_level() -> None:
    shown = Shown()
    shown.start("a", "b")
    shown.report("a", 0.5, 0.7)  # its value is that of the rung, not its last
    assert shown.states() == [(COMPLETE, 0.5), (RUNNING, None)]


def test_view_paused_below_level() -> None:
    """A paused trial is shown at the level if it has reached it, and is left out if not."""
    shown = Shown()
    names = "abcdefghi"
    shown.start(*names)
    for number, name in enumerate(names):
        shown.report(name, number / 10)
    shown.paused.update(names)
    assert shown.states() == [(COMPLETE, number / 10) for number in range(9)]
    for name in names[:NUM_ENOUGH]:
        shown.report(name, 0.0, 0.0, 0.9)
    above = [(COMPLETE, 0.9)] * NUM_ENOUGH
    assert shown.states() == [*above, *[(FAIL, None)] * 3]
    shown.paused.discard("i")  # promoted; below the level, the constant liar counts it as bad
    assert shown.states() == [*above, *[(FAIL, None)] * 2, (RUNNING, None)]


def test_view_level_needs_enough_trials() -> None:
    shown = Shown()
    names = "abcdefgh"
    shown.start(*names)
    for name in names:
        shown.end(name, PRUNED, 0.1) if name in "gh" else shown.report(name, 0.1)
    for name in names[: NUM_ENOUGH - 1]:
        shown.report(name, 0.1, 0.2, 0.3)
    assert [value for _, value in shown.states()] == [0.1] * 8
    shown.report(names[NUM_ENOUGH - 1], 0.1, 0.2, 0.4)
    assert [value for _, value in shown.states()] == [*[0.3] * 5, 0.4, None, None]


def test_view_level_drops_after_crashes() -> None:
    shown = Shown()
    names = "abcdefghijkl"
    shown.start(*names)
    for name in names:
        shown.report(name, 0.1)
    shown.paused.update(names[NUM_ENOUGH:])
    for name in names[:NUM_ENOUGH]:
        shown.report(name, 0.1, 0.2, 0.3)
    assert {value for _, value in shown.states()} == {0.3, None}
    for name in names[:NUM_ENOUGH]:
        shown.end(name, PRUNED, 0.1, 0.2, 0.3, crashed=True)
    good = len(names) - NUM_ENOUGH
    assert shown.states() == [(PRUNED, None)] * NUM_ENOUGH + [(COMPLETE, 0.1)] * good


def test_view_level_needs_running_trials() -> None:
    """The level needs as many values as trials run in parallel."""
    shown = Shown()
    names = "abcdefgh"
    shown.start(*names)
    for name in names[:NUM_ENOUGH]:
        shown.report(name, 0.1, 0.2, 0.3)
    assert {value for _, value in shown.states()} == {0.1, None}  # 8 run in parallel
    shown.paused.update("efgh")
    assert {value for _, value in shown.states()} == {0.3, None}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_view_crashed_trial_ranks_last(mode: str) -> None:
    sampler = TPESampler(seed=0)
    shown = Shown(sampler, mode)
    names = [f"t{number}" for number in range(12)]
    shown.start(*names)
    sign = 1 if mode == "max" else -1
    for number, name in enumerate(names[:-1]):
        shown.end(name, PRUNED, sign * number / 10)
    shown.end(names[-1], PRUNED, sign * 9.0, crashed=True)
    assert shown.states()[-1] == (PRUNED, None)
    trials = shown.view.study.get_trials()
    below, above = optuna.samplers._tpe.sampler._split_trials(shown.view.study, trials, 11)
    assert [trial.number for trial in above] == [11]
    assert len(below) == 11


def test_view_crash_without_report() -> None:
    shown = Shown()
    shown.start("a")
    shown.end("a", PRUNED, crashed=True)
    assert shown.states() == [(PRUNED, None)]


def test_view_complete_below_level() -> None:
    shown = Shown()
    shown.start("a", "b", "c")
    for name, state in (("a", COMPLETE), ("b", PRUNED)):
        shown.report_at(name, 5, 0.4)
        shown.view.end(name, ending(state, {5: 0.4}))
    shown.view.end("c", ending(PRUNED, {}))  # cut short before its first report
    assert shown.states() == [(COMPLETE, 0.4), (FAIL, None), (FAIL, None)]


def test_view_sampler_sees_uncovered_trial() -> None:
    """Optuna caches a search space; it is computed again from a trial that had been left out."""
    sampler = TPESampler()
    shown = Shown(sampler)
    shown.start("a", "b")
    shown.report_at("a", 1, 0.1)
    shown.paused.add("a")
    shown.start("c")
    assert shown.states()[0] == (FAIL, None)
    assert not sampler._search_space.calculate(shown.view.study)
    shown.paused.clear()
    shown.report("a", 0.5)
    assert shown.states()[0] == (COMPLETE, 0.5)
    assert sampler._search_space.calculate(shown.view.study).keys() == SPACE.keys()


def test_view_epoch_skips_rung() -> None:
    shown = Shown()
    shown.start("a")
    shown.report_at("a", 17, 0.4)
    shown.report_at("a", 18, 0.5)
    assert shown.states() == [(COMPLETE, 0.4)]
    assert gains_at_rungs(shown.rungs) == {1: {}, 2: {}, 8: {}, 16: {"a": 0.4}, 32: {}}
    shown.report_at("a", 17, 0.6)  # the epoch that entered the rung
    assert shown.states() == [(COMPLETE, 0.6)]


@pytest.mark.parametrize(
    ("rungs", "level"),
    [((1, 3, 9, 27), 9), ((1, 2, 4, 8, 16), 8), ((1, 2, 4, 8), 4), ((1, 3), 1), ((5,), 5)],
)
def test_view_lowest_level(rungs: tuple[int, ...], level: int) -> None:
    """The lowest rung from the eighth epoch on, or the last but one."""
    shown = Shown(rungs=rungs)
    shown.start("a", "b")
    shown.report_at("a", level, 0.9)
    shown.report_at("b", level - 1, 0.1)
    assert shown.states() == [(COMPLETE, 0.9), (RUNNING, None)]


def test_view_epoch_trained_again() -> None:
    shown = Shown()
    shown.start("a")
    shown.report("a", 0.1, 0.2)
    shown.report("a", 0.15, 0.25)
    assert shown.states() == [(COMPLETE, 0.15)]


def test_view_without_rungs() -> None:
    """Trials are shown in the state in which they ended."""
    shown = Shown(rungs=())
    shown.start("a", "b", "c")
    shown.report("c", 0.4)
    shown.end("a", COMPLETE, 0.1, 0.5)
    shown.end("b", PRUNED, 0.1, 0.2)
    assert shown.states() == [(COMPLETE, 0.5), (PRUNED, 0.2), (RUNNING, None)]
    assert shown.view.study.get_trials()[1].intermediate_values == {8: 0.1, 9: 0.2}


def recorded(
    shown: Shown,
    name: str,
    curve: dict[int, float],
    state: TrialState,
    outcome: Outcome | None = None,
) -> FrozenTrial:
    """A trial of the view, as the record has it."""
    asked = shown.trial(name)
    return create_trial(
        state=state,
        params=asked.params,
        distributions=asked.distributions,
        intermediate_values=curve,
        values=[max(curve.values())] if state == COMPLETE else None,
        user_attrs={"trial_id": name},
        system_attrs={} if outcome is None else {OUTCOME_ATTR: outcome.to_entry()},
    )


def test_view_after_resume() -> None:
    """It shows the recorded trials as it did before."""
    rng = random.Random(0)
    shown = Shown()
    ends = {}
    for number in range(40):
        name = f"t{number}"
        shown.start(name)
        curve = [rng.random() for _ in range(rng.choice((1, 1, 2, 3, 3, 9)))]
        if number % 4:
            ends[name] = (whole(*curve), COMPLETE if len(curve) == 9 else PRUNED)
            shown.end(name, ends[name][1], *curve)
        else:
            ends[name] = (whole(*curve), RUNNING)
            shown.report(name, *curve)
            if number % 8:
                shown.paused.add(name)
    again = Shown(paused=shown.paused)
    for name, (curve_of_all, state) in ends.items():
        again.rungs.restore(name, curve_of_all)
        again.view.add(recorded(shown, name, curve_of_all, state), name)
    assert again.states() == shown.states()
    assert {state for state, _ in shown.states()} == {COMPLETE, FAIL, RUNNING}


@pytest.mark.parametrize(
    ("outcome", "state", "value"),
    [
        (Outcome.of(Kind.NAN), PRUNED, None),
        (Outcome("KeyError", Cause.TRIAL, "KeyError: 'lr'", "Traceback ..."), PRUNED, None),
        (Outcome.of(Kind.ASHA), COMPLETE, 0.5),
        (Outcome.of(Kind.TIME_BUDGET), COMPLETE, 0.5),
    ],
    ids=["nan", "failed", "asha", "time budget"],
)
def test_view_recorded_crash_after_resume(
    outcome: Outcome, state: TrialState, value: float | None
) -> None:
    shown, again = Shown(), Shown()
    shown.start("a")
    again.rungs.restore("a", whole(0.5, 0.9))
    again.view.add(recorded(shown, "a", whole(0.5, 0.9), PRUNED, outcome), "a")
    assert again.states() == [(state, value)]


def test_view_trials_of_another_sweep() -> None:
    """The outcome says which has crashed; one with a value needs no curve."""
    shown, other = Shown(), Shown()
    other.start("a", "b", "c", "d")
    crash = Outcome("failed in another study", Cause.TRIAL)
    shown.view.add_other(recorded(other, "a", {8: 0.2, 16: 0.6}, PRUNED))
    shown.view.add_other(recorded(other, "b", {}, PRUNED, crash))
    shown.view.add_other(recorded(other, "c", {9: 0.3, 17: 0.9}, COMPLETE))
    valued = recorded(other, "d", {1: 0.7}, COMPLETE)
    valued.intermediate_values = {}
    shown.view.add_other(valued)
    assert shown.states() == [(COMPLETE, 0.2), (PRUNED, None), (COMPLETE, 0.3), (COMPLETE, 0.7)]


def test_view_refresh_without_change(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown()
    names = [f"t{number}" for number in range(200)]
    for name in names:
        shown.start(name)
        shown.end(name, PRUNED, 0.5)
    shown.states()
    entered: list[int] = []
    monkeypatch.setattr(shown.view.storage, "show", lambda number, face: entered.append(number))
    shown.view.refresh()
    assert entered == []
    shown.start("new")
    shown.report("new", 0.7)
    shown.view.refresh()
    assert entered == [200]  # that one alone


SAMPLERS = {
    "tpe": lambda: TPESampler(),
    "independent tpe": lambda: TPESampler(multivariate=False, constant_liar=False),
    "cma-es": lambda: optuna.samplers.CmaEsSampler(),
    "nsga-ii": lambda: optuna.samplers.NSGAIISampler(population_size=4),
    "quasi-random": lambda: optuna.samplers.QMCSampler(),
    "grid": lambda: optuna.samplers.GridSampler({"x": [0.2, 0.8], "y": [0.1, 0.5, 0.9]}),
    "gaussian process": lambda: optuna.samplers.GPSampler(n_startup_trials=4),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", SAMPLERS)
def test_view_with_each_sampler(name: str) -> None:
    shown = Shown(SAMPLERS[name]())
    for number in range(16):
        trial = f"t{number}"
        shown.start(trial)
        shown.report(trial, number / 16)
        if number % 3 == 0:
            shown.report(trial, number / 16, 0.5, 0.5)
            shown.end(trial, PRUNED, number / 16, 0.5, 0.5, crashed=number == 6)
        elif number % 3 == 1:
            shown.paused.add(trial)
    assert len(shown.view.study.get_trials()) == 16
    assert math.isfinite(sum(trial.params["x"] for trial in shown.view.study.get_trials()))
