"""What a sampler is shown of a sweep with rungs."""

import math
import random
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.search.view import View

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


class Shown:
    """A view of trials named by letters, told by hand what befalls them."""

    def __init__(
        self, sampler: BaseSampler | None = None, mode: str = "max", **kwargs: Any
    ) -> None:
        self.waiting: set[str] = set()
        kwargs = {"rungs": RUNGS, "has_to_wait": self.waiting.__contains__, **kwargs}
        self.view = View(Goal("score", mode), sampler or RandomSampler(), {}, **kwargs)

    def start(self, *names: str) -> None:
        for name in names:
            self.view.refresh()
            trial = self.view.study.ask(SPACE)
            self.view.start(name, self.view.study.get_trials()[trial.number])

    def report(self, name: str, *curve: float) -> None:
        for epoch, value in whole(*curve).items():
            self.view.report(name, epoch, value)

    def end(self, name: str, state: TrialState, *curve: float, crashed: bool = False) -> None:
        self.view.end(name, state, curve[-1] if curve else None, whole(*curve), crashed)

    def states(self) -> list[tuple[TrialState, float | None]]:
        self.view.refresh()
        return [(trial.state, trial.value) for trial in self.view.study.get_trials()]


def test_running_trial_is_shown_with_its_value_at_the_rung() -> None:
    shown = Shown()
    shown.start("a", "b")
    shown.report("a", 0.5, 0.7)  # its value is that of the rung, not its last
    assert shown.states() == [(COMPLETE, 0.5), (RUNNING, None)]


def test_paused_trial_is_shown_at_its_rung_and_left_out_above_it() -> None:
    shown = Shown()
    names = "abcdefghi"
    shown.start(*names)
    for number, name in enumerate(names):
        shown.report(name, number / 10)
    shown.waiting.update(names)
    assert shown.states() == [(COMPLETE, number / 10) for number in range(9)]
    for name in names[:NUM_ENOUGH]:
        shown.report(name, 0.0, 0.0, 0.9)
    above = [(COMPLETE, 0.9)] * NUM_ENOUGH
    assert shown.states() == [*above, *[(FAIL, None)] * 3]
    shown.waiting.discard("i")  # it is promoted: on its way, the liar counts it as bad
    assert shown.states() == [*above, *[(FAIL, None)] * 2, (RUNNING, None)]


def test_rung_is_not_trusted_before_enough_trials_have_reached_it() -> None:
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


def test_rung_whose_trials_have_crashed_is_left_again() -> None:
    shown = Shown()
    names = "abcdefghijkl"
    shown.start(*names)
    for name in names:
        shown.report(name, 0.1)
    shown.waiting.update(names[NUM_ENOUGH:])
    for name in names[:NUM_ENOUGH]:
        shown.report(name, 0.1, 0.2, 0.3)
    assert {value for _, value in shown.states()} == {0.3, None}
    for name in names[:NUM_ENOUGH]:
        shown.end(name, PRUNED, 0.1, 0.2, 0.3, crashed=True)
    good = len(names) - NUM_ENOUGH
    assert shown.states() == [(PRUNED, None)] * NUM_ENOUGH + [(COMPLETE, 0.1)] * good


def test_more_slots_ask_for_more_values() -> None:
    shown = Shown()
    names = "abcdefgh"
    shown.start(*names)
    for name in names[:NUM_ENOUGH]:
        shown.report(name, 0.1, 0.2, 0.3)
    assert {value for _, value in shown.states()} == {0.1, None}  # 8 run side by side
    shown.waiting.update("efgh")
    assert {value for _, value in shown.states()} == {0.3, None}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_crash_and_nan_are_the_worst_whatever_they_had_reached(mode: str) -> None:
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


def test_trial_that_ended_at_once_is_the_worst_too() -> None:
    shown = Shown()
    shown.start("a")
    shown.end("a", PRUNED, crashed=True)
    assert shown.states() == [(PRUNED, None)]


def test_trial_that_ended_by_itself_before_the_rung_is_shown_as_it_ended() -> None:
    shown = Shown()
    shown.start("a", "b", "c")
    for name, state in (("a", COMPLETE), ("b", PRUNED)):
        shown.view.report(name, 5, 0.4)
        shown.view.end(name, state, 0.4, {5: 0.4}, False)
    shown.view.end("c", PRUNED, None, {}, False)  # cut short before its first report
    assert shown.states() == [(COMPLETE, 0.4), (FAIL, None), (FAIL, None)]


def test_sampler_sees_the_parameters_of_a_trial_that_had_been_hidden() -> None:
    sampler = TPESampler()
    shown = Shown(sampler)
    shown.start("a", "b")
    shown.view.report("a", 1, 0.1)
    shown.waiting.add("a")
    shown.start("c")
    assert shown.states()[0] == (FAIL, None)
    assert not sampler._search_space.calculate(shown.view.study)
    shown.waiting.clear()
    shown.report("a", 0.5)
    assert shown.states()[0] == (COMPLETE, 0.5)
    assert sampler._search_space.calculate(shown.view.study).keys() == SPACE.keys()


def test_epoch_that_skips_a_rung_counts_for_the_one_it_has_reached() -> None:
    shown = Shown()
    shown.start("a")
    shown.view.report("a", 17, 0.4)
    shown.view.report("a", 18, 0.5)
    assert shown.states() == [(COMPLETE, 0.4)]
    assert shown.view._seen[0].at_rungs == {16: (17, 0.4)}


@pytest.mark.parametrize(
    ("rungs", "level"),
    [((1, 3, 9, 27), 9), ((1, 2, 4, 8, 16), 8), ((1, 2, 4, 8), 4), ((1, 3), 1), ((5,), 5)],
)
def test_rungs_before_the_eighth_epoch_are_not_shown_but_the_last_but_one_is(
    rungs: tuple[int, ...], level: int
) -> None:
    shown = Shown(rungs=rungs)
    shown.start("a", "b")
    shown.view.report("a", level, 0.9)
    shown.view.report("b", level - 1, 0.1)
    assert shown.states() == [(COMPLETE, 0.9), (RUNNING, None)]


def test_epoch_that_is_trained_again_replaces_its_value() -> None:
    shown = Shown()
    shown.start("a")
    shown.report("a", 0.1, 0.2)
    shown.report("a", 0.15, 0.25)
    assert shown.states() == [(COMPLETE, 0.15)]


def test_view_without_rungs_shows_trials_as_they_ended() -> None:
    shown = Shown(rungs=())
    shown.start("a", "b", "c")
    shown.report("c", 0.4)
    shown.end("a", COMPLETE, 0.1, 0.5)
    shown.end("b", PRUNED, 0.1, 0.2)
    assert shown.states() == [(COMPLETE, 0.5), (PRUNED, 0.2), (RUNNING, None)]
    assert shown.view.study.get_trials()[1].intermediate_values == {8: 0.1, 9: 0.2}


def recorded(shown: Shown, name: str, curve: dict[int, float], state: TrialState) -> FrozenTrial:
    asked = shown.view.study.get_trials()[shown.view._numbers[name]]
    return create_trial(
        state=state,
        params=asked.params,
        distributions=asked.distributions,
        intermediate_values=curve,
        values=[max(curve.values())] if state == COMPLETE else None,
        user_attrs={"trial_id": name},
    )


def test_view_of_a_sweep_that_is_gone_on_with_is_the_one_that_was() -> None:
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
                shown.waiting.add(name)
    again = Shown(has_to_wait=shown.waiting.__contains__)
    for name, (curve_of_all, state) in ends.items():
        again.view.add(recorded(shown, name, curve_of_all, state), name)
    assert again.states() == shown.states()
    assert {state for state, _ in shown.states()} == {COMPLETE, FAIL, RUNNING}


def test_trials_of_another_sweep_are_shown_at_the_rung_too() -> None:
    shown, other = Shown(), Shown()
    other.start("a", "b", "c")
    for name, curve, state in (
        ("a", {8: 0.2, 16: 0.6}, PRUNED),
        ("b", {}, PRUNED),  # it crashed
        ("c", {9: 0.3, 17: 0.9}, COMPLETE),
    ):
        shown.view.add(recorded(other, name, curve, state) if curve else crash(other, name))
    assert shown.states() == [(COMPLETE, 0.2), (PRUNED, None), (COMPLETE, 0.3)]


def crash(shown: Shown, name: str) -> FrozenTrial:
    asked = shown.view.study.get_trials()[shown.view._numbers[name]]
    return create_trial(state=PRUNED, params=asked.params, distributions=asked.distributions)


def test_view_is_updated_and_not_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown()
    names = [f"t{number}" for number in range(200)]
    for name in names:
        shown.start(name)
        shown.end(name, PRUNED, 0.5)
    shown.states()
    entered: list[int] = []
    monkeypatch.setattr(shown.view._storage, "_set_trial", lambda number, trial: entered.append(1))
    shown.view.refresh()
    assert entered == []


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
def test_any_sampler_of_optuna_can_be_asked(name: str) -> None:
    shown = Shown(SAMPLERS[name]())
    for number in range(16):
        trial = f"t{number}"
        shown.start(trial)
        shown.report(trial, number / 16)
        if number % 3 == 0:
            shown.report(trial, number / 16, 0.5, 0.5)
            shown.end(trial, PRUNED, number / 16, 0.5, 0.5, crashed=number == 6)
        elif number % 3 == 1:
            shown.waiting.add(trial)
    assert len(shown.view.study.get_trials()) == 16
    assert math.isfinite(sum(trial.params["x"] for trial in shown.view.study.get_trials()))
