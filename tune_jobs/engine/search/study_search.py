"""Optuna's search on Ray Tune, told the truth: `StudySearch`."""

import math
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict
from ray.tune.utils.util import unflatten_dict

from tune_jobs.engine.core.goal import Goal, epoch_of
from tune_jobs.engine.core.outcome import Blame, Endings, Failure, Reason
from tune_jobs.engine.core.settings import SettingsError
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.search.view import View, has_crashed, reseed
from tune_jobs.engine.store.record import Record, failure_in, folder_name, id_of, reason_of

__all__ = ["DefineByRun", "SearchSpace", "Space", "StudySearch", "convert_space"]

DefineByRun: TypeAlias = Callable[[optuna.Trial], dict[str, Any] | None]
Space: TypeAlias = dict[str, Any] | DefineByRun


class SearchSpace(NamedTuple):
    """What is searched, as Optuna takes it, and what every config holds besides; names are flat."""

    searched: dict[str, BaseDistribution] | DefineByRun
    constants: dict[str, Any]


class StudySearch(Transient, OptunaSearch):
    """An `OptunaSearch` that asks a view of the record, and enters in it what happened.

    Ray's own tells a trial that ASHA stopped as COMPLETE, with a value that its intermediate values
    lack; a trial that reported NaN stays RUNNING for ever (`tell` raises, and that is swallowed);
    a crash is told as FAIL, from which samplers learn nothing; the value told is the last epoch's
    (ray#28734); and its snapshots, 10 s apart, are behind its database, so that a killed sweep
    cannot be restored (ray#19274). A sampler that has tried everything (grid, brute force) ends the
    search; with Ray's it goes round again. Side by side, Optuna's grid may try a point twice that
    another slot is still trying.

    Args:
        space: As `convert_space` returns it.
        goal: What is optimised.
        record: The record of the sweep, with what has been entered so far.
        sampler: Any Optuna sampler; drawn anew from the seed and the trial's number each time.
        seed: The sweep's.
        endings: Why trials were ended, as the scheduler fills it.
        others: Finished trials of other sweeps, for the sampler to learn from.
        on_trial_end: Called with each finished trial.
        rungs: The milestones at which trials are compared.
        has_to_wait: Whether a trial, by Tune's id, is paused.
        goes_with_snapshots: Whether the record is copied to the storage with each of Tune's
            snapshots; where it is not there already.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        record: Record,
        sampler: BaseSampler,
        seed: int,
        endings: Endings,
        others: Sequence[FrozenTrial] = (),
        on_trial_end: Callable[[FrozenTrial], None] = lambda trial: None,
        rungs: Iterable[int] = (),
        has_to_wait: Callable[[str], bool] = lambda trial_id: False,
        goes_with_snapshots: bool = False,
    ) -> None:
        self._constants = space.constants
        self._goal = goal
        self._record = record
        self._endings = endings
        self._on_trial_end = on_trial_end
        self._goes_with_snapshots = goes_with_snapshots
        self._view = View(goal, sampler, record.kept(), rungs, has_to_wait)
        for other in others:
            self._view.add(other)
        for trial in record.started():
            self._view.add(trial, id_of(trial))
        super().__init__(space.searched, metric=goal.metric, mode=goal.mode, seed=seed)
        self._view.recall_the_end()

    def _setup_study(self, mode: str | list[str]) -> None:
        # Ray's default study is called "optuna", whatever the sweep, and two sweeps in one storage
        # would mix silently.
        self._ot_study = self._view.study

    def suggest(self, trial_id: str) -> Any:
        study, waiting = self._view.study, self._record.next_waiting()
        if waiting is None and study._stop_flag:
            return Searcher.FINISHED
        if waiting is not None:
            study.enqueue_trial(waiting.system_attrs["fixed_params"])
        number = self._record.num_trials if waiting is None else waiting.number
        reseed(study.sampler, self._seed, number)
        self._view.refresh()
        config = flatten_dict(super().suggest(trial_id))
        asked = study._storage.get_trial(self._ot_trials[trial_id]._trial_id)
        self._record.keep(study._storage.get_study_system_attrs(study._study_id))
        self._record.start(trial_id, asked)
        self._view.start(trial_id, asked)
        return unflatten_dict({**self._constants, **config})

    def config_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The config of a recorded trial."""
        if not callable(self._space):
            return dict(unflatten_dict({**self._constants, **trial.params}))
        given = self._suggest_from_define_by_run_func(self._space, FixedTrial(trial.params))
        return dict(unflatten_dict({**self._constants, **flatten_dict(given)}))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show the sampler how a trial fares; the scheduler has recorded it already."""
        score = float(result[self._goal.metric])
        if math.isfinite(score):
            self._view.report(trial_id, epoch_of(result), score)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        failure = self._endings.failures.get(trial_id)
        if failure is not None and failure.blame == Blame.STORAGE:
            return  # not this trial's end
        reason = failure.reason if failure else self._endings.reasons.get(trial_id)
        self.end(trial_id, reason or Reason.BY_ITSELF, failure)

    def end(self, trial_id: str, reason: str, failure: Failure | None = None) -> None:
        """Enter the end of a trial, and show it to the sampler."""
        trial = self._record.trial(trial_id)
        if trial.state.is_finished():
            return
        curve = trial.intermediate_values
        if failure is None and not curve and reason == Reason.BY_ITSELF:
            failure = Failure(Reason.SILENT, Blame.TRIAL, "it ended and had reported nothing")
            reason = failure.reason
        is_complete = failure is None and not Reason(reason).is_early
        state = TrialState.COMPLETE if is_complete else TrialState.PRUNED
        # Optuna's value of a pruned trial is its last.
        epoch = self._goal.best_epoch(curve) if is_complete else max(curve, default=None)
        value = None if epoch is None else curve[epoch]
        kept = self._view.end(trial_id, state, value, curve, has_crashed(reason, failure))
        frozen = self._record.end(trial_id, state, reason, value, failure, kept)
        self._on_trial_end(frozen)

    def end_decided(self) -> None:
        """End the trials whose driver died between the decision, which is recorded, and the end."""
        for trial in self._record.running():
            reason = reason_of(trial)
            if reason is not None:
                self.end(id_of(trial), reason, failure_in(trial))

    def end_unfinished(self, reason: Reason) -> None:
        """Close the trials that the end of the sweep cut short; Tune tells a searcher nothing."""
        for trial in self._record.running():
            self.end(id_of(trial), reason)

    def folder_of(self, trial: Any) -> str:
        """The folder of a Tune trial: by its number in the study, which trials.csv has too."""
        return folder_name(self._record.trial(trial.trial_id).number)

    def save(self, checkpoint_path: str) -> None:
        # Tune asks for a file in each snapshot. The record holds all there is to save, and Ray's
        # own would pickle the whole study each time, and a define-by-run function with it.
        Path(checkpoint_path).write_bytes(pickle.dumps({}))
        if self._goes_with_snapshots and not self._record.is_lost:
            shutil.copy(self._record.file, Path(checkpoint_path).parent)


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
