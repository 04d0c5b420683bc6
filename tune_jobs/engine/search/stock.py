"""One of Tune's own schedulers in place of ASHA: `StockScheduler`."""

from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    HyperBandScheduler,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
    TrialScheduler,
)

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.result import epoch_of
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.search.internals import forget_stop, max_epochs_of, mode_of
from tune_jobs.engine.store.entries import decision_of, id_of, results_of
from tune_jobs.engine.store.record import Record

__all__ = ["StockScheduler", "check_scheduler"]

# Subclasses too: HyperBandForBOHB, PB2.
REFUSED: dict[type, str] = {
    HyperBandScheduler: "pauses trials until whole brackets are full",
    PopulationBasedTraining: "changes the config of running trials",
    PopulationBasedTrainingReplay: "changes the config of running trials",
    ResourceChangingScheduler: "changes the resources of running trials",
}


def check_scheduler(scheduler: Any, goal: Goal) -> None:
    """Check that a scheduler only continues or stops trials, and optimizes what the sweep does.

    Raises:
        SettingsError: It does not.
    """
    name = type(scheduler).__name__
    rule = "scheduler must be one of Tune's that only continue or stop trials"
    known = "give ASHAScheduler, MedianStoppingRule or FIFOScheduler"
    for refused, reason in REFUSED.items():
        if isinstance(scheduler, refused):
            raise SettingsError(f"{rule}, got {name}, which {reason}; {known}.")
    if not isinstance(scheduler, TrialScheduler):
        raise SettingsError(f"{rule}, got {scheduler!r}; {known}.")
    if scheduler.metric not in (None, goal.metric) or mode_of(scheduler) not in (None, goal.mode):
        raise SettingsError(
            f"scheduler optimizes {scheduler.metric} ({mode_of(scheduler)}), and the sweep "
            f"{goal.metric} ({goal.mode}); leave metric and mode of {name} out."
        )


class StockScheduler(EpochScheduler):
    """Lets one of Tune's schedulers stop trials, and records its decisions.

    It is given the number of the epoch as `epoch` and as `training_iteration`, so that a validation
    every third epoch counts as three. On resume it is given the recorded results again. A trial
    that it would pause keeps its slot: MedianStoppingRule pauses to give others a turn.

    Args:
        goal, record, settings: As for `EpochScheduler`.
        scheduler: Tune's, as `check_scheduler` accepts it.
    """

    def __init__(
        self, goal: Goal, record: Record, settings: Settings, scheduler: TrialScheduler
    ) -> None:
        super().__init__(goal, record, settings)
        self._scheduler = scheduler
        scheduler.set_search_properties(
            None if scheduler.metric else goal.metric, None if mode_of(scheduler) else goal.mode
        )
        self._recorded: dict[str, FrozenTrial] = {}

    def restore(self, trials: Iterable[FrozenTrial]) -> None:
        trials = list(trials)
        super().restore(trials)
        self._recorded = {id_of(trial): trial for trial in trials}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        self._scheduler.on_trial_add(tune_controller, trial)
        recorded = self._recorded.pop(trial.trial_id, None)
        if recorded is None:
            return
        # Only now: schedulers know Tune's trials by the objects, not by their ids.
        results = results_of(recorded)
        last: dict[str, Any] = {}
        for epoch in recorded.intermediate_values:  # without the epoch that diverged
            last = _by_epochs(results[epoch])
            self._scheduler.on_trial_result(tune_controller, trial, last)
            forget_stop(self._scheduler, trial)  # what was decided is in the record
        self._end(tune_controller, trial, last, decision_of(recorded))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        outcome = self._record.decided(trial.trial_id) or Outcome.of(Kind.BY_ITSELF)
        # Not `result`, which may be what a function returned: that is no epoch.
        results = results_of(self._record.trial(trial.trial_id))
        last = _by_epochs(results[max(results)]) if results else {}
        self._end(tune_controller, trial, last, outcome)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_error(tune_controller, trial)
        self._scheduler.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._scheduler.on_trial_remove(tune_controller, trial)

    def _decide(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> Kind | None:
        stop = super()._decide(tune_controller, trial, result)
        if stop == Kind.NAN:
            return stop  # the score would enter the scheduler's comparisons
        by_epochs = _by_epochs(result)
        decision = self._scheduler.on_trial_result(tune_controller, trial, by_epochs)
        if stop is None and decision == TrialScheduler.STOP:
            is_last = epoch_of(result) >= max_epochs_of(self._scheduler)
            return Kind.LAST_EPOCH if is_last else Kind.SCHEDULER
        return stop

    def _end(
        self, tune_controller: Any, trial: Trial, last: dict[str, Any], outcome: Outcome | None
    ) -> None:
        """Tell the scheduler how a trial ended, if it has."""
        if outcome is None:
            return
        if outcome.is_crash or not last:
            self._scheduler.on_trial_error(tune_controller, trial)
        else:
            self._scheduler.on_trial_complete(tune_controller, trial, last)


def _by_epochs(result: Any) -> dict[str, Any]:
    epoch = epoch_of(result)
    return {**result, "epoch": epoch, "training_iteration": epoch}
