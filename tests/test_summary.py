"""What a sweep prints: a line for each trial, and a summary."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from ray import tune

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import OUTCOME_ATTR, Cause, Kind, Outcome
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.execution.driver import Driver, Parts
from tune_jobs.engine.execution.progress import LineProgress, format_trial
from tune_jobs.engine.report.failures import explain_failure
from tune_jobs.engine.report.summary import format_summary
from tune_jobs.engine.store.opening import Request, open_sweep

GOAL = Goal("val_acc", "max")


def make_row(number: int, state: str, reason: str, epochs: int) -> dict[str, Any]:
    return {"trial": number, "state": state, "reason": reason, "epochs": epochs}


def make_result(**changes: Any) -> Any:
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
        "failures": {3: "ArithmeticError: no, see error.txt", 4: "MemoryError. Try more, see log"},
        "foreign": [],
        "is_lightning": True,
        "ended": Outcome.of(Kind.TIME_BUDGET),
        "settings": Settings(),
        "result_grid": [],
        "seconds": 61.25,
        "path": "results/s",
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize("num_retried", [0, 1, 2])
def test_failure_explained_of_last_attempt(num_retried: int) -> None:
    """A failure that was retried is mended, or has failed again: the newer one is shown."""
    trials = []
    for number in range(2 + num_retried):
        attrs = {} if number < 2 else {"retry_of": number - 2}
        outcome = Outcome("KeyError", Cause.TRIAL, f"KeyError: {number}", f"Traceback of {number}")
        attrs[OUTCOME_ATTR] = outcome.to_entry()
        trials.append(create_trial(state=TrialState.FAIL, system_attrs=attrs))
        trials[-1].number = number
    text = explain_failure("r/s", [], trials, Outcome.of(Kind.ALL_DONE))
    assert f"{2 + num_retried} failed; the first one, r/s/trial_000{num_retried}/" in text
    assert text.endswith(f"Traceback of {num_retried}")


def test_summary_whole_text() -> None:
    assert format_summary(make_result()).splitlines() == [
        "",
        "Best config: lr=0.001234, layers=3",
        "val_acc: 0.98123 at epoch 7 (validation), trial 4",
        "Test: test_acc 0.979",
        "Trials: 1 finished, 1 stopped by ASHA, 2 failed, 1 gave NaN or infinity, 1 unfinished",
        "  trial 3: ArithmeticError: no, see error.txt",
        "  trial 4: MemoryError. Try more, see log",
        "Epochs: 17 of 60",
        "Seconds: 61.2",
        "Results: results/s",
        "Ended: the time budget is spent",
    ]


def test_summary_exhausted_counts_none() -> None:
    """A config may have several rows: from the queue, or tried again."""
    result = make_result(ended=Outcome.of(Kind.EXHAUSTED))
    end = "Ended: the space is exhausted: each of its configs was tried"
    assert format_summary(result).splitlines()[-1] == end


def test_summary_counts_silent_trial_once() -> None:
    result = make_result(rows=[make_row(0, "FAIL", "reported nothing", 0)])
    assert "0 finished, 0 stopped by ASHA, 1 failed\n" in format_summary(result)


def test_summary_winner_stopped_early() -> None:
    text = format_summary(make_result(best_state="PRUNED"))
    assert "This trial was not trained to its end; no trial was." in text


def test_summary_plain_function() -> None:
    """Its score is on no validation data, and has no epoch if it was returned."""
    changes: dict[str, Any] = {"is_lightning": False, "test": None}
    text = format_summary(make_result(max_epochs=None, best_epoch=None, **changes))
    assert "poch" not in text
    assert "Test" not in text
    assert "validation" not in format_summary(make_result(**changes))


def test_summary_gpu_share_on_cpu() -> None:
    grid = [SimpleNamespace(metrics={"device": "cpu"}), SimpleNamespace(metrics=None)]
    on_gpu = Resources(cpus=1, gpus=0.25, slots=4)
    assert "they ran on CPUs" in format_summary(make_result(resources=on_gpu, result_grid=grid))
    assert "they ran on CPUs" not in format_summary(make_result(result_grid=grid))


DISTRIBUTIONS = {"lr": optuna.distributions.FloatDistribution(0, 1)}


def test_line_complete_trial() -> None:
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


def test_line_stopped_trial_without_best() -> None:
    stopped = create_trial(
        state=TrialState.PRUNED,
        value=0.5,
        intermediate_values={1: 0.5},
        system_attrs={OUTCOME_ATTR: Outcome.of(Kind.ASHA).to_entry()},
    )
    assert format_trial(GOAL, stopped, None) == ("Trial -1 PRUNED (asha) with value 0.5.")


def test_line_failed_trial() -> None:
    outcome = Outcome("KeyError", Cause.TRIAL, "KeyError: 'lr'")
    failed = create_trial(state=TrialState.PRUNED, system_attrs={OUTCOME_ATTR: outcome.to_entry()})
    assert format_trial(GOAL, failed, None) == "Trial -1 FAIL (KeyError: 'lr')."


@contextmanager
def running_driver(folder: Path, scores: list[float], num_finished: int) -> Iterator[Driver]:
    """A driver that prints its trials' lines; Ray is not started.

    The trials have the ids "0", "1" and so on.

    Args:
        folder: Gets the sweep's folder.
        scores: What the trials have reported, one epoch each.
        num_finished: So many of them, the first ones, were finished by an earlier driver.
    """
    space = convert_space({"x": tune.uniform(0, 1)})
    request = Request(Settings(storage_path=str(folder)), GOAL, space)
    with open_sweep(request, "s") as sweep:
        record = sweep.begin({})
        for number, score in enumerate(scores):
            asked = create_trial(
                state=TrialState.RUNNING,
                params={"x": 0.5},
                distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
            )
            record.start(str(number), asked, {"x": 0.5})
            record.report(str(number), score, {"val_acc": score, "epoch": 1}, None)
            if number < num_finished:
                record.end(str(number), Outcome.of(Kind.LAST_EPOCH), score)
        yield Driver(sweep, record, Parts(progress=LineProgress()))


def end(driver: Driver, *trial_ids: str) -> None:
    for trial_id in trial_ids:
        driver._search.end(trial_id, Outcome.of(Kind.LAST_EPOCH))


def test_best_includes_earlier_drivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_driver(tmp_path, [0.9, 0.8, 0.7, 0.95], num_finished=2) as driver:
        end(driver, "2", "3")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("Best is trial 0 with value 0.9.")
    assert second.endswith("Best is trial 3 with value 0.95.")


def test_best_of_equals_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first by number is the best, in whichever order they end."""
    with running_driver(tmp_path, [0.9, 0.9, 0.9, 0.9], num_finished=0) as driver:
        end(driver, "3", "1", "2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("Best is ")[2][:7] for line in lines] == [
        "trial 3",
        "trial 1",
        "trial 1",
    ]
