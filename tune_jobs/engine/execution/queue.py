"""Tune's trials: recorded ones as they stood, then what the search suggests: `TrialQueue`."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from ray.air.constants import EXPR_ERROR_FILE
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.outcome import Blame, failure_of
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.execution.callbacks import write_results
from tune_jobs.engine.search.asha import EpochScheduler
from tune_jobs.engine.search.study_search import StudySearch
from tune_jobs.engine.store.checkpoints import Shelf
from tune_jobs.engine.store.record import failure_in, id_of, results_of

__all__ = ["SweepTrial", "TrialQueue"]


class SweepTrial(Trial):
    """A trial that goes on after its process or its machine has died, and after nothing else.

    Ray's `max_failures` counts every cause alike, so that a config which raises is run again too.
    But a process that dies while it is handed from one trial to the next fails the next one: Ray
    tells of the death twice, and the second time finds the trial back in its queue, PENDING.

    Attributes:
        controller: Tune's, once it has taken the trial in.
    """

    controller: Any = None

    def handle_error(self, exc: Any = None) -> None:
        super().handle_error(exc)
        if self.controller is None:
            return
        # Else Tune would wait for ever for the process to be handed over.
        self.controller._resetting_trials.discard(self)
        if self.status == Trial.PENDING and failure_of(self).blame == Blame.CLUSTER:
            self.run_metadata.num_failures -= 1  # it died once
            self.controller._set_trial_status(self, Trial.RUNNING)  # else it would not recover

    def should_recover(self) -> bool:
        return failure_of(self).blame == Blame.CLUSTER and bool(super().should_recover())

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "controller"}


class TrialQueue(Transient, SearchGenerator):
    """Hands Tune the trials of a sweep, and no more at a time than there are slots.

    A free slot goes to a paused trial that the scheduler promotes, else to a new one. It is decided
    here, since Tune starts what is pending whatever the scheduler says.

    A sweep that is gone on with is a new one to Tune, whose first trials are the recorded ones:
    finished ones as they ended, the others to go on from their last checkpoint. Tune's own way,
    `Tuner.restore`, goes by a snapshot that is up to 10 s or more behind, forgets the scheduler
    (ray#30838), cannot add trials (ray#42221), and starts restored ones beyond the concurrency
    limit (ray#40652).

    Args:
        search: Gives the configs of new trials.
        scheduler: Knows which trials are paused, and which of them go on.
        recorded: The trials of the record that have been started.
        slots: Tells how many trials may run side by side now.
        is_over: Whether the sweep has to end; it may have to as soon as it is gone on with.
        shelf: The checkpoints that are there.
        on_recall: Called with each finished trial that is handed out again, and what is recorded.
    """

    def __init__(
        self,
        search: StudySearch,
        scheduler: EpochScheduler,
        recorded: list[FrozenTrial],
        slots: Callable[[], int],
        is_over: Callable[[], bool],
        shelf: Shelf,
        on_recall: Callable[[Trial, FrozenTrial], None],
    ) -> None:
        super().__init__(search)
        self._scheduler = scheduler
        # Those that take no slot first, and Tune's results are to hold all trials.
        self._recorded = deque(sorted(recorded, key=self._takes_slot))
        self._num_started = len(recorded)
        self._slots = slots
        self._is_over = is_over
        self._shelf = shelf
        self._on_recall = on_recall
        self._unfinished: set[str] = set()
        self._is_exhausted = False  # the search has nothing left

    def next_trial(self) -> Trial | None:
        if self._recorded and not self._takes_slot(self._recorded[0]):
            return self._recall(self._recorded.popleft())
        if self._is_over():
            self.set_finished()
        num_running = len(self._unfinished) - self._scheduler.num_waiting
        if self.is_finished() or num_running >= self._slots():
            return None
        if self._recorded:
            return self._recall(self._recorded.popleft())
        is_last = self._none_left and not num_running
        if self._scheduler.promote(is_last):
            return None
        if is_last:
            self._scheduler.end_waiting()
        return None if self._none_left else self._suggest()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._unfinished.discard(trial_id)
        super().on_trial_complete(trial_id, result, error)

    def is_finished(self) -> bool:
        return bool((self._none_left and self._scheduler.is_settled) or self._finished)

    @property
    def _none_left(self) -> bool:
        """Whether no trial is to be started any more."""
        is_full = self._num_started >= self.total_samples
        return not self._recorded and (is_full or self._is_exhausted)

    def _takes_slot(self, recorded: FrozenTrial) -> bool:
        is_finished = recorded.state.is_finished()
        return not (is_finished or self._scheduler.has_to_wait(id_of(recorded)))

    def _suggest(self) -> Trial | None:
        trial_id = Trial.generate_id()
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self._is_exhausted = True
            return None
        self._num_started += 1
        self._unfinished.add(trial_id)
        return self._make(trial_id, config)

    def _recall(self, recorded: FrozenTrial) -> Trial:
        trial = self._make(id_of(recorded), self.searcher.config_of(recorded))
        trial.init_local_path()
        results = results_of(recorded)
        kept = self._shelf.of(trial.storage.trial_dir_name, results)
        self._shelf.remove_others(trial.storage.trial_dir_name, kept.values())
        for epoch, path in kept.items():
            checkpoint = Checkpoint(path, self._shelf.filesystem)
            trial.run_metadata.checkpoint_manager.register_checkpoint(
                _TrainingResult(checkpoint, dict(results[epoch]))
            )
            # Ray counts on from here.
            trial.storage.current_checkpoint_index = int(path.rpartition("_")[-1])
        if recorded.state.is_finished():
            self._end(trial, recorded, results)
        else:
            # What was trained beyond the last checkpoint is trained again.
            results = {epoch: r for epoch, r in results.items() if epoch <= max(kept, default=0)}
            self._unfinished.add(trial.trial_id)
            if not self._takes_slot(recorded):
                trial.set_status(Trial.PAUSED)
                write_results(trial, results)  # it may never be started again
        for result in results.values():
            trial.update_last_result(dict(result))
        return trial

    def _end(
        self, trial: Trial, recorded: FrozenTrial, results: Mapping[int, dict[str, Any]]
    ) -> None:
        # Their logs may have been in Ray's staging folder only when the driver died.
        write_results(trial, results)
        failure = failure_in(recorded)
        if failure is not None:
            Path(trial.local_path, EXPR_ERROR_FILE).write_text(failure.text)
            trial.run_metadata.error_filename = EXPR_ERROR_FILE
        trial.set_status(Trial.ERROR if failure is not None else Trial.TERMINATED)
        self._on_recall(trial, recorded)

    def _make(self, trial_id: str, config: dict[str, Any]) -> Trial:
        spec = self._experiment.spec
        return SweepTrial(
            spec["run"],
            trial_id=trial_id,
            config=config,
            evaluated_params=flatten_dict(config),
            stopping_criterion=spec["stop"],
            checkpoint_config=spec["checkpoint_config"],
            placement_group_factory=spec["resources_per_trial"],
            trial_dirname_creator=spec["trial_dirname_creator"],
            log_to_file=spec["log_to_file"],
            storage=spec["storage"],
            max_failures=spec["max_failures"],
        )
