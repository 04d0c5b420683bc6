"""Optuna's search on Ray Tune, told the truth: `StudySearch`."""

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict
from ray.tune.utils.util import unflatten_dict

from tune_jobs.engine.goal import Goal, epoch_of
from tune_jobs.engine.reasons import Reason
from tune_jobs.engine.settings import SettingsError

__all__ = ["SearchSpace", "Space", "StudySearch", "convert_space"]

DefineByRun: TypeAlias = Callable[[optuna.Trial], dict[str, Any] | None]
Space: TypeAlias = dict[str, Any] | DefineByRun


class SearchSpace(NamedTuple):
    """What is searched, as Optuna takes it, and what every config holds besides; names are flat."""

    searched: dict[str, BaseDistribution] | DefineByRun
    constants: dict[str, Any]


class StudySearch(OptunaSearch):
    """An `OptunaSearch` whose study says what happened.

    Ray's own tells a trial that ASHA stopped as COMPLETE, with a value that its intermediate values
    lack; a trial that reported NaN stays RUNNING for ever (`tell` raises, and that is swallowed);
    the value told is the last epoch's (ray#28734). Here the value is the best epoch's, and every
    trial has the user attributes `trial_id` and `reason`. A sampler that has tried everything
    (grid, brute force) ends the search; with Ray's it goes round again. Side by side, Optuna's grid
    may try a point twice that another slot is still trying.

    Args:
        space: As `convert_space` returns it.
        goal: What is optimised.
        study: The study that is kept with the results.
        reasons: Why a trial was ended, by trial id, as the scheduler fills it.
        on_trial_end: Called with the study and each finished trial.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        study: optuna.Study,
        reasons: Mapping[str, str],
        on_trial_end: Callable[[optuna.Study, FrozenTrial], None] = lambda study, trial: None,
    ) -> None:
        self._constants = space.constants
        self._goal = goal
        self._given_study = study
        self._reasons = reasons
        self._on_trial_end = on_trial_end
        self._last_epoch: dict[str, int] = {}
        super().__init__(space.searched, metric=goal.metric, mode=goal.mode)

    def _setup_study(self, mode: str | list[str]) -> None:
        # Ray's default study is called "optuna", whatever the sweep, and two sweeps in one storage
        # would mix silently; ours is made by the sweep, under its name, and new.
        self._ot_study = self._given_study

    def suggest(self, trial_id: str) -> Any:
        if self._ot_study._stop_flag:
            return Searcher.FINISHED
        config = flatten_dict(super().suggest(trial_id))
        self._ot_trials[trial_id].set_user_attr("trial_id", trial_id)
        return unflatten_dict({**self._constants, **config})

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        score, epoch = float(result[self._goal.metric]), epoch_of(result)
        # A trial that ended by itself brings its last result twice.
        if math.isfinite(score) and epoch > self._last_epoch.get(trial_id, 0):
            self._last_epoch[trial_id] = epoch
            self._ot_trials[trial_id].report(score, epoch)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._completed_trials:
            return
        if result and self._goal.metric in result:
            # Tune does not pass on the result at which a trial was stopped: it comes only here.
            self.on_trial_result(trial_id, result)
        reason = self._reasons.get(trial_id, Reason.BY_ITSELF)
        if error:
            self._tell(trial_id, TrialState.FAIL, reason)
        elif Reason(reason).is_early:
            self._tell(trial_id, TrialState.PRUNED, reason)
        else:
            self._tell(trial_id, TrialState.COMPLETE, reason)

    def folder_of(self, trial: Any) -> str:
        """The folder of a Tune trial: by its number in the study, which trials.csv has too."""
        return f"trial_{self._ot_trials[trial.trial_id].number:04d}"

    def tell_unfinished(self, reason: Reason) -> None:
        """Close the trials that the end of the sweep cut short; Tune tells a searcher nothing."""
        for trial_id in [t for t in self._ot_trials if t not in self._completed_trials]:
            self._tell(trial_id, TrialState.PRUNED, reason)

    def save(self, checkpoint_path: str) -> None:
        # Tune asks for a file in each snapshot. The study on disk holds all there is to save, and
        # Ray's own would pickle the whole of it each time, and a define-by-run function with it.
        Path(checkpoint_path).write_bytes(pickle.dumps({}))

    def _tell(self, trial_id: str, state: TrialState, reason: str) -> None:
        study, trial = self._ot_study, self._ot_trials[trial_id]
        # `Study.get_trials` would read all of them, at the end of each.
        curve = study._storage.get_trial(trial._trial_id).intermediate_values
        best_epoch = self._goal.best_epoch(curve)
        value = None if best_epoch is None else curve[best_epoch]
        if state == TrialState.COMPLETE and value is None:
            state, reason = TrialState.FAIL, Reason.SILENT
        trial.set_user_attr("reason", str(reason))
        with _stop_allowed(study):
            frozen = study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        self._completed_trials.add(trial_id)
        self._on_trial_end(study, frozen)


def convert_space(space: Space) -> SearchSpace:
    """Split a Tune search space into Optuna's distributions and constants.

    Ray's own conversion drops the constants. A define-by-run function is returned as it is.

    Raises:
        SettingsError: The space holds nothing to search, or what Optuna cannot search.
    """
    if callable(space):
        return SearchSpace(space, {})
    try:
        flat = flatten_dict(space, prevent_delimiter=True)
        _check_choices(flat)
        distributions = OptunaSearch.convert_search_space(space)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"space cannot be searched by Optuna: {error}") from error
    distributions |= {name: v for name, v in flat.items() if isinstance(v, BaseDistribution)}
    if not distributions:
        raise SettingsError("space holds nothing to search; give a parameter tune.uniform(0, 1).")
    constants = {name: v for name, v in flat.items() if name not in distributions}
    return SearchSpace(distributions, constants)


def _check_choices(flat: dict[str, Any]) -> None:
    """The study's file holds these types alone; Optuna finds out when the first trial is asked."""
    for name, domain in flat.items():
        for choice in getattr(domain, "categories", getattr(domain, "choices", ())):
            if choice is not None and not isinstance(choice, (bool, int, float, str)):
                raise SettingsError(
                    f"choices of {name!r} must be None, bool, int, float or str, got {choice!r}; "
                    "search a name for it and look it up where the model is made."
                )


@contextmanager
def _stop_allowed(study: optuna.Study) -> Iterator[None]:
    """Let a sampler that has tried everything call `Study.stop`; Optuna allows it in its own loop
    alone."""
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False
