"""The benchmark in simulated time: what it looks up, what it counts, and who takes part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import simulate as benchmark
from benchmarks.record_curves import read_curves, read_repeats
from benchmarks.simulate import SIDES, Args, Key, RunFile, Simulator, draw_first
from benchmarks.simulated_table import Row, Scale, estimate_median, estimate_ratio, make_table
from benchmarks.simulated_time import Decision, Limits, Run, Start, Task, simulate
from benchmarks.surrogate import Curve, Surrogate, diverges, draw_space, encode
from benchmarks.surrogate_models import Forest, GaussianProcess
from tune_jobs.engine.core.goal import Goal

GOAL = Goal("val_acc", "max")
UNREACHABLE = 2.0
RNG = np.random.default_rng(0)


class RisingCurves:
    """A surrogate: after epoch e a config's score is its x plus e / 100."""

    max_epochs = 3

    def curve(self, config: dict[str, Any], rng: np.random.Generator) -> Curve:
        return Curve(config["x"] + np.arange(1, 4) / 100, config.get("length", 1.0))


class ScriptedSide:
    """Starts the trials it was given, and decides as it was told: (number, epoch) -> decision."""

    def __init__(
        self,
        configs: list[dict[str, Any]],
        decisions: dict[tuple[int, int], Decision] | None = None,
        resumed: tuple[int, ...] = (),
    ) -> None:
        self.starts = [*enumerate(configs), *((number, configs[number]) for number in resumed)]
        self.decisions = decisions or {}
        self.reports: list[tuple[int, int, float]] = []

    def start(self) -> Start | None:
        return Start(*self.starts.pop(0)) if self.starts else None

    def report(self, number: int, epoch: int, score: float) -> Decision:
        self.reports.append((number, epoch, round(score, 2)))
        return self.decisions.get((number, epoch), "stop" if epoch == 3 else "continue")


def run_scripted(side: Any, num_slots: int = 1, **limits: Any) -> Run:
    task = Task(GOAL, RisingCurves.max_epochs, num_slots, 0, [], lambda config: 0.0)
    chosen = Limits(**{"target": UNREACHABLE, "speed_spread": 0.0, **limits})
    return simulate(side, RisingCurves(), task, chosen)


def run_side(side: str, **args: Any) -> Run:
    small = Args(data="digits", model="forest", max_total_epochs=120, **args)
    return Simulator(small, UNREACHABLE).run(Key(side, 4, 0)).run


@pytest.mark.parametrize("make_model", [Forest, GaussianProcess])
def test_model_predicts_one_row_as_scikit_learn_does(make_model: Any) -> None:
    rng = np.random.default_rng(0)
    inputs, rows = rng.random((40, 3)), rng.random((20, 3))
    model = make_model(inputs, np.stack([inputs.sum(axis=1), 9 + inputs[:, 0] ** 2], axis=1))
    one_by_one = np.stack([model.predict(row) for row in rows])
    np.testing.assert_allclose(one_by_one, model.predict_all(rows))
    np.testing.assert_allclose(one_by_one[:, 0], rows.sum(axis=1), atol=0.5)


def test_forest_has_the_curves_that_were_recorded() -> None:
    configs, recorded = read_curves("digits")
    surrogate = Surrogate(configs, recorded, GOAL, model="forest")
    np.testing.assert_allclose(surrogate.curve(configs[7], RNG).scores, recorded["val_acc"][7])


def test_each_training_of_a_config_has_the_noise_of_a_recorded_one() -> None:
    configs, recorded = read_curves("digits")
    surrogate = Surrogate(configs, recorded, GOAL)
    curves = np.stack([surrogate.curve(configs[7], RNG).scores for _ in range(400)])
    expected = surrogate.expect(configs)
    np.testing.assert_allclose(np.median(curves, axis=0), expected[7], atol=0.005)
    off = (recorded["val_acc"] - expected)[np.abs(expected[:, -1] - expected[7, -1]) < 0.005]
    assert curves.std(axis=0).mean() == pytest.approx(off.std(axis=0).mean(), rel=0.5)


def test_noise_of_repeats_is_how_far_trainings_of_one_config_differ() -> None:
    repeats = read_repeats("mnist", "val_acc")
    surrogate = Surrogate(*read_curves("mnist"), GOAL, list(repeats.values()))
    best = max(repeats, key=lambda place: repeats[place].max(axis=1).mean())
    config = read_curves("mnist")[0][best]
    spread = np.std([surrogate.curve(config, RNG).scores.max() for _ in range(400)])
    spreads = [scores.max(axis=1).std(ddof=1) for scores in repeats.values()]
    assert all(scores.shape == (7, 27) for scores in repeats.values())
    assert spread == pytest.approx(np.mean(spreads), rel=0.5)


@pytest.mark.parametrize("goal", [GOAL, Goal("val_loss", "min")])
def test_target_is_what_one_config_in_a_hundred_reaches(goal: Goal) -> None:
    surrogate = Surrogate(*read_curves("digits"), goal, model="forest")
    top = surrogate.top(num_draws=300)
    curves = [surrogate.curve(config, RNG).scores for config in draw_space(300)]
    reached = [any(goal.gain(s) >= goal.gain(top.target) for s in curve) for curve in curves]
    assert sum(reached) == 3
    assert goal.gain(top.best) == pytest.approx(max(goal.gain(s) for c in curves for s in c))


def test_share_of_the_space_diverges_where_learning_rates_are_high() -> None:
    configs = draw_space(4_000)
    diverging = [config for config in configs if diverges(config, 0.25)]
    assert len(diverging) / len(configs) == pytest.approx(0.25, abs=0.02)
    assert np.median([c["lr"] for c in diverging]) > 2 * np.median([c["lr"] for c in configs])
    assert not any(diverges(config, 0.0) for config in configs)


def test_diverging_config_reports_nan_and_is_not_among_the_top() -> None:
    whole = Surrogate(*read_curves("digits"), GOAL, model="forest")
    surrogate = Surrogate(*read_curves("digits"), GOAL, nan_share=0.25, model="forest")
    config = next(config for config in draw_space(100) if diverges(config, 0.25))
    assert np.isnan(surrogate.curve(config, RNG).scores).all()
    assert surrogate.top(1_000).target < whole.top(1_000).target


def test_configs_are_encoded_by_name_whatever_their_order() -> None:
    (config,) = draw_space(1)
    np.testing.assert_array_equal(encode(config), encode(dict(reversed(config.items()))))


def test_slots_train_side_by_side_and_ties_go_to_the_trial_that_started_first() -> None:
    side = ScriptedSide([{"x": 0.1}, {"x": 0.2}, {"x": 0.3}])
    run = run_scripted(side, num_slots=2)
    order = [(number, epoch) for number, epoch, _ in side.reports]
    assert order == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert (run.epochs, run.num_trials) == (9, 3)


def test_lengths_of_epochs_are_heeded_if_asked_for() -> None:
    configs = [{"x": 0.1, "length": 2.5}, {"x": 0.2}]
    side = ScriptedSide(configs)
    run_scripted(side, num_slots=2, heeds_lengths=True)
    assert [number for number, _, _ in side.reports] == [1, 1, 0, 1, 0, 0]


def test_speed_of_a_trial_is_the_same_for_each_side() -> None:
    orders = []
    for _ in range(2):
        side = ScriptedSide([{"x": 0.1}] * 4)
        run_scripted(side, num_slots=4, speed_spread=0.5)
        orders.append([number for number, _, _ in side.reports])
    assert orders[0] == orders[1] != sorted(orders[0])


def test_paused_trial_frees_its_slot_and_goes_on_where_it_was() -> None:
    side = ScriptedSide([{"x": 0.1}, {"x": 0.2}], {(0, 1): "pause", (1, 2): "stop"}, resumed=(0,))
    run = run_scripted(side)
    assert side.reports == [(0, 1, 0.11), (1, 1, 0.21), (1, 2, 0.22), (0, 2, 0.12), (0, 3, 0.13)]
    assert run.num_trials == 2


def test_run_ends_at_the_target_unless_it_goes_to_the_end() -> None:
    configs = [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}]
    run = run_scripted(ScriptedSide(configs), target=0.22)
    assert (run.epochs_to_target, run.epochs, run.time_to_target) == (5, 5, 5.0)
    run = run_scripted(ScriptedSide(configs), target=0.22, goes_to_the_end=True)
    assert (run.epochs_to_target, run.epochs) == (5, 9)
    assert run.improvements[-1] == (9, pytest.approx(0.33))


def test_run_ends_when_its_epochs_are_spent() -> None:
    run = run_scripted(ScriptedSide([{"x": 0.1}] * 5), max_total_epochs=4)
    assert (run.epochs, run.epochs_to_target) == (4, None)


def test_side_that_goes_on_after_the_last_epoch_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="Trial 0 is to go on after its last epoch, 3"):
        run_scripted(ScriptedSide([{"x": 0.1}], {(0, 3): "continue"}))


TOO_SLOW = ("ours, GP",)


@pytest.mark.parametrize(
    "side", [side for side in SIDES if not side.startswith("Syne Tune") and side not in TOO_SLOW]
)
def test_side_tries_the_first_configs_first_and_does_the_same_again(side: str) -> None:
    first, again = run_side(side), run_side(side)
    assert first.improvements == again.improvements
    assert (first.epochs, first.num_trials) == (120, again.num_trials)
    task = Task(GOAL, 27, 4, 0, draw_first(0, 3), lambda config: 0.0)
    made = SIDES[side](task)
    starts = [made.start() for _ in range(3)]
    assert [start.config for start in starts if start] == task.first_configs


def test_oracle_promotes_by_what_is_to_come_and_not_by_what_is_reported() -> None:
    configs = draw_first(0, 4)
    task = Task(GOAL, 27, 1, 0, configs, lambda config: float(config["dropout"]))
    oracle = SIDES["oracle"](task)
    epochs: dict[int, int] = {}
    while len(epochs) < 5:
        start = oracle.start()
        assert start is not None
        decision = "continue"
        while decision == "continue":
            epochs[start.number] = epochs.get(start.number, 0) + 1
            score = 1.0 - start.config["dropout"]
            decision = oracle.report(start.number, epochs[start.number], score)
    best = max(range(4), key=lambda number: configs[number]["dropout"])
    worst = min(range(4), key=lambda number: configs[number]["dropout"])
    assert epochs[best] > epochs[worst] == 1


def judged_at(side: Any, num_trials: int) -> list[int]:
    """The epoch at which each of the first trials is paused first."""
    epochs = []
    for number in range(num_trials):
        start = side.start()
        assert start is not None
        assert start.number == number
        epoch, decision = 0, "continue"
        while decision == "continue":
            epoch += 1
            decision = side.report(number, epoch, -float(number))
        epochs.append(epoch)
        side._scheduler._paused.clear()  # so that none of them is promoted
    return epochs


@pytest.mark.parametrize(
    ("side", "epochs"),
    [
        ("ours", [1] * 12),
        ("ours, barrier 10", [8] * 10 + [1] * 2),
        ("ours, bracket 4", [1, 1, 1, 4] * 3),
        ("ours, bracket 8", [1, 1, 1, 8] * 3),
    ],
)
def test_barrier_and_brackets_judge_some_trials_later(side: str, epochs: list[int]) -> None:
    task = Task(GOAL, 27, 1, 0, draw_first(0, 12), lambda config: 0.0)
    assert judged_at(SIDES[side](task), 12) == epochs


def test_diverged_trials_cost_ours_one_epoch_each_and_stock_asha_all() -> None:
    ours = run_side("ours", nan_share=0.5)
    assert ours.num_diverged > 5
    assert ours.max_diverged_epochs == 1
    assert run_side("OptunaSearch + ASHA", nan_share=0.5).max_diverged_epochs > 1


def test_ratio_of_paired_seeds_is_narrower_than_their_medians() -> None:
    others = np.random.default_rng(1).lognormal(6, 1, 40)
    ratio = estimate_ratio(others / 2, others)
    assert ratio == pytest.approx((0.5, 0.5, 0.5))
    median = estimate_median(others)
    assert median.low < median.value == np.median(others) < median.high


def test_table_counts_a_run_that_does_not_get_there_as_its_whole_budget() -> None:
    runs = {
        "ours": [Run(100, 25.0, 100, 30, [(10, 0.9), (100, 0.99)])] * 3,
        "peer": [Run(None, None, 3_000, 500, [(50, 0.8)]), Run(400, 100.0, 400, 90, [(400, 1.0)])],
    }
    rows = [Row(side, 4, seed, run) for side in runs for seed, run in enumerate(runs[side])]
    lines = make_table(rows, "ours", Scale(GOAL, 3_000, 1.0, [50])).splitlines()
    assert lines[2] == "| 4 | ours | 3 | 100 (100 to 100) | 100% |  | 1000.0 |"
    assert lines[3] == "| 4 | peer | 2 | 1,700 (400 to 3,000) | 50% | 0.06 (0.03 to 0.25) |  |"


def test_runs_in_the_file_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.json"
    args = Args(
        data="digits", model="forest", sides=("ours", "random + ASHA"), slots=(4,), num_seeds=2,
        out=out, max_total_epochs=30, num_draws=300, num_processes=1,
    )  # fmt: skip
    benchmark.main(args)
    table = capsys.readouterr().out
    assert "| 4 | random + ASHA | 2 | 30 (30 to 30) | 0% | 1.00 (1.00 to 1.00) |" in table
    content = out.read_text()
    made: list[Key] = []

    def note(args: Args, target: float, keys: list[Key]) -> Any:
        made.extend(keys)
        return iter(())

    monkeypatch.setattr(benchmark, "make_rows", note)
    benchmark.main(args)
    assert (made, out.read_text(), capsys.readouterr().out) == ([], content, table)


def test_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"settings": {"data": "digits"}, "runs": []}))
    with pytest.raises(SystemExit, match="holds runs with another data; give another --out"):
        RunFile(path, {"data": "mnist"})


def test_noise_that_is_not_to_be_had_is_refused() -> None:
    with pytest.raises(SystemExit, match="not of digits with gp; give --noise residuals"):
        benchmark.main(Args(data="digits", noise="repeats"))
    with pytest.raises(SystemExit, match="not of mnist with forest; give --noise residuals"):
        benchmark.main(Args(model="forest", noise="repeats"))


def test_target_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    args = Args(
        data="digits", model="forest", sides=("ours",), slots=(1,), num_seeds=1,
        target=0.01, num_draws=300, num_processes=1,
    )  # fmt: skip
    benchmark.main(args)
    table = capsys.readouterr().out
    assert "the top from 0.0100 on" in table
    assert "| 1 | ours | 1 | 1 (1 to 1) | 100% |" in table


def test_unknown_side_is_named() -> None:
    with pytest.raises(SystemExit, match="'theirs' is no side; there are: ours,"):
        benchmark.main(Args(sides=("theirs",)))
