"""The end of a sweep in a few lines: `format_summary`."""

from collections import Counter
from typing import Any

from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.execution.progress import format_config
from tune_jobs.engine.report.result import SweepResult

__all__ = ["format_summary"]


def format_summary(result: SweepResult) -> str:
    """The result of a sweep in a few lines."""
    where = f" at epoch {result.best_epoch} (validation)" if result.max_epochs else ""
    lines = [
        "",
        f"Best config: {format_config(result.best_config)}",
        f"{result.goal.metric}: {result.best_score:.5g}{where}, trial {result.best_trial}",
    ]
    if result.best_state != "COMPLETE":
        lines.append("  This trial was not trained to its end; no trial was.")
    if result.test:
        lines.append("Test: " + ", ".join(f"{k} {v:.5g}" for k, v in result.test.items()))
    lines.append(_format_counts(result.rows))
    lines += [
        f"  trial {row['trial']}: {row['reason']}, see {result.logs.get(row['trial'], 'no log')}"
        for row in result.rows
        if row["state"] == "FAIL"
    ]
    if result.max_epochs:
        spent = sum(row["epochs"] for row in result.rows)
        lines.append(f"Epochs: {spent} of {result.max_epochs * len(result.rows)}")
    lines += [f"Seconds: {result.seconds:.1f}", f"Results: {result.path}"]
    if _trained_beside_its_gpu(result):
        lines.append("Note: trials held shares of GPUs, but torch found no GPU: they ran on CPUs.")
    return "\n".join(lines)


def _format_counts(rows: list[dict[str, Any]]) -> str:
    states = Counter(row["state"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if row["state"] in ("COMPLETE", "PRUNED"))
    text = (
        f"Trials: {states['COMPLETE']} finished, {reasons[Kind.ASHA]} stopped by ASHA, "
        f"{states['FAIL']} failed"
    )
    for reason, count in reasons.items():
        if reason != Kind.ASHA and not Outcome.of(Kind(reason)).is_complete:
            text += f", {count} ended by {reason}"
    return text + (f", {states['RUNNING']} unfinished" if states["RUNNING"] else "")


def _trained_beside_its_gpu(result: SweepResult) -> bool:
    devices = {(trial.metrics or {}).get("device") for trial in result.result_grid}
    return result.resources.gpus > 0 and "cpu" in devices
