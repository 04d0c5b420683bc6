"""Optuna's search on Ray Tune: `StudySearch`."""

import math
from collections.abc import Callable
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_jobs.engine.core.define_by_run import Suggested
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome
from tune_jobs.engine.core.space import SearchSpace
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.search.asking import make_asker
from tune_jobs.engine.search.view import STUDY_NAME, View
from tune_jobs.engine.store.configs import recordable
from tune_jobs.engine.store.record import Record, id_of

__all__ = ["StudySearch"]


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
        on_trial_end: Called with each trial that has ended, after it is recorded.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        record: Record,
        view: View,
        seed: int,
        on_trial_end: Callable[[FrozenTrial], None] = lambda trial: None,
    ) -> None:
        self._searched = space
        self._goal = goal
        self._record = record
        self._view = view
        self._asker = make_asker(space, view, seed)
        for trial in record.started():
            if "trial_id" in trial.user_attrs:  # the sweep's own
                self._asker.add(trial)
        self._on_trial_end = on_trial_end
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
        number = self._record.num_trials if waiting is None else waiting.number
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
        if math.isfinite(float(result[self._goal.metric])):
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
        curve = trial.intermediate_values
        if outcome.kind == Kind.BY_ITSELF and not curve:
            message = "it ended and had reported nothing"
            outcome = Outcome(Kind.SILENT, Cause.TRIAL, message)
        # Optuna's value of a pruned trial is its last.
        is_complete = outcome.is_complete
        epoch = self._goal.best_epoch(curve) if is_complete else max(curve, default=None)
        value = None if epoch is None else curve[epoch]
        kept = self._view.end(trial_id, outcome.state, value, curve, outcome.is_crash)
        self._on_trial_end(self._record.end(trial_id, outcome, value, kept))

    def end_decided(self) -> None:
        """End the trials whose driver died between the recorded decision and the end."""
        for trial in self._record.running():
            outcome = self._record.decided(id_of(trial))
            if outcome is not None:
                self.end(id_of(trial), outcome)

    def end_unfinished(self, outcome: Outcome) -> None:
        """End the trials that the end of the sweep cut short; Tune reports these to no searcher."""
        for trial in self._record.running():
            self.end(id_of(trial), outcome)
