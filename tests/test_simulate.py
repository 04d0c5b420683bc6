"""The benchmark in simulated time: its surrogate, its clock, its sides and its tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from benchmarks import simulate as benchmark
from benchmarks.record_curves import read_curves, read_repeats
from benchmarks.simulate import SIDES, Args, Key, RunFile, Simulator, draw_first
from benchmarks.simulated_ours import make_ours
from benchmarks.simulated_table import Row, Scale, estimate_median, estimate_ratio, make_table
from benchmarks.simulated_time import Decision, Limits, Run, Start, Task, simulate
from benchmarks.stock_sampler import StockSampler
from benchmarks.surrogate import Curve, Surrogate, diverges, draw_space, encode
from benchmarks.surrogate_models import Forest, GaussianProcess
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.search.samplers import reseed
from tune_jobs.engine.search.view import View
from tune_jobs.mnist import SEARCH_SPACE

GOAL = Goal("val_acc", "max")
UNREACHABLE = 2.0
RNG = np.random.default_rng(0)


class RisingCurves:
    """A surrogate: after epoch e a config's score is its x plus e / 100."""

    max_epochs = 3

    def curve(self, config: dict[str, Any], rng: np.random.Generator) -> Curve:
        return Curve(config["x"] + np.arange(1, 4) / 100, config.get("length", 1.0))


class ScriptedSide:
    """Starts the given trials; its decisions are (number, epoch) -> decision."""

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
    task = Task(GOAL, RisingCurves.max_epochs, num_slots, 0, [])
    chosen = Limits(**{"target": UNREACHABLE, "speed_spread": 0.0, **limits})
    return simulate(side, RisingCurves(), task, chosen)


def run_side(side: str, **args: Any) -> Run:
    small = Args(data="digits", model="forest", max_total_epochs=120, **args)
    return Simulator(small, UNREACHABLE).run(Key(side, 4, 0)).run


@pytest.mark.parametrize("make_model", [Forest, GaussianProcess])
def test_model_predict_one_row(make_model: Any) -> None:
    """The fast prediction of one row equals scikit-learn's."""
    rng = np.random.default_rng(0)
    inputs, rows = rng.random((40, 3)), rng.random((20, 3))
    model = make_model(inputs, np.stack([inputs.sum(axis=1), 9 + inputs[:, 0] ** 2], axis=1))
    one_by_one = np.stack([model.predict(row) for row in rows])
    np.testing.assert_allclose(one_by_one, model.predict_all(rows))
    np.testing.assert_allclose(one_by_one[:, 0], rows.sum(axis=1), atol=0.5)


def test_forest_reproduces_recorded_curves() -> None:
    configs, recorded = read_curves("digits")
    surrogate = Surrogate(configs, recorded, GOAL, model="forest")
    np.testing.assert_allclose(surrogate.curve(configs[7], RNG).scores, recorded["val_acc"][7])


@pytest.mark.long
def test_surrogate_noise_of_residuals() -> None:
    """Each training has the noise of a recorded one."""
    configs, recorded = read_curves("digits")
    surrogate = Surrogate(configs, recorded, GOAL)
    curves = np.stack([surrogate.curve(configs[7], RNG).scores for _ in range(400)])
    expected = surrogate.expect(configs)
    np.testing.assert_allclose(np.median(curves, axis=0), expected[7], atol=0.005)
    off = (recorded["val_acc"] - expected)[np.abs(expected[:, -1] - expected[7, -1]) < 0.005]
    assert curves.std(axis=0).mean() == pytest.approx(off.std(axis=0).mean(), rel=0.5)


@pytest.mark.long
def test_surrogate_noise_of_repeats() -> None:
    """Trainings of one config differ as much as its recorded repeats."""
    repeats = read_repeats("mnist", "val_acc")
    surrogate = Surrogate(*read_curves("mnist"), GOAL, list(repeats.values()))
    best = max(repeats, key=lambda place: repeats[place].max(axis=1).mean())
    config = read_curves("mnist")[0][best]
    spread = np.std([surrogate.curve(config, RNG).scores.max() for _ in range(400)])
    spreads = [scores.max(axis=1).std(ddof=1) for scores in repeats.values()]
    assert all(scores.shape == (7, 27) for scores in repeats.values())
    assert spread == pytest.approx(np.mean(spreads), rel=0.5)


@pytest.mark.parametrize("goal", [GOAL, Goal("val_loss", "min")])
def test_surrogate_top_one_percent(goal: Goal) -> None:
    """One config in a hundred reaches the target."""
    surrogate = Surrogate(*read_curves("digits"), goal, model="forest")
    top = surrogate.top(num_draws=300)
    curves = [surrogate.curve(config, RNG).scores for config in draw_space(300)]
    reached = [any(goal.gain(s) >= goal.gain(top.target) for s in curve) for curve in curves]
    assert sum(reached) == 3
    assert goal.gain(top.best) == pytest.approx(max(goal.gain(s) for c in curves for s in c))


def test_diverges_high_learning_rates() -> None:
    """The given share of the space diverges, mostly at high learning rates."""
    configs = draw_space(4_000)
    diverging = [config for config in configs if diverges(config, 0.25)]
    assert len(diverging) / len(configs) == pytest.approx(0.25, abs=0.02)
    assert np.median([c["lr"] for c in diverging]) > 2 * np.median([c["lr"] for c in configs])
    assert not any(diverges(config, 0.0) for config in configs)


def test_surrogate_diverging_config() -> None:
    """It reports NaN and is not counted among the top."""
    whole = Surrogate(*read_curves("digits"), GOAL, model="forest")
    surrogate = Surrogate(*read_curves("digits"), GOAL, nan_share=0.25, model="forest")
    config = next(config for config in draw_space(100) if diverges(config, 0.25))
    assert np.isnan(surrogate.curve(config, RNG).scores).all()
    assert surrogate.top(1_000).target < whole.top(1_000).target


def test_encode_ignores_order() -> None:
    (config,) = draw_space(1)
    np.testing.assert_array_equal(encode(config), encode(dict(reversed(config.items()))))


def test_slots_run_in_parallel() -> None:
    """Of epochs that end at the same time, the one of the earlier trial is reported first."""
    side = ScriptedSide([{"x": 0.1}, {"x": 0.2}, {"x": 0.3}])
    run = run_scripted(side, num_slots=2)
    order = [(number, epoch) for number, epoch, _ in side.reports]
    assert order == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert (run.epochs, run.num_trials) == (9, 3)


def test_simulation_recorded_epoch_lengths() -> None:
    configs = [{"x": 0.1, "length": 2.5}, {"x": 0.2}]
    side = ScriptedSide(configs)
    run_scripted(side, num_slots=2, uses_lengths=True)
    assert [number for number, _, _ in side.reports] == [1, 1, 0, 1, 0, 0]


def test_trial_speed_same_for_sides() -> None:
    orders = []
    for _ in range(2):
        side = ScriptedSide([{"x": 0.1}] * 4)
        run_scripted(side, num_slots=4, speed_spread=0.5)
        orders.append([number for number, _, _ in side.reports])
    assert orders[0] == orders[1] != sorted(orders[0])


def test_paused_trial_resumes() -> None:
    """A paused trial frees its slot, and resumes at its next epoch."""
    side = ScriptedSide([{"x": 0.1}, {"x": 0.2}], {(0, 1): "pause", (1, 2): "stop"}, resumed=(0,))
    run = run_scripted(side)
    assert side.reports == [(0, 1, 0.11), (1, 1, 0.21), (1, 2, 0.22), (0, 2, 0.12), (0, 3, 0.13)]
    assert run.num_trials == 2


def test_run_ends_at_target() -> None:
    """Unless it runs to the end."""
    configs = [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}]
    run = run_scripted(ScriptedSide(configs), target=0.22)
    assert (run.epochs_to_target, run.epochs, run.time_to_target) == (5, 5, 5.0)
    run = run_scripted(ScriptedSide(configs), target=0.22, runs_to_end=True)
    assert (run.epochs_to_target, run.epochs) == (5, 9)
    assert run.improvements[-1] == (9, pytest.approx(0.33))


def test_run_max_total_epochs() -> None:
    run = run_scripted(ScriptedSide([{"x": 0.1}] * 5), max_total_epochs=4)
    assert (run.epochs, run.epochs_to_target) == (4, None)


def test_side_continues_after_last_epoch() -> None:
    with pytest.raises(RuntimeError, match="side continues trial 0 after its last epoch, 3"):
        run_scripted(ScriptedSide([{"x": 0.1}], {(0, 3): "continue"}))


@pytest.mark.parametrize("side", [side for side in SIDES if not side.startswith("Syne Tune")])
def test_side_first_configs_and_repeat(side: str) -> None:
    """A side tries the first configs first, and repeats itself with the same seed."""
    first, again = run_side(side), run_side(side)
    assert first.improvements == again.improvements
    assert (first.epochs, first.num_trials) == (120, again.num_trials)
    task = Task(GOAL, 27, 4, 0, draw_first(0, 3))
    made = SIDES[side](task)
    starts = [made.start() for _ in range(3)]
    assert [start.config for start in starts if start] == task.first_configs


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


def test_promotion_pauses_at_first_epoch() -> None:
    task = Task(GOAL, 27, 1, 0, draw_first(0, 12))
    assert judged_at(SIDES["ours"](task), 12) == [1] * 12


def test_make_ours_other_parts() -> None:
    """A sampler and a view can be given, to try changes."""
    views: list[View] = []

    class OtherView(View):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            views.append(self)

    task = Task(GOAL, 27, 1, 0, draw_first(0, 1))
    side = make_ours(task, make_sampler=RandomSampler, make_view=OtherView)
    assert side.start() == Start(0, task.first_configs[0])
    (view,) = views
    assert isinstance(view.study.sampler, RandomSampler)
    assert len(view.study.trials) == 1


def test_stock_sampler_equals_optuna_search() -> None:
    """In a study whose stopped trials are PRUNED, it suggests what Ray's OptunaSearch suggests.

    Trials end in another order than they start, and one that reported NaN has no curve.
    """
    space = OptunaSearch.convert_search_space(SEARCH_SPACE)
    sampler = StockSampler(SEARCH_SPACE, GOAL)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    tpe = TPESampler()
    search = OptunaSearch(space, metric="val_acc", mode="max", sampler=tpe)
    running: list[optuna.Trial] = []
    for number in range(40):
        reseed(sampler, 0, number)
        reseed(tpe, 0, number)
        trial = study.ask(space)
        assert trial.params == search.suggest(str(number))
        running.append(trial)
        if number % 3 == 2:
            for ended in (running.pop(), running.pop(0)):
                end_trial(study, search, ended)


def end_trial(study: optuna.Study, search: OptunaSearch, trial: optuna.Trial) -> None:
    """End a trial as the engine does in its study, and as Ray Tune does in an OptunaSearch."""
    scores = [trial.params["dropout"], trial.params["lr"]]  # the last score is not the best
    state = TrialState.COMPLETE if trial.number % 2 else TrialState.PRUNED
    if trial.number % 7 == 0:
        search.on_trial_complete(str(trial.number), {"val_acc": float("nan")})
        study.tell(trial, state=TrialState.PRUNED)
        return
    for epoch, score in enumerate(scores, 1):
        trial.report(score, epoch)
        search.on_trial_result(str(trial.number), {"val_acc": score, "training_iteration": epoch})
    search.on_trial_complete(str(trial.number), {"val_acc": scores[-1]})
    study.tell(trial, max(scores) if state == TrialState.COMPLETE else None, state=state)


def test_diverged_trials_cost() -> None:
    """One epoch each in this project, and more with Ray's ASHA."""
    ours = run_side("ours", nan_share=0.5)
    assert ours.num_diverged > 5
    assert ours.max_diverged_epochs == 1
    assert run_side("OptunaSearch + ASHA", nan_share=0.5).max_diverged_epochs > 1


def test_ratio_of_paired_seeds() -> None:
    """Its interval is narrower than those of the medians."""
    others = np.random.default_rng(1).lognormal(6, 1, 40)
    ratio = estimate_ratio(others / 2, others)
    assert ratio == pytest.approx((0.5, 0.5, 0.5))
    median = estimate_median(others)
    assert median.low < median.value == np.median(others) < median.high


def test_table_run_misses_target() -> None:
    """A run that does not reach the target counts with all its epochs."""
    runs = {
        "ours": [Run(100, 25.0, 100, 30, [(10, 0.9), (100, 0.99)])] * 3,
        "peer": [Run(None, None, 3_000, 500, [(50, 0.8)]), Run(400, 100.0, 400, 90, [(400, 1.0)])],
    }
    rows = [Row(side, 4, seed, run) for side in runs for seed, run in enumerate(runs[side])]
    lines = make_table(rows, "ours", Scale(GOAL, 3_000, 1.0, [50])).splitlines()
    assert lines[2] == "| 4 | ours | 3 | 100 (100 to 100) | 100% |  | 1000.0 |"
    assert lines[3] == "| 4 | peer | 2 | 1,700 (400 to 3,000) | 50% | 0.06 (0.03 to 0.25) |  |"


def test_runs_in_file_not_repeated(
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


def test_run_file_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"settings": {"data": "digits"}, "runs": []}))
    with pytest.raises(SystemExit, match="holds runs made with another data; choose another --out"):
        RunFile(path, {"data": "mnist"})


def test_check_unknown_noise() -> None:
    with pytest.raises(SystemExit, match="got digits and gp; use --noise residuals"):
        benchmark.main(Args(data="digits", noise="repeats"))
    with pytest.raises(SystemExit, match="got mnist and forest; use --noise residuals"):
        benchmark.main(Args(model="forest", noise="repeats"))


def test_main_given_target(capsys: pytest.CaptureFixture[str]) -> None:
    args = Args(
        data="digits", model="forest", sides=("ours",), slots=(1,), num_seeds=1,
        target=0.01, num_draws=300, num_processes=1,
    )  # fmt: skip
    benchmark.main(args)
    table = capsys.readouterr().out
    assert "digits, test, val_acc, forest: target 0.0100, best" in table
    assert "| 1 | ours | 1 | 1 (1 to 1) | 100% |" in table


def test_check_unknown_side() -> None:
    with pytest.raises(SystemExit, match="unknown side 'theirs'; choose from: ours,"):
        benchmark.main(Args(sides=("theirs",)))
