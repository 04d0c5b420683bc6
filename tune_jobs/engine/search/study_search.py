"""Optuna's search on Ray Tune: `StudySearch`."""

import math
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.define_by_run import Suggested
from tune_jobs.engine.core.goal import Goal, final_curve
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.result import CANNOT_RESUME, ENDS_ITSELF, EPOCH, RETURNED
from tune_jobs.engine.core.space import SearchSpace
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.search.asking import make_asker
from tune_jobs.engine.search.internals import has_constraints
from tune_jobs.engine.search.view import STUDY_NAME, Ending, View
from tune_jobs.engine.store.configs import recordable, values_of
from tune_jobs.engine.store.entries import id_of, results_of, returned_by
from tune_jobs.engine.store.record import Record

__all__ = ["SearchListener", "StudySearch"]

# What Tune and the engine add to what a trial reports.
ADDED = {*AUTO_RESULT_KEYS, EPOCH, RETURNED, CANNOT_RESUME, ENDS_ITSELF}


class SearchListener:
    """Listens to a search."""

    def on_trial_end(self, trial: FrozenTrial) -> None:
        """A trial has ended, and is recorded."""

    def on_sampler_error(self, error: Exception) -> None:
        """The sampler, or a function of the user's in it, raised as a trial ended.

        The trial is recorded up to its end, and is ended when the sweep is resumed.
        """
        raise error


class StudySearch(Transient, OptunaSearch):
    """An `OptunaSearch` that asks the sampler's view and writes to the sweep's record.

    What Ray's own does, and this does not:

    - It tells Optuna that a trial stopped by ASHA is COMPLETE, with a value that its intermediate
      values lack, and the value is the last epoch's (ray#28734).
    - A trial that reported NaN stays RUNNING forever: `tell` raises, and the error is swallowed.
    - A crash is FAIL, from which samplers learn nothing.
    - Its snapshots, 10 s apart, are behind its database: a killed sweep cannot be restored
      (ray#19274).
    - When a sampler has tried everything (grid, brute force), it starts over. Here that ends the
      search. In parallel, Optuna's grid may try a point twice that another slot still tries.

    Args:
        space: As `convert_space` returns it.
        goal: What is optimized.
        record: The record of the sweep, with what was entered so far.
        view: What the sampler is shown; it has the record's trials.
        seed: The sweep's.
        listener: Listens to the search.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        record: Record,
        view: View,
        seed: int,
        listener: SearchListener | None = None,
    ) -> None:
        self._searched = space
        self._goal = goal
        self._record = record
        self._view = view
        self._asker = make_asker(space, view, seed)
        for trial in record.started():
            self._asker.add(trial)
        self._listener = listener or SearchListener()
        # In the view's own storage: Ray's default study is called "optuna" whatever the sweep, and
        # two sweeps in one storage would mix silently.
        super().__init__(
            space.searched,
            metric=goal.metric,
            mode=goal.mode,
            sampler=view.study.sampler,
            study_name=STUDY_NAME,
            storage=view.storage,
        )
        view.remember_the_end()

    def suggest(self, trial_id: str) -> Any:
        """The config of a new trial, or FINISHED.

        A trial may end in its search space, by an error there; then the record says so.
        """
        waiting = self._record.next_waiting()
        number = self._record.next_number if waiting is None else waiting.number
        if waiting is not None:
            suggested: Suggested | None = self._asker.ask_waiting(number, waiting)
        else:
            suggested = None if self._view.study.is_exhausted else self._asker.ask(number)
        if suggested is None:
            return Searcher.FINISHED
        asked = self._view.start(trial_id)
        self._record.keep(self._view.attrs())
        recorded = recordable(suggested.config, self._searched)
        self._record.start(trial_id, asked, recorded, suggested.outcome)
        self._asker.add(self._record.trial(trial_id))
        if suggested.outcome is not None:
            self.end(trial_id, suggested.outcome)
        return self._searched.config(suggested.config)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show the sampler what a trial reported; the scheduler has recorded it already."""
        if math.isfinite(float(result.get(self._goal.metric, math.nan))):
            self._view.touch(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        outcome = self._record.decided(trial_id)
        if error and outcome is None:
            return  # the storage failed: the trial can be resumed
        self.end(trial_id, outcome or Outcome.of(Kind.BY_ITSELF))

    def end(self, trial_id: str, outcome: Outcome) -> None:
        """Record the end of a trial, and show it to the sampler."""
        trial = self._record.trial(trial_id)
        if trial.state.is_finished():
            return
        value = self._value_of(trial, outcome)
        if outcome.kind == Kind.BY_ITSELF and value is None:
            message = f"it ended and had not reported {self._goal.metric!r}"
            outcome = Outcome(Kind.SILENT, Cause.TRIAL, message)
        metrics = _metrics_of(trial, self._goal)
        try:
            ending = Ending(outcome, value, final_curve(trial), metrics, self._config_of(trial))
            kept = self._view.end(trial_id, ending)
        except Exception as error:
            self._record.decide(trial_id, outcome)
            self._listener.on_sampler_error(error)
            return
        ended = self._record.end(trial_id, outcome, value, metrics, kept)
        self._listener.on_trial_end(ended)

    def _value_of(self, trial: FrozenTrial, outcome: Outcome) -> float | None:
        """The value of a trial that ends: what its function returned, else its best report."""
        if outcome.is_failure:
            return None
        returned = returned_by(trial)
        if returned is not None and self._goal.metric in returned:
            value = float(returned[self._goal.metric])
            return value if math.isfinite(value) else None
        curve = final_curve(trial)
        epoch = self._goal.best_epoch(curve)
        return None if epoch is None else curve[epoch]

    def end_decided(self) -> None:
        """End the trials whose driver died between the recorded decision and the end."""
        for trial in self._record.running():
            outcome = self._record.decided(id_of(trial))
            if outcome is not None:
                self.end(id_of(trial), outcome)

    def check_unfinished(self) -> None:
        """Enter which trials that have not ended violate a constraint: the best so far must not."""
        for trial in self._record.running():
            value, metrics = self._goal.score(trial), _metrics_of(trial, self._goal)
            if value is not None:
                violations = self._view.violations(
                    id_of(trial), value, metrics, self._config_of(trial)
                )
                self._record.note(id_of(trial), violations)

    def _config_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """What a trial was given, for the sampler's constraints, if it has any."""
        return values_of(trial, self._searched) if has_constraints(self._view.study.sampler) else {}

    def end_unfinished(self, outcome: Outcome) -> None:
        """End the trials that the end of the sweep cut short; Tune reports these to no searcher."""
        for trial in self._record.running():
            self.end(id_of(trial), outcome)


def _metrics_of(trial: FrozenTrial, goal: Goal) -> dict[str, Any]:
    """What a trial reported with its value, without what Tune and the engine add."""
    returned, results = returned_by(trial), results_of(trial)
    best_epoch = goal.best_epoch(final_curve(trial))
    result = returned or results.get(best_epoch or 0, {})
    return {name: _number(value) for name, value in result.items() if name not in ADDED}


def _number(value: Any) -> Any:
    """Infinity and NaN as numbers again: the record holds them as text."""
    return float(value) if value in ("inf", "-inf", "nan") else value
