"""The end of a sweep in a few lines: `format_summary`."""

from collections import Counter

from tune_jobs.engine.core.outcome import Kind
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.execution.progress import format_config
from tune_jobs.engine.report.failures import describe_end
from tune_jobs.engine.report.result import SweepResult

__all__ = ["format_summary"]


def format_summary(result: SweepResult) -> str:
    """The result of a sweep in a few lines."""
    epoch = "" if result.best_epoch is None else f" at epoch {result.best_epoch}"
    where = f"{epoch} (validation)" if result.is_lightning else epoch
    lines = [
        "",
        f"Best config: {format_config(readable(result.best_config))}",
        f"{result.goal.metric}: {result.best_score:.5g}{where}, trial {result.best_trial}",
        *_caveat(result),
    ]
    if result.test:
        lines.append("Test: " + ", ".join(f"{k} {v:.5g}" for k, v in result.test.items()))
    lines += [_format_counts(result), *_format_failures(result), *_format_foreign(result)]
    num_epochs = sum(row["epochs"] for row in result.rows)
    if result.max_epochs and num_epochs:
        lines.append(f"Epochs: {num_epochs} of {result.max_epochs * len(result.rows)}")
    lines += [f"Seconds: {result.seconds:.1f}", f"Results: {result.path}"]
    if _trained_beside_its_gpu(result):
        lines.append("Note: trials held shares of GPUs, but torch found no GPU: they ran on CPUs.")
    return "\n".join([*lines, f"Ended: {_format_end(result)}"])


def _caveat(result: SweepResult) -> list[str]:
    if result.best_state == "RUNNING":
        return ["  The best so far: this trial has not ended; no trial was trained to its end."]
    if result.best_state != "COMPLETE":
        return ["  This trial was not trained to its end; no trial was."]
    return []


def _format_end(result: SweepResult) -> str:
    """Why the sweep ended, in words."""
    ended = result.ended
    num_trials = len(result.rows)
    words: dict[str, str] = {
        Kind.ALL_DONE: f"all {num_trials} trials are done",
        Kind.EXHAUSTED: "the space is exhausted: each of its configs was tried",
        Kind.TIME_BUDGET: "the time budget is spent",
        Kind.INTERRUPTED: "interrupted",
        Kind.OTHER_GOOD_ENOUGH: f"a trial reached {result.settings.stop_at}, the score to stop at",
        Kind.FAILURES: f"stopped early: {ended.message}",
    }
    return words.get(ended.kind, ended.message or str(ended.kind))


def _format_failures(result: SweepResult) -> list[str]:
    return [f"  trial {number}: {text}" for number, text in result.failures.items()]


def _format_foreign(result: SweepResult) -> list[str]:
    if not result.foreign:
        return []
    numbers = ", ".join(map(str, result.foreign))
    return [f"Not of this sweep: trials {numbers}, which were added to its study by hand"]


def _format_counts(result: SweepResult) -> str:
    states = Counter(row["state"] for row in result.rows)
    reasons = Counter(row["reason"] for row in result.rows if row["state"] == "PRUNED")
    if result.max_epochs:
        reasons[Kind.ASHA] += 0  # said even if there is none
    parts = [f"{states['COMPLETE']} finished"]
    parts += [f"{reasons.pop(Kind.ASHA)} stopped by ASHA"] if Kind.ASHA in reasons else []
    parts.append(f"{states['FAIL']} failed")
    parts += [f"{count} {describe_end(reason)}" for reason, count in reasons.items()]
    parts += [f"{states['RUNNING']} unfinished"] if states["RUNNING"] else []
    return f"Trials: {', '.join(parts)}"


def _trained_beside_its_gpu(result: SweepResult) -> bool:
    devices = {(trial.metrics or {}).get("device") for trial in result.result_grid}
    return result.resources.gpus > 0 and "cpu" in devices
