"""Stand-ins for what a scheduler deals with: Tune's trials, and the record."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.experiment import Trial

from tune_jobs.engine.core.outcome import OUTCOME_ATTR, Kind, Outcome
from tune_jobs.engine.core.result import epoch_of
from tune_jobs.engine.core.rungs import Halving, Rungs
from tune_jobs.engine.core.settings import LightningSettings, Settings
from tune_jobs.engine.store.entries import PROMOTED


def settings_of(halving: Halving | None = None, stop_at: float | None = None) -> Settings:
    """The settings of a sweep with this rule of halving; None: it has no epochs."""
    if halving is None:
        return Settings(stop_at=stop_at)
    return LightningSettings(
        max_epochs=halving.max_epochs,
        grace_epochs=halving.grace_epochs,
        reduction_factor=halving.reduction_factor,
        stop_at=stop_at,
    )


class FakeTrial:
    """A Tune trial, as schedulers see it."""

    pickled_error_file: str | None = None

    def __init__(self, trial_id: str, status: str = Trial.RUNNING) -> None:
        self.trial_id = trial_id
        self.status = status
        self.controller: Any = None


class FakeLedger:
    """Holds what a scheduler enters, as the record does.

    Attributes:
        reports: Trial, epoch, score and decision, in the order in which they were entered.
        curves: Trial -> epoch -> score.
        decisions: Trial -> outcome; entered with a report or on its own.
        promotions: Trial and rung, in order.
        pauses: Trial and rung, in order.
        stops_only: Whether it was entered that trials cannot pause.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, float, Kind | None]] = []
        self.curves: dict[str, dict[int, float]] = {}
        self.decisions: dict[str, Outcome] = {}
        self.promotions: list[tuple[str, int]] = []
        self.pauses: list[tuple[str, int | None]] = []

    stops_only = False

    def stop_only(self) -> None:
        self.stops_only = True

    def pause(self, trial_id: str, rung: int | None) -> None:
        self.pauses.append((trial_id, rung))

    def trial(self, trial_id: str) -> FrozenTrial:
        return recorded(trial_id, self.curves.get(trial_id, {}))

    @property
    def kinds(self) -> dict[str, str]:
        """Trial -> the kind of the outcome that was decided for it."""
        return {trial_id: outcome.kind for trial_id, outcome in self.decisions.items()}

    def report(
        self, trial_id: str, score: float, result: Mapping[str, Any], stop: Kind | None
    ) -> None:
        epoch = epoch_of(result)
        self.reports.append((trial_id, epoch, score, stop))
        if math.isfinite(score):
            self.curves.setdefault(trial_id, {})[epoch] = score
        if stop is not None:
            self.decisions[trial_id] = Outcome.of(stop)

    def promote(self, trial_id: str, rung: int) -> None:
        self.promotions.append((trial_id, rung))

    def decide(self, trial_id: str, outcome: Outcome) -> None:
        self.decisions[trial_id] = outcome

    def decided(self, trial_id: str) -> Outcome | None:
        return self.decisions.get(trial_id)


class RecordingLedger(FakeLedger):
    """A ledger that notes each report as it is entered.

    Attributes:
        entered: Trial, score, epoch, decision, and the decisions that stood before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[Any] = []

    def report(
        self, trial_id: str, score: float, result: Mapping[str, Any], stop: Kind | None
    ) -> None:
        before = dict(self.decisions)
        super().report(trial_id, score, result, stop)
        self.entered.append((trial_id, score, result["epoch"], stop, before))


def complete(scheduler: Any, trial: FakeTrial, result: Mapping[str, Any]) -> None:
    """Tell a scheduler that a trial has ended, first as Tune does, then as the driver does once the
    end is recorded."""
    scheduler.on_trial_complete(None, trial, dict(result))
    outcome = scheduler._record.decided(trial.trial_id) or Outcome.of(Kind.BY_ITSELF)
    attrs = {OUTCOME_ATTR: outcome.to_entry()}
    scheduler.on_trial_recorded(create_trial(state=TrialState.FAIL, system_attrs=attrs))


def add_trials(scheduler: Any, *names: str) -> list[FakeTrial]:
    """Add running trials to a scheduler, ours or Tune's."""
    trials = [FakeTrial(name) for name in names]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return trials


def report(scheduler: Any, trial: FakeTrial, epoch: int, score: float) -> str:
    """Report an epoch to a scheduler, ours or Tune's.

    Returns:
        Its decision.
    """
    controller = SimpleNamespace(get_live_trials=lambda: [])
    result = {"epoch": epoch, "score": score}
    return str(scheduler.on_trial_result(controller, trial, result))


def gains_at_rungs(rungs: Rungs) -> dict[int, dict[str, float]]:
    """Rung -> trial -> its gain there."""
    return {rung: rungs.gains(rung) for rung in rungs.epochs}


def recorded(
    trial_id: str, curve: Mapping[int, float], promoted_from: int | None = None
) -> FrozenTrial:
    """An unfinished trial of the record.

    Args:
        trial_id: Tune's id.
        curve: Epoch -> score.
        promoted_from: The last rung that it was promoted from; None: it was not promoted.
    """
    return create_trial(
        state=TrialState.RUNNING,
        intermediate_values=dict(curve),
        user_attrs={"trial_id": trial_id},
        system_attrs={} if promoted_from is None else {PROMOTED: promoted_from},
    )
