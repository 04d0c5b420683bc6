"""Optuna's search on Ray Tune, told the truth: `StudySearch`."""

import math
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

__all__ = ["StudySearch", "best_epoch"]


class StudySearch(OptunaSearch):
    """An `OptunaSearch` whose study says what happened.

    Ray's own tells a trial that ASHA stopped as COMPLETE, with a value that its intermediate values
    lack; a trial that reported NaN stays RUNNING for ever (`tell` raises, and that is swallowed);
    the value told is the last epoch's (ray#28734). Here the value is the best epoch's, and every
    trial has the user attributes `trial_id` and `reason`.

    Args:
        space: A Tune search space, or a define-by-run function of an Optuna trial.
        metric: The name under which trials report their score.
        mode: "max" or "min".
        study: The study that is kept with the results.
        why_ended: Gives the reason for which a trial, by its id, was ended.
        on_trial_end: Called with the study and each finished trial.
    """

    def __init__(
        self,
        space: dict[str, Any] | Callable[[optuna.Trial], dict[str, Any] | None],
        metric: str,
        mode: str,
        study: optuna.Study,
        why_ended: Callable[[str], str],
        on_trial_end: Callable[[optuna.Study, FrozenTrial], None] = lambda study, trial: None,
    ) -> None:
        self._why_ended = why_ended
        self._on_trial_end = on_trial_end
        self._given_study = study
        self._last_epoch: dict[str, int] = {}
        distributions = space if callable(space) else self.convert_search_space(space)
        super().__init__(distributions, metric=metric, mode=mode)

    def _setup_study(self, mode: str | list[str]) -> None:
        # Ray's default study is called "optuna", whatever the sweep, and two sweeps in one storage
        # would mix silently; ours is made by the sweep, under its name, and new.
        self._ot_study = self._given_study

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        config: dict[str, Any] | None = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr("trial_id", trial_id)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        score = float(result[self.metric])
        # A trial that ended by itself brings its last result twice.
        if math.isfinite(score) and result["epoch"] > self._last_epoch.get(trial_id, 0):
            self._last_epoch[trial_id] = result["epoch"]
            self._ot_trials[trial_id].report(score, result["epoch"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._completed_trials:
            return
        if result and self.metric in result:
            # Tune does not pass on the result at which a trial was stopped: it comes only here.
            self.on_trial_result(trial_id, result)
        reason = self._why_ended(trial_id)
        if error:
            self._tell(trial_id, TrialState.FAIL, reason)
        elif result and result.get("done") and reason not in ("asha", "nan"):
            self._tell(trial_id, TrialState.COMPLETE, reason)
        else:
            self._tell(trial_id, TrialState.PRUNED, reason)

    def tell_unfinished(self) -> None:
        """Close the trials that the end of the sweep cut short; Tune tells a searcher nothing."""
        for trial_id in [t for t in self._ot_trials if t not in self._completed_trials]:
            self.on_trial_complete(trial_id)

    def _tell(self, trial_id: str, state: TrialState, reason: str) -> None:
        study, trial = self._ot_study, self._ot_trials[trial_id]
        frozen = study._storage.get_trial(trial._trial_id)
        if state == TrialState.COMPLETE and not frozen.intermediate_values:
            state, reason = TrialState.FAIL, "reported nothing"
        trial.set_user_attr("reason", reason)
        value, epoch = None, best_epoch(frozen, self.mode)
        if state == TrialState.COMPLETE and epoch is not None:
            value = frozen.intermediate_values[epoch]
        frozen = study.tell(trial, value, state=state)
        self._completed_trials.add(trial_id)
        self._on_trial_end(study, frozen)


def best_epoch(trial: FrozenTrial, mode: str) -> int | None:
    """The epoch of the trial's best score; the latest of equals, as Tune keeps checkpoints."""
    sign = 1 if mode == "max" else -1
    curve = trial.intermediate_values
    return max(curve, key=lambda epoch: (sign * curve[epoch], epoch), default=None)
