"""What must hold of a sweep in the end, however often it was killed: `Audit`."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from optuna.trial import FrozenTrial, TrialState

from tune_jobs.engine import LightningSettings
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.search.asha import StoppingASHA
from tune_jobs.engine.store.entries import results_of

from .job import MAX_EPOCHS, NUM_KEPT, NUM_TRIALS, REDUCTION_FACTOR, RUNGS, score
from .journal import JOURNAL, Entries, load_trials
from .sweep import TorturedSweep

Scores = dict[int, dict[int, float]]  # rung -> trial -> score

LINE = re.compile(
    r"Trial (?P<number>\d+) (?P<state>[A-Z]+(?: \([^)]*\))?)(?: with value (?P<value>\S+))?"
    r"(?: at epoch (?P<epoch>\d+))? and parameters (?P<params>.*?)\."
    r"(?: Best is trial (?P<best>\d+) with value (?P<best_value>\S+)\.)?"
)
ENDS = (("COMPLETE", "last epoch"), ("PRUNED", "asha"))
# Ray's files are among them. Its snapshots are named after the time of the driver's start, and the
# draft of a snapshot stays if the driver dies before it is renamed; nothing reads either.
OWN_FILES = re.compile(
    r"study\.log|sweep\.json|trials\.csv|best\.json|best\.ckpt|trial_\d{4}|tuner\.pkl"
    r"|\.validate_storage_marker"
    r"|((\.[\da-f-]+-)?tmp-)?(experiment_state|search_gen_state|searcher-state)-[\d_-]+\.(json|pkl)"
)
TRIAL_FILES = re.compile(r"result\.json|params\.(json|pkl)|checkpoint_\d{6}|error\.(txt|pkl)")


class Audit:
    """Checks what a tortured sweep has left.

    Each `check_...` yields what is not as it must be. The expected numbers are computed here again,
    from the settings and the formula alone.

    Args:
        sweep: The sweep, after its end.
    """

    def __init__(self, sweep: TorturedSweep) -> None:
        self.sweep = sweep
        self.folder = sweep.folder
        self.trials = load_trials(self.folder)
        # Those that ended as they should; the others are reported by the first check alone.
        self.sound = [trial for trial in self.trials if _end_of(trial) in ENDS]
        with (self.folder / "trials.csv").open(newline="") as file:
            self.rows = list(csv.DictReader(file))

    def violations(self) -> Iterator[str]:
        """All that is not as it must be."""
        for name in vars(type(self)):
            if name.startswith("check_"):
                yield from (f"{name.removeprefix('check_')}: {text}" for text in self._run(name))

    def _run(self, name: str) -> Iterator[str]:
        try:
            yield from getattr(self, name)()
        except Exception as error:  # a missing file, say; the other checks are still made
            yield f"{type(error).__name__}: {error}"

    def check_all_trials_finished(self) -> Iterator[str]:
        numbers = list(range(NUM_TRIALS))
        yield from _compare("numbers in the study", [t.number for t in self.trials], numbers)
        yield from _compare("rows", [int(row["trial"]) for row in self.rows], numbers)
        folders = sorted(path.name for path in self.folder.glob("trial_*"))
        yield from _compare("folders", folders, [f"trial_{number:04d}" for number in numbers])
        ids = Counter(trial.user_attrs.get("trial_id") for trial in self.trials)
        yield from _compare("ids that occur twice", [i for i, n in ids.items() if n > 1], [])
        for trial in self.trials:
            if trial not in self.sound:
                yield f"trial {trial.number} is {', '.join(_end_of(trial))}"

    def check_epochs_without_gap_or_repeat(self) -> Iterator[str]:
        for trial in self.sound:
            epochs = list(range(1, len(trial.intermediate_values) + 1))
            recorded = results_of(trial)
            written = self._written(trial)
            what = f"epochs of trial {trial.number}"
            yield from _compare(f"{what} in its curve", sorted(trial.intermediate_values), epochs)
            yield from _compare(f"{what} in its results", list(recorded), epochs)
            yield from _compare(f"{what} in result.json", [r["epoch"] for r in written], epochs)
            ids = {trial.user_attrs["trial_id"]}
            yield from _compare(f"{what}: ids", {r["trial_id"] for r in written}, ids)

    def check_scores_follow_the_formula(self) -> Iterator[str]:
        for trial in self.sound:
            right = curve_of(trial, len(trial.intermediate_values))
            yield from _compare(f"curve of {trial.number}", trial.intermediate_values, right)
            recorded = {epoch: r["score"] for epoch, r in results_of(trial).items()}
            yield from _compare(f"results of {trial.number}", recorded, right)
            written = {r["epoch"]: r["score"] for r in self._written(trial)}
            yield from _compare(f"result.json of {trial.number}", written, right)
            yield from _compare(f"value of {trial.number}", trial.value, max(right.values()))

    def check_printed_lines_still_hold(self) -> Iterator[str]:
        seen: dict[int, str] = {}
        for driver in self.sweep.drivers:
            for line in driver.lines:
                if not line.startswith("Trial "):
                    continue
                number, state = int(line.split()[1]), line.split()[2]
                if state == "PAUSED":
                    yield from self._check_pause(line, self.trials[number])
                    continue
                if number in seen:
                    yield f"printed twice: {seen[number]!r} and, by {driver}, {line!r}"
                seen[number] = line
                if self.trials[number] in self.sound:
                    yield from self._check_line(line, self.trials[number])

    def _check_pause(self, line: str, trial: FrozenTrial) -> Iterator[str]:
        match = LINE.fullmatch(line)
        bests = {f"{max(curve_of(trial, epochs).values()):.5g}" for epochs in RUNGS[:-1]}
        if match is None or match["value"] not in bests:
            yield f"{line!r} is not the score of a rung: {bests}"

    def _check_line(self, line: str, trial: FrozenTrial) -> Iterator[str]:
        match = LINE.fullmatch(line)
        if match is None:
            yield f"cannot be read: {line!r}"
            return
        best_epoch = best_epoch_of(trial)
        state = "COMPLETE" if trial.state == TrialState.COMPLETE else "PRUNED (asha)"
        several = len(trial.intermediate_values) > 1
        right = {
            "number": str(trial.number),
            "state": state,
            "value": f"{trial.intermediate_values[best_epoch]:.5g}",
            "epoch": str(best_epoch) if several else None,
            "params": f"x={trial.params['x']:.4g}, n={trial.params['n']}",
        }
        said = match.groupdict()
        best, best_value = said.pop("best"), said.pop("best_value")
        yield from _compare(f"{line!r}", said, right)
        if best is not None:
            value = self.trials[int(best)].value
            yield from _compare(f"best in {line!r}", best_value, f"{value:.5g}")

    def check_record_keeps_what_it_had(self) -> Iterator[str]:
        for number, kill in enumerate(self.sweep.kills):
            for then in load_trials(kill.copy) if kill.copy else ():
                now = self.trials[then.number]
                what = f"trial {now.number} since kill {number}"
                yield from _compare(f"params of {what}", now.params, then.params)
                yield from _compare(
                    f"id of {what}", *(t.user_attrs["trial_id"] for t in (now, then))
                )
                kept = {e: now.intermediate_values.get(e) for e in then.intermediate_values}
                yield from _compare(f"curve of {what}", kept, then.intermediate_values)
                if then.state.is_finished():
                    yield from _compare(f"state of {what}", now.state, then.state)
                    yield from _compare(f"values of {what}", now.values, then.values)

    def check_rungs_follow_the_curves(self) -> Iterator[str]:
        # Of either kind: both restore the rungs alike, and this one asks no record.
        settings = LightningSettings(max_epochs=MAX_EPOCHS, reduction_factor=REDUCTION_FACTOR)
        asha = StoppingASHA(Goal("score", "max"), cast(Any, None), settings)
        asha.restore(self.trials)
        restored = {rung: asha.rungs.gains(rung) for rung in asha.rungs.epochs}
        right = {
            rung: {
                trial.user_attrs["trial_id"]: trial.intermediate_values[rung]
                for trial in self.trials
                if rung in trial.intermediate_values
            }
            for rung in RUNGS
        }
        yield from _compare("rungs", restored, right)

    def check_trials_end_at_rungs(self) -> Iterator[str]:
        for trial in self.sound:
            ends = (MAX_EPOCHS,) if trial.state == TrialState.COMPLETE else RUNGS[:-1]
            end = max(trial.intermediate_values)
            if end not in ends:
                yield f"trial {trial.number}, {trial.state.name}, ends at {end}"

    def check_decisions_follow_the_record(self) -> Iterator[str]:
        """Makes each decision again, from the entries before it in the journal."""
        check = self._check_stop if self.sweep.asha == "stopping" else self._check_promotions
        scores: Scores = {rung: {} for rung in RUNGS}
        yield from check(Entries(self.folder / JOURNAL), scores)

    def _check_stop(self, entries: Entries, scores: Scores) -> Iterator[str]:
        for trial, result in entries.results():
            epoch, right = result["epoch"], None
            if epoch in scores:
                others = [s for other, s in scores[epoch].items() if other != trial]
                scores[epoch][trial] = result["score"]
                percentile = 100 * (1 - 1 / REDUCTION_FACTOR)
                if others and result["score"] < np.percentile(others, percentile):
                    right = "asha"
            right = "last epoch" if epoch == MAX_EPOCHS else right
            stop = result.get("tune_jobs:stop")
            yield from _compare(f"decision on trial {trial} at epoch {epoch}", stop, right)

    def _check_promotions(self, entries: Entries, scores: Scores) -> Iterator[str]:
        promoted: set[tuple[int, int]] = set()
        for trial, name, value in entries:
            if name == "tune_jobs:promoted":
                if (trial, value) in promoted:
                    yield f"trial {trial} is promoted twice from {value}"
                promoted.add((trial, value))
                there = scores[value]
                best = sorted(there, key=lambda t: -there[t])[: len(there) // REDUCTION_FACTOR]
                # Or the best one left, once all have started and none was trained to its end.
                is_last = len(scores[1]) == NUM_TRIALS and not scores[MAX_EPOCHS]
                if trial not in best and not is_last:
                    yield f"trial {trial} is promoted from {value}, best are {best}"
                continue
            epoch = value["epoch"]
            if epoch in scores:
                scores[epoch][trial] = value["score"]
            for rung in RUNGS:
                if rung < epoch and (trial, rung) not in promoted:
                    yield f"trial {trial} trains epoch {epoch}, not promoted from {rung}"
            right = "last epoch" if epoch == MAX_EPOCHS else None
            stop = value.get("tune_jobs:stop")
            yield from _compare(f"decision on trial {trial} at epoch {epoch}", stop, right)

    def check_files_agree_with_the_study(self) -> Iterator[str]:
        for trial in self.sound:
            row = self.rows[trial.number]
            best_epoch = best_epoch_of(trial)
            right = {
                "state": trial.state.name,
                "reason": trial.user_attrs["reason"],
                "epochs": str(len(trial.intermediate_values)),
                "best_epoch": str(best_epoch),
                "score": str(trial.intermediate_values[best_epoch]),
                "config/x": str(trial.params["x"]),
                "config/n": str(trial.params["n"]),
            }
            said = {name: row[name] for name in right}
            yield from _compare(f"row of trial {trial.number}", said, right)
        winner = self._ranked()[0]
        best = json.loads((self.folder / "best.json").read_text())
        right_best = {
            "trial": winner.number,
            "score": max(winner.intermediate_values.values()),
            "epoch": best_epoch_of(winner),
            "config": winner.params,
            "state": winner.state.name,
        }
        yield from _compare("best.json", {name: best[name] for name in right_best}, right_best)

    def check_checkpoints_of_kept_trials(self) -> Iterator[str]:
        """The best trials have those of the best epoch and of the last one, the others none."""
        kept = {trial.number for trial in self._ranked()[:NUM_KEPT]}
        for trial in self.sound:
            results = results_of(trial)
            epochs = {best_epoch_of(trial), len(results)} if trial.number in kept else set()
            right = {results[epoch]["checkpoint_dir_name"]: epoch for epoch in sorted(epochs)}
            there = sorted(path.name for path in self._folder_of(trial).glob("checkpoint_*"))
            yield from _compare(f"checkpoints of trial {trial.number}", there, sorted(right))
            for name in set(there) & set(right):
                file = self._folder_of(trial) / name / "checkpoint.ckpt"
                yield from self._check_checkpoint(file, trial, right[name])
        winner = self._ranked()[0]
        yield from self._check_checkpoint(self.folder / "best.ckpt", winner, best_epoch_of(winner))

    def _check_checkpoint(self, file: Path, trial: FrozenTrial, epoch: int) -> Iterator[str]:
        content = torch.load(file, weights_only=True)
        state = {name: content["state_dict"][name].item() for name in ("x", "n", "epochs")}
        yield from _compare(f"{file}", state, {**trial.params, "epochs": epoch})

    def check_nothing_is_left_over(self) -> Iterator[str]:
        for path in self.folder.iterdir():
            if not OWN_FILES.fullmatch(path.name):
                yield f"{path}"
        for path in self.folder.glob("trial_*/*"):
            if not TRIAL_FILES.fullmatch(path.name):
                yield f"{path}"
        for path in self.folder.glob("trial_*/checkpoint_*/*"):
            if path.name != "checkpoint.ckpt":
                yield f"{path}"

    def _ranked(self) -> list[FrozenTrial]:
        """The trials, the best first: complete ones, then those that were stopped."""
        return sorted(
            self.sound,
            key=lambda t: (t.state != TrialState.COMPLETE, -max(t.intermediate_values.values())),
        )

    def _folder_of(self, trial: FrozenTrial) -> Path:
        return self.folder / f"trial_{trial.number:04d}"

    def _written(self, trial: FrozenTrial) -> list[dict[str, Any]]:
        lines = (self._folder_of(trial) / "result.json").read_text().splitlines()
        return [json.loads(line) for line in lines]


def curve_of(trial: FrozenTrial, epochs: int) -> dict[int, float]:
    """What the trial must have scored in its first epochs."""
    x, n = trial.params["x"], trial.params["n"]
    return {epoch: score(x, n, epoch) for epoch in range(1, epochs + 1)}


def best_epoch_of(trial: FrozenTrial) -> int:
    """Of equals the latest."""
    curve = trial.intermediate_values
    return max(curve, key=lambda epoch: (curve[epoch], epoch))


def _end_of(trial: FrozenTrial) -> tuple[str, str]:
    return trial.state.name, str(trial.user_attrs.get("reason"))


def _compare(what: str, actual: Any, right: Any) -> Iterator[str]:
    if actual != right:
        yield f"{what}: {actual}, must be {right}"
