"""The epochs at which trials are compared, and which trial reached which with what."""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # settings need `Halving` alone, and `--help` should not wait for Optuna
    from tune_jobs.engine.core.goal import Goal

__all__ = ["Halving", "Rungs"]


@dataclass(frozen=True)
class Halving:
    """The rule of successive halving.

    Attributes:
        max_epochs: Epochs that a trial trains at most.
        grace_epochs: The first rung.
        reduction_factor: Of the trials at a rung, the best 1 in this many continue.
        pauses: Whether trials pause at rungs (promotion), or continue or stop at once (stopping).
    """

    max_epochs: int
    grace_epochs: int = 1
    reduction_factor: float = 2.0
    pauses: bool = True

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are compared: grace x factor^k, rounded, up to `max_epochs`.

        By multiplication: Ray computes `int(log(243) / log(3))`, gets 4, and loses the rung at 243.
        """
        rungs, rung = set(), float(self.grace_epochs)
        while round(rung) <= self.max_epochs:
            rungs.add(round(rung))
            rung *= self.reduction_factor
        return tuple(sorted(rungs))


class _Entry(NamedTuple):
    epoch: int
    score: float


class Rungs:
    """Which trial reached which rung, and with what score.

    A trial enters the highest rung that its epoch has reached, with the score of its first epoch
    there. (Ray's ASHA writes late scores into lower rungs too when results skip a rung.) An epoch
    that is trained again after its process died replaces the score that was there.

    Trials are named by Tune's ids.

    Args:
        goal: What is optimized.
        epochs: The rungs; none: trials are not compared before they end.
    """

    def __init__(self, goal: "Goal", epochs: Iterable[int] = ()) -> None:
        self._goal = goal
        self._entries: dict[int, dict[str, _Entry]] = {rung: {} for rung in sorted(epochs)}
        # Of each rung, best first: minus the gain, place in the order of starting, id.
        self._ranked: dict[int, list[tuple[float, int, str]]] = {r: [] for r in self._entries}
        self._started: dict[str, int] = {}  # id -> place in the order of starting
        self._highest: dict[str, int] = {}  # id -> the highest rung it has reached
        self._promoted_from: dict[str, int] = {}  # id -> the last rung it was promoted from
        self._num_reached = Counter[int]()

    @property
    def epochs(self) -> list[int]:
        """The rungs, lowest first."""
        return list(self._entries)

    def start(self, trial_id: str) -> None:
        """Note that a trial has started: of equals, the trial that started first is the better."""
        self._started.setdefault(trial_id, len(self._started))

    def restore(
        self, trial_id: str, curve: Mapping[int, float], promoted_from: int | None = None
    ) -> None:
        """Take in what is recorded of a trial.

        Args:
            trial_id: Tune's id.
            curve: Epoch -> score.
            promoted_from: The last rung that it was promoted from; None: it was not promoted.
        """
        self.start(trial_id)
        for epoch in sorted(curve):
            self.report(trial_id, epoch, curve[epoch])
        if promoted_from is not None:
            self._promoted_from[trial_id] = promoted_from

    def report(self, trial_id: str, epoch: int, score: float) -> int | None:
        """Take in a finite score.

        Returns:
            The rung that the trial enters with this epoch; None: it enters none.
        """
        self.start(trial_id)
        rung = self.reached_by(epoch)
        if rung is None:
            return None
        known = self._entries[rung].get(trial_id)
        if known is not None and known.epoch < epoch:
            return None
        self._entries[rung][trial_id] = _Entry(epoch, score)
        ranked = [entry for entry in self._ranked[rung] if entry[-1] != trial_id]
        bisect.insort(ranked, (-self._goal.gain(score), self._started[trial_id], trial_id))
        self._ranked[rung] = ranked
        before = self._highest.get(trial_id, 0)
        self._num_reached.update(r for r in self._entries if before < r <= rung)
        self._highest[trial_id] = max(before, rung)
        return rung

    def reached_by(self, epoch: int) -> int | None:
        """The highest rung that an epoch has reached; None: it has reached none."""
        return max((rung for rung in self._entries if rung <= epoch), default=None)

    def highest(self, trial_id: str) -> int | None:
        """The highest rung that a trial has reached; None: it has reached none."""
        return self._highest.get(trial_id)

    def num_reached(self, rung: int) -> int:
        """How many trials have reached this rung, or a higher one."""
        return self._num_reached[rung]

    def gains(self, rung: int) -> dict[str, float]:
        """The gain of each trial at a rung."""
        gain = self._goal.gain
        return {trial_id: gain(entry.score) for trial_id, entry in self._entries[rung].items()}

    def score_from(self, trial_id: str, level: int) -> float | None:
        """A trial's score at the lowest rung from `level` on; None: it has not come that far.

        Where not every epoch is validated, a trial may have passed the level's own rung by.
        """
        for rung, entries in self._entries.items():
            if rung >= level and trial_id in entries:
                return entries[trial_id].score
        return None

    def best(self, rung: int, factor: float) -> Iterator[str]:
        """The best 1 in `factor` of the trials at a rung, best first."""
        ranked = self._ranked[rung]
        for _, _, trial_id in ranked[: math.floor(len(ranked) / factor)]:
            yield trial_id

    def promote(self, trial_id: str) -> int:
        """Let a trial continue from the highest rung that it has reached.

        Returns:
            That rung.
        """
        rung = self._highest[trial_id]
        self._promoted_from[trial_id] = rung
        return rung

    def is_paused(self, trial_id: str) -> bool:
        """Whether a trial is at a rung from which it has not been promoted."""
        rung = self._highest.get(trial_id)
        return rung is not None and self._promoted_from.get(trial_id) != rung
