"""What a sweep prints: a line a finished trial, and the summary at its end."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Reason
from tune_jobs.engine.store.record import is_failed

if TYPE_CHECKING:
    from tune_jobs.engine.report.results import Sweep

__all__ = ["TrialPrinter", "format_summary", "format_trial"]


class TrialPrinter:
    """Prints a line for each trial that finishes, or waits for its promotion.

    Args:
        goal: What is optimised.
        trials: Those that have finished before.
    """

    def __init__(self, goal: Goal, trials: Iterable[FrozenTrial]) -> None:
        self._goal = goal
        self._best: FrozenTrial | None = None
        for trial in trials:
            self._note(trial)

    def __call__(self, trial: FrozenTrial) -> None:
        self._note(trial)
        print(format_trial(self._goal, trial, self._best), flush=True)

    def pause(self, trial: FrozenTrial) -> None:
        """Print that a trial waits for its promotion."""
        print(format_trial(self._goal, trial, self._best), flush=True)

    def _note(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE:
            return
        if self._best is None or self._rank(trial) > self._rank(self._best):
            self._best = trial

    def _rank(self, trial: FrozenTrial) -> tuple[float, int]:
        """Of equals the first wins, by number, as in the study; not the first to end."""
        return self._goal.gain(trial.values[0]), -trial.number


def format_trial(goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> str:
    """Number, state, value, parameters and the best so far, as Optuna's own log has them."""
    curve = trial.intermediate_values
    epoch = goal.best_epoch(curve)
    value = "" if epoch is None else f" with value {curve[epoch]:.5g}"
    if len(curve) > 1:
        value += f" at epoch {epoch}"
    if trial.state == TrialState.RUNNING:
        state = "PAUSED"
    else:
        state = "FAIL" if is_failed(trial) else trial.state.name
        if trial.state != TrialState.COMPLETE:
            state += f" ({trial.user_attrs.get('reason')})"
    line = f"Trial {trial.number} {state}{value} and parameters {_format_config(trial.params)}."
    if best is None:
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
        lines.append("  of a trial that was not run to its end: none is complete")
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
    reasons = Counter(row["reason"] for row in rows if row["state"] in ("COMPLETE", "PRUNED"))
    text = (
        f"Trials: {states['COMPLETE']} finished, {reasons[Reason.ASHA]} stopped by ASHA, "
        f"{states['FAIL']} failed"
    )
    for reason, count in reasons.items():
        if reason != Reason.ASHA and Reason(reason).is_early:
            text += f", {count} ended by {reason}"
    return text + (f", {states['RUNNING']} unfinished" if states["RUNNING"] else "")


def _trained_beside_its_gpu(sweep: "Sweep") -> bool:
    devices = {(result.metrics or {}).get("device") for result in sweep.result_grid}
    return sweep.resources.gpus > 0 and "cpu" in devices


def _format_config(config: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in config.items()
    )
