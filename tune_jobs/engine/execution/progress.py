"""The listener that prints a line for each event: `LineProgress`."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine.core.goal import Goal, curve_of
from tune_jobs.engine.core.outcome import outcome_of
from tune_jobs.engine.store.configs import shown_config

__all__ = ["LineProgress", "format_config", "format_trial"]


class LineProgress:
    """Prints a line for each trial that ends or pauses, and for each notice."""

    def on_notice(self, text: str) -> None:
        print(text, flush=True)

    def on_start(self, headline: str) -> None:
        print(headline, flush=True)

    def on_trial_pause(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        print(format_trial(goal, trial, best), flush=True)

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        print(format_trial(goal, trial, best), flush=True)


def format_trial(goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> str:
    """Number, state, value, parameters and the best so far, as Optuna's own log has them."""
    curve, score = curve_of(trial), goal.score(trial)
    epoch = goal.best_epoch(curve)
    is_reported = len(curve) > 1 and epoch is not None and curve[epoch] == score
    at = f" at epoch {epoch}" if is_reported else ""
    value = [] if score is None else [f"value {score:.5g}{at}"]
    config = format_config(shown_config(trial))
    said = " and ".join([*value, *([f"parameters {config}"] if config else [])])
    line = f"Trial {trial.number} {_state_of(trial)}{' with ' if said else ''}{said}."
    if best is None:
        return line
    return f"{line} Best is trial {best.number} with value {best.value:.5g}."


def format_config(config: Mapping[str, Any]) -> str:
    """A flat config in one line."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in config.items()
    )


def _state_of(trial: FrozenTrial) -> str:
    if trial.state == TrialState.RUNNING:
        return "PAUSED"
    outcome = outcome_of(trial)
    if outcome is None or outcome.is_complete:
        return trial.state.name
    said = outcome.message.rstrip(".") or outcome.kind
    return f"{'FAIL' if outcome.is_failure else trial.state.name} ({said})"
