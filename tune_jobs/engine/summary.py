"""What a sweep prints: a line a finished trial, and the summary at its end."""

from collections import Counter
from typing import TYPE_CHECKING

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.search import best_epoch

if TYPE_CHECKING:
    from tune_jobs.engine.results import Sweep

__all__ = ["format_summary", "format_trial", "print_trial"]


def print_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Print the line of a trial that has just finished."""
    print(format_trial(study, trial), flush=True)


def format_trial(study: optuna.Study, trial: FrozenTrial) -> str:
    """Number, state, value, parameters and the best so far, as Optuna's own log has them."""
    mode = "max" if study.direction == StudyDirection.MAXIMIZE else "min"
    epoch = best_epoch(trial, mode)
    value = "" if epoch is None else f" with value {trial.intermediate_values[epoch]:.5g}"
    value += (
        f" at epoch {epoch}" if epoch is not None and len(trial.intermediate_values) > 1 else ""
    )
    state = trial.state.name
    if trial.state != TrialState.COMPLETE:
        state += f" ({trial.user_attrs.get('reason')})"
    line = f"Trial {trial.number} {state}{value} and parameters {_format_config(trial.params)}."
    try:
        best = study.best_trial
    except ValueError:  # none is complete yet
        return line
    return f"{line} Best is trial {best.number} with value {best.value:.5g}."


def format_summary(sweep: "Sweep") -> str:
    """The end of a sweep in a few lines."""
    states = Counter(row["state"] for row in sweep.rows)
    reasons = Counter(row["reason"] for row in sweep.rows)
    lines = [f"\nBest config: {_format_config(sweep.best_config)}"]
    if sweep.best_state != "COMPLETE":
        lines.append("  (of a trial that was stopped early: none was complete)")
    where = f" at epoch {sweep.best_epoch} (validation)" if sweep.max_epochs else ""
    lines.append(f"{sweep.metric}: {sweep.best_score:.5g}{where}")
    if sweep.test:
        tests = ", ".join(f"{name} {value:.5g}" for name, value in sweep.test.items())
        lines.append(f"Test: {tests}")
    stopped = reasons["asha"]
    others = {r: n for r, n in reasons.items() if r in ("nan", "time budget", "stop_at")}
    lines.append(
        f"Trials: {states['COMPLETE']} finished, {stopped} stopped by ASHA, {states['FAIL']} failed"
        + "".join(f", {n} ended by {r}" for r, n in others.items())
    )
    lines += [f"  trial {row['trial']}: {row['reason']}, see {sweep.logs[row['trial']]}"
              for row in sweep.rows if row["state"] == "FAIL"]  # fmt: skip
    if sweep.max_epochs:
        spent = sum(row["epochs"] for row in sweep.rows)
        lines.append(f"Epochs: {spent} of the {sweep.max_epochs * len(sweep.rows)}"
                     " that every trial run to its last would have cost")  # fmt: skip
    lines.append(f"Seconds: {sweep.seconds:.1f}")
    lines.append(f"Results: {sweep.path}")
    return "\n".join(lines)


def _format_config(config: dict[str, object]) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in config.items()
    )
