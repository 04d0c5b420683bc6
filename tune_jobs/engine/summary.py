"""What a sweep prints: a line a finished trial, and the summary at its end."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.goal import Goal
from tune_jobs.engine.reasons import Reason

if TYPE_CHECKING:
    from tune_jobs.engine.results import Sweep

__all__ = ["format_summary", "format_trial", "print_trial"]


def print_trial(goal: Goal, study: optuna.Study, trial: FrozenTrial) -> None:
    """Print the line of a trial that has just finished."""
    print(format_trial(goal, study, trial), flush=True)


def format_trial(goal: Goal, study: optuna.Study, trial: FrozenTrial) -> str:
    """Number, state, value, parameters and the best so far, as Optuna's own log has them."""
    curve = trial.intermediate_values
    epoch = goal.best_epoch(curve)
    value = "" if epoch is None else f" with value {curve[epoch]:.5g}"
    if len(curve) > 1:
        value += f" at epoch {epoch}"
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
    where = f" at epoch {sweep.best_epoch} (validation)" if sweep.max_epochs else ""
    lines = [
        "",
        f"Best config: {_format_config(sweep.best_config)}",
        f"{sweep.goal.metric}: {sweep.best_score:.5g}{where}, trial {sweep.best_trial}",
    ]
    if sweep.best_state != "COMPLETE":
        lines.append("  of a trial that was stopped early: none was complete")
    if sweep.test:
        lines.append("Test: " + ", ".join(f"{k} {v:.5g}" for k, v in sweep.test.items()))
    lines.append(_format_counts(sweep.rows))
    lines += [
        f"  trial {row['trial']}: {row['reason']}, see {sweep.logs.get(row['trial'], 'no log')}"
        for row in sweep.rows
        if row["state"] == "FAIL"
    ]
    if sweep.max_epochs:
        spent, whole = sum(row["epochs"] for row in sweep.rows), sweep.max_epochs * len(sweep.rows)
        lines.append(f"Epochs: {spent} of the {whole} that every trial run to its last would cost")
    lines += [f"Seconds: {sweep.seconds:.1f}", f"Results: {sweep.path}"]
    if _trained_beside_its_gpu(sweep):
        lines.append("Note: trials held shares of GPUs, but torch saw none: they ran on CPUs.")
    return "\n".join(lines)


def _format_counts(rows: list[dict[str, Any]]) -> str:
    states = Counter(row["state"] for row in rows)
    reasons = Counter(row["reason"] for row in rows)
    text = (
        f"Trials: {states['COMPLETE']} finished, {reasons[Reason.ASHA]} stopped by ASHA, "
        f"{states['FAIL']} failed"
    )
    for reason, count in reasons.items():
        if reason in list(Reason) and reason != Reason.ASHA and Reason(reason).is_early:
            text += f", {count} ended by {reason}"
    return text


def _trained_beside_its_gpu(sweep: "Sweep") -> bool:
    devices = {(result.metrics or {}).get("device") for result in sweep.result_grid}
    return sweep.resources.gpus > 0 and "cpu" in devices


def _format_config(config: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in config.items()
    )
