"""A sweep whose study its user treated as Optuna's users do (optuna#3104).

`enqueue_trial`, `add_trial`, `ask`, `tell`, user attributes: the sweep resumes. A trial that no
driver started is foreign: it is shown to the sampler, is never the winner, and the summary names
it. A copy of the job `study_as_optuna_users_do.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from tune_jobs.engine import Settings, SweepResult, load_study, run_sweep
from tune_jobs.engine.report.summary import format_summary

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.usefixtures("_ray")]

NUM_FIRST = 3
PARAMS: dict[str, Any] = {"kind": "adam", "x": 0.5}
DISTRIBUTIONS: dict[str, Any] = {
    "kind": CategoricalDistribution(["sgd", "adam"]),
    "x": FloatDistribution(0, 1),
}


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def space(trial: optuna.Trial) -> None:
    kind = trial.suggest_categorical("kind", ["sgd", "adam"])
    if kind == "sgd":
        trial.suggest_float("momentum", 0, 1)
    trial.suggest_float("x", 0, 1)


def run(folder: Path, num_trials: int, **kwargs: Any) -> SweepResult:
    """Run the sweep, or resume it if it is there."""

    def score(config: dict[str, Any]) -> float:
        return float(config["x"] + config.get("momentum", 0.3))

    settings = Settings(
        storage_path=str(folder), name="a", num_trials=num_trials, gpus_per_trial=0,
        resume=(folder / "a").exists(), **kwargs.pop("settings", {}),
    )  # fmt: skip
    return run_sweep(
        settings, space=space, metric="score", mode="max", objective=score, progress=None,
        **{"sampler": RandomSampler(), **kwargs},
    )  # fmt: skip


class Looking(RandomSampler):
    """Keeps the values that it is shown, each time that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[float | None] = []

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        self.shown = [t.value for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        return super().sample_relative(study, trial, search_space)


def add(study: optuna.Study, **changes: Any) -> None:
    trial = {"params": PARAMS, "distributions": DISTRIBUTIONS, "value": 99.0, **changes}
    study.add_trial(create_trial(**trial))


def add_outside(study: optuna.Study) -> None:
    add(study, params={"kind": "adam", "x": 7.0}, distributions={
        "kind": CategoricalDistribution(["sgd", "adam"]), "x": FloatDistribution(0, 10),
    })  # fmt: skip


def add_other_parameter(study: optuna.Study) -> None:
    add(study, params={"z": 7.0}, distributions={"z": FloatDistribution(0, 10)})


def ask_and_tell(study: optuna.Study) -> None:
    study.enqueue_trial(PARAMS)  # of "sgd" the space asks for more
    study.tell(study.ask(DISTRIBUTIONS), 99.0)


def tell_failed(study: optuna.Study) -> None:
    study.tell(study.ask(DISTRIBUTIONS), state=TrialState.FAIL)


def leave_running(study: optuna.Study) -> None:
    study.ask(DISTRIBUTIONS).report(99.0, step=1)


def optimize(study: optuna.Study) -> None:
    study.optimize(lambda trial: 99.0 + trial.suggest_float("x", 0, 1), n_trials=1)


FOREIGN: dict[str, Callable[[optuna.Study], None]] = {
    "value": add,
    "curve": lambda study: add(study, intermediate_values={0: 98.0, 1: 99.0}),
    "attributes": lambda study: add(study, user_attrs={"by": "hand"}, system_attrs={"a": 1}),
    "constraint": lambda study: add(study, constraints={"memory": 2.0}),
    "failed": lambda study: add(study, state=TrialState.FAIL, value=None),
    "pruned": lambda study: add(
        study, state=TrialState.PRUNED, value=None, intermediate_values={1: 99.0}
    ),
    "pruned at once": lambda study: add(study, state=TrialState.PRUNED, value=None),
    "running": lambda study: add(study, state=TrialState.RUNNING, value=None),
    "outside": add_outside,
    "other parameter": add_other_parameter,
    "no parameter": lambda study: add(study, params={}, distributions={}),
    "asked": leave_running,
    "told": ask_and_tell,
    "told failed": tell_failed,
    "optimized": optimize,
}


LONG = ("attributes", "constraint", "running", "no parameter", "told failed", "pruned at once")


@pytest.mark.parametrize(
    "treat",
    [
        pytest.param(treat, id=name, marks=[pytest.mark.long] if name in LONG else [])
        for name, treat in FOREIGN.items()
    ],
)
def test_resume_with_foreign_trial(treat: Callable[[optuna.Study], None], tmp_path: Path) -> None:
    """More trials are run, the foreign one does not count, and stays as its user left it."""
    run(tmp_path, NUM_FIRST)
    treat(load_study(tmp_path / "a"))
    before = load_study(tmp_path / "a").trials[NUM_FIRST]
    result = run(tmp_path, NUM_FIRST + 1)
    assert [row["trial"] for row in result.rows] == [*range(NUM_FIRST), NUM_FIRST + 1]
    assert {row["state"] for row in result.rows} == {"COMPLETE"}
    assert result.best_score < 3
    assert result.best_trial != NUM_FIRST
    assert not result.is_resumable
    assert f"trials {NUM_FIRST}, which were added to its study by hand" in format_summary(result)
    after = load_study(tmp_path / "a").trials[NUM_FIRST]
    for attribute in ("state", "params", "values", "intermediate_values", "user_attrs"):
        assert getattr(after, attribute) == getattr(before, attribute)


def test_resume_twice_with_foreign_trials(tmp_path: Path) -> None:
    """Trials of the sweep and of its user take turns."""
    run(tmp_path, NUM_FIRST)
    add(load_study(tmp_path / "a"))
    first = run(tmp_path, NUM_FIRST + 1)
    leave_running(load_study(tmp_path / "a"))
    result = run(tmp_path, NUM_FIRST + 2)
    assert result.rows[:-1] == first.rows
    assert result.foreign == [3, 5]
    assert "trials 3, 5, which" in format_summary(result)


@pytest.mark.parametrize("name", ["value", "curve", "told"])
def test_foreign_trial_shown_to_sampler(name: str, tmp_path: Path) -> None:
    run(tmp_path, NUM_FIRST)
    FOREIGN[name](load_study(tmp_path / "a"))
    sampler = Looking()
    run(tmp_path, NUM_FIRST + 1, sampler=sampler)
    assert 99.0 in sampler.shown
    assert len(sampler.shown) == NUM_FIRST + 1


@pytest.mark.parametrize("name", ["outside", "other parameter"])
def test_foreign_trial_outside_hidden(name: str, tmp_path: Path) -> None:
    """What could not be drawn here would mislead the sampler, or end it with an error."""
    run(tmp_path, NUM_FIRST)
    FOREIGN[name](load_study(tmp_path / "a"))
    sampler = Looking()
    run(tmp_path, NUM_FIRST + 1, sampler=sampler)
    assert 99.0 not in sampler.shown


def test_foreign_trials_teach_tpe(tmp_path: Path) -> None:
    run(tmp_path, NUM_FIRST)
    study = load_study(tmp_path / "a")
    for number in range(50):
        x = number / 50
        add(study, params={"kind": "adam", "x": x}, value=10 - 10 * abs(x - 0.25))
    result = run(tmp_path, NUM_FIRST + 8, sampler=TPESampler())
    new = [row["config/x"] for row in result.rows[NUM_FIRST:]]
    assert sum(abs(x - 0.25) < 0.15 for x in new) >= 5  # random: 2
    assert len(result.rows) == NUM_FIRST + 8


def test_enqueue_trial_runs_next(tmp_path: Path) -> None:
    """It is a trial of the sweep from then on; its user attributes stay."""
    run(tmp_path, NUM_FIRST)
    study = load_study(tmp_path / "a")
    study.enqueue_trial({"kind": "sgd", "momentum": 0.75, "x": 0.999}, user_attrs={"by": "hand"})
    study.enqueue_trial({"x": 0.001})
    result = run(tmp_path, NUM_FIRST + 3)
    whole, part, _ = result.rows[NUM_FIRST:]
    assert (whole["config/momentum"], whole["config/x"]) == (0.75, 0.999)
    assert part["config/x"] == 0.001
    trial = load_study(tmp_path / "a").trials[NUM_FIRST]
    assert trial.user_attrs["by"] == "hand"
    assert (trial.state, trial.value) == (TrialState.COMPLETE, pytest.approx(1.749))
    assert "by hand" not in format_summary(result)


@pytest.mark.parametrize("attrs", [{}, {"fixed_params": {"x": 0.999, "nonsense": 1}}])
def test_waiting_trial_without_params(attrs: dict[str, Any], tmp_path: Path) -> None:
    """`add_trial` of a trial that waits, without Optuna's queue, or with more than the space has:
    the search fills in the rest."""
    run(tmp_path, NUM_FIRST)
    waiting = create_trial(state=TrialState.WAITING, system_attrs=attrs)
    load_study(tmp_path / "a").add_trial(waiting)
    result = run(tmp_path, NUM_FIRST + 2)
    assert [row["trial"] for row in result.rows] == list(range(NUM_FIRST + 2))
    assert (result.rows[NUM_FIRST]["config/x"] == 0.999) == bool(attrs)


def test_copied_trials_do_not_count(tmp_path: Path) -> None:
    """The trials of another sweep, and a second copy of an own one."""
    for folder in ("other", "own"):
        run(tmp_path / folder, NUM_FIRST)
    study = load_study(tmp_path / "own" / "a")
    study.add_trials(load_study(tmp_path / "other" / "a").trials)
    study.add_trial(study.best_trial)
    result = run(tmp_path / "own", NUM_FIRST + 2)
    assert [row["trial"] for row in result.rows] == [0, 1, 2, 7, 8]
    assert result.foreign == [3, 4, 5, 6]


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE])
def test_own_trial_told_by_hand(state: TrialState, tmp_path: Path) -> None:
    """A trial of a stopped sweep: it counts, is never the winner, and is retried if it failed."""
    run(tmp_path, NUM_FIRST)
    file = tmp_path / "a" / "study.log"
    lines = file.read_text().splitlines(keepends=True)
    of_last = [n for n, line in enumerate(lines) if '"trial_id":2' in line]
    file.write_text("".join(line for n, line in enumerate(lines) if n not in of_last))
    study = load_study(tmp_path / "a")
    assert study.trials[2].state == TrialState.RUNNING
    if state == TrialState.PRUNED:
        study._storage.set_trial_intermediate_value(study.trials[2]._trial_id, 1, 77.0)
    study.tell(2, 77.0 if state == TrialState.COMPLETE else None, state=state)
    result = run(tmp_path, NUM_FIRST, settings={"retry_failed": True})
    has_failed = state == TrialState.FAIL
    row = result.rows[2]
    assert (row["state"], row["reason"]) == (state.name, "ended by hand")
    assert len(result.rows) == NUM_FIRST + has_failed
    assert list(result.failures) == [2] * has_failed
    assert result.best_score < 3
    assert not result.foreign


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_study_attributes_survive(tmp_path: Path) -> None:
    run(tmp_path, NUM_FIRST)
    study = load_study(tmp_path / "a")
    study.set_user_attr("note", "the second data set")
    study.set_metric_names(["score"])
    run(tmp_path, NUM_FIRST + 1)
    study = load_study(tmp_path / "a")
    assert study.user_attrs == {"note": "the second data set"}
    assert study.metric_names == ["score"]


def test_foreign_trial_with_asha(tmp_path: Path) -> None:
    """It enters no rung, and nobody waits for it."""
    from tune_jobs.engine import LightningSettings

    def objective(config: dict[str, Any]) -> float:
        for epoch in range(1, 5):
            ray.tune.report({"score": config["x"], "epoch": epoch})
        return float(config["x"])

    def go(num_trials: int) -> SweepResult:
        settings = LightningSettings(
            storage_path=str(tmp_path), name="a", num_trials=num_trials, gpus_per_trial=0,
            max_epochs=4, asha="stopping", resume=(tmp_path / "a").exists(),
        )  # fmt: skip
        return run_sweep(
            settings, space=space, metric="score", mode="max", objective=objective, progress=None
        )

    go(NUM_FIRST)
    study = load_study(tmp_path / "a")
    add(study, intermediate_values=dict.fromkeys(range(1, 5), 99.0))
    leave_running(study)
    result = go(NUM_FIRST + 2)
    assert len(result.rows) == NUM_FIRST + 2
    assert result.best_score <= 1
    assert not result.is_resumable


def test_constrained_sampler_resumes(tmp_path: Path) -> None:
    """An own sampler with constraints, whose study gets trials by hand, with and without them."""

    def make_sampler() -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TPESampler(constraints_func=lambda trial: [trial.params["x"] - 0.5])

    run(tmp_path, NUM_FIRST, sampler=make_sampler())
    study = load_study(tmp_path / "a")
    add(study)
    add(study, constraints={"0": 1.0})
    result = run(tmp_path, NUM_FIRST + 9, sampler=make_sampler())
    assert len(result.rows) == NUM_FIRST + 9
    best = result.study.trials[result.best_trial]
    assert best.params["x"] <= 0.5
    assert all(t.constraints for t in result.study.trials if t.number not in (3, 4))
