"""What a sweep prints."""

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.report.summary import TrialPrinter, format_summary, format_trial

GOAL = Goal("val_acc", "max")


def make_row(number: int, state: str, reason: str, epochs: int) -> dict[str, Any]:
    return {"trial": number, "state": state, "reason": reason, "epochs": epochs}


def make_sweep(**changes: Any) -> Any:
    fields = {
        "goal": GOAL,
        "max_epochs": 10,
        "resources": Resources(cpus=1, gpus=0, slots=2),
        "best_config": {"lr": 0.0012345, "layers": 3},
        "best_score": 0.98123456,
        "best_epoch": 7,
        "best_trial": 4,
        "best_state": "COMPLETE",
        "test": {"test_acc": 0.979},
        "rows": [
            make_row(0, "COMPLETE", "last epoch", 10),
            make_row(1, "PRUNED", "asha", 1),
            make_row(2, "PRUNED", "nan", 2),
            make_row(3, "FAIL", "ArithmeticError", 0),
            make_row(4, "FAIL", "oom", 0),
            make_row(5, "RUNNING", "time budget", 4),
        ],
        "logs": {3: "results/s/trial_0003/error.txt", 4: "log\n    try more"},
        "result_grid": [],
        "seconds": 61.25,
        "path": "results/s",
    }
    return SimpleNamespace(**{**fields, **changes})


def test_summary_says_all_that_a_finished_sweep_has_to() -> None:
    assert format_summary(make_sweep()).splitlines() == [
        "",
        "Best config: lr=0.001234, layers=3",
        "val_acc: 0.98123 at epoch 7 (validation), trial 4",
        "Test: test_acc 0.979",
        "Trials: 1 finished, 1 stopped by ASHA, 2 failed, 1 ended by nan, 1 unfinished",
        "  trial 3: ArithmeticError, see results/s/trial_0003/error.txt",
        "  trial 4: oom, see log",
        "    try more",
        "Epochs: 17 of the 60 that every trial run to its last would cost",
        "Seconds: 61.2",
        "Results: results/s",
    ]


def test_trial_that_reported_nothing_is_counted_once_as_failed() -> None:
    sweep = make_sweep(rows=[make_row(0, "FAIL", "reported nothing", 0)])
    assert "0 finished, 0 stopped by ASHA, 1 failed\n" in format_summary(sweep)


def test_winner_that_was_stopped_early_is_marked() -> None:
    assert "none is complete" in format_summary(make_sweep(best_state="PRUNED"))


def test_plain_function_has_no_epochs_and_no_test() -> None:
    text = format_summary(make_sweep(max_epochs=None, test=None))
    assert "poch" not in text
    assert "Test" not in text


def test_trials_with_a_share_of_a_gpu_that_ran_on_cpus_are_told() -> None:
    grid = [SimpleNamespace(metrics={"device": "cpu"}), SimpleNamespace(metrics=None)]
    on_gpu = Resources(cpus=1, gpus=0.25, slots=4)
    assert "they ran on CPUs" in format_summary(make_sweep(resources=on_gpu, result_grid=grid))
    assert "they ran on CPUs" not in format_summary(make_sweep(result_grid=grid))


DISTRIBUTIONS = {"lr": optuna.distributions.FloatDistribution(0, 1)}


def test_line_of_a_trial_is_as_optuna_users_know_it() -> None:
    trial = create_trial(
        value=0.9,
        params={"lr": 0.25},
        distributions=DISTRIBUTIONS,
        intermediate_values={1: 0.8, 2: 0.9, 3: 0.7},
    )
    assert format_trial(GOAL, trial, trial) == (
        "Trial -1 COMPLETE with value 0.9 at epoch 2 and parameters lr=0.25. "
        "Best is trial -1 with value 0.9."
    )


def test_line_of_a_stopped_trial_gives_the_reason_and_no_best_where_none_is_complete() -> None:
    stopped = create_trial(
        state=TrialState.PRUNED, intermediate_values={1: 0.5}, user_attrs={"reason": "asha"}
    )
    assert format_trial(GOAL, stopped, None) == (
        "Trial -1 PRUNED (asha) with value 0.5 and parameters ."
    )
    failed = create_trial(
        state=TrialState.PRUNED,
        user_attrs={"reason": "KeyError"},
        system_attrs={"tune_jobs:end": {"reason": "KeyError", "message": "", "text": ""}},
    )
    assert format_trial(GOAL, failed, None).startswith("Trial -1 FAIL (KeyError) and")


def test_best_so_far_counts_trials_that_had_finished_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = TrialPrinter(GOAL, [create_trial(value=0.9), create_trial(value=0.8)])
    printer(create_trial(value=0.7))
    printer(create_trial(value=0.95))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("with value 0.9.")
    assert second.endswith("with value 0.95.")


def test_of_equals_the_first_by_number_is_the_best_whichever_ended_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = TrialPrinter(GOAL, [])
    for number in (3, 1, 2):
        trial = create_trial(value=0.9)
        trial.number = number
        printer(trial)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("Best is ")[2][:7] for line in lines] == [
        "trial 3",
        "trial 1",
        "trial 1",
    ]
