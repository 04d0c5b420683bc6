"""Tune's trials: first the recorded ones, then what the search suggests: `TrialQueue`."""

import shutil
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.layout import ERROR_FILE, trial_folder
from tune_jobs.engine.core.outcome import Cause, outcome_of
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.transient import Transient
from tune_jobs.engine.execution.callbacks import write_results
from tune_jobs.engine.execution.internals import (
    keep_running,
    register_checkpoint,
    stop_waiting_for_reset,
)
from tune_jobs.engine.execution.stopper import SweepStopper
from tune_jobs.engine.search.epochs import EpochScheduler
from tune_jobs.engine.search.failures import outcome_of_failed
from tune_jobs.engine.search.study_search import StudySearch
from tune_jobs.engine.store.checkpoints import Shelf
from tune_jobs.engine.store.configs import config_of
from tune_jobs.engine.store.entries import id_of, reports_of
from tune_jobs.engine.store.opening import OpenSweep
from tune_jobs.engine.store.record import Record

__all__ = ["SweepTrial", "TrialQueue"]


class SweepTrial(Trial):
    """A trial that resumes after its process or machine died, and after no other failure.

    Ray's `max_failures` counts all failures alike: a config that raises is run again and again.

    When a process dies while it is handed over from one trial to the next, the next trial fails.
    Ray reports that death twice, and at the second time finds the trial in its queue, PENDING.

    Attributes:
        controller: Tune's, once it has taken the trial in.
        error: The last error that Tune reported.
    """

    controller: Any = None
    error: Any = None

    def handle_error(self, exc: Any = None) -> None:
        super().handle_error(exc)
        self.error = exc
        outcome = outcome_of_failed(self)
        if self.error_file and outcome.kind != "error":
            Path(self.error_file).write_text(f"{outcome.traceback}\n")  # Ray's adds its own frames
        if self.controller is None:
            return
        # Otherwise Tune would wait for the process forever.
        stop_waiting_for_reset(self.controller, self)
        if self.status == Trial.PENDING and outcome.cause == Cause.CLUSTER:
            self.run_metadata.num_failures -= 1  # it died once
            keep_running(self.controller, self)  # otherwise it would not recover

    def update_last_result(self, result: dict[str, Any]) -> None:
        config = result.get("config")
        if _has_odd_keys(config):
            result = {**result, "config": readable(config)}  # for the snapshots, too
        super().update_last_result(result)

    def should_recover(self) -> bool:
        is_cluster = outcome_of_failed(self).cause == Cause.CLUSTER
        return is_cluster and bool(super().should_recover())

    def __getstate__(self) -> dict[str, Any]:
        unpicklable = ("controller", "error")
        state = {k: v for k, v in super().__getstate__().items() if k not in unpicklable}
        # For Tune's snapshots, which nobody reads: JSON has no keys that are tuples.
        plain = readable(self.config)
        return {k: plain if v is self.config else v for k, v in state.items()}


class TrialQueue(Transient, SearchGenerator):
    """Hands Tune the trials of a sweep, never more at a time than there are slots.

    A free slot goes to a paused trial that the scheduler promotes, else to a new trial. That is
    decided here, since Tune starts pending trials whatever the scheduler says.

    To Tune, a resumed sweep is a new one, whose first trials are the recorded ones: finished trials
    with their results, the others to resume from their last checkpoint. Tune's own way,
    `Tuner.restore`, reads a snapshot that is up to 10 s old, forgets the scheduler (ray#30838),
    cannot add trials (ray#42221), and exceeds the concurrency limit (ray#40652).

    Args:
        search: Gives the configs of new trials.
        scheduler: Knows which trials are paused, and promotes them.
        record: The record of the sweep.
        sweep: What is searched, and the folder with the checkpoints.
        slots: Tells how many trials may run in parallel now.
        stopper: Tells whether the sweep has to end, which it may have to as soon as it is resumed,
            and whether new trials may start.

    Attributes:
        is_exhausted: Whether the search has nothing left to try.
    """

    def __init__(
        self,
        search: StudySearch,
        scheduler: EpochScheduler,
        record: Record,
        sweep: OpenSweep,
        slots: Callable[[], int],
        stopper: SweepStopper,
    ) -> None:
        super().__init__(search)
        self._scheduler = scheduler
        self._record = record
        self._sweep = sweep
        self._slots = slots
        self._stopper = stopper
        self._shelf = Shelf(sweep.folder.filesystem, sweep.folder.path)
        recorded = record.started()
        # Trials that need no slot come first: Tune's results are to hold all trials.
        self._recorded = deque(sorted(recorded, key=self._needs_slot))
        self._num_started = len(recorded)
        self._spec: dict[str, Any] = {}
        self._unfinished: set[str] = set()
        self.is_exhausted = False
        self._is_over = False  # Tune has ended the sweep

    def add_configurations(self, experiments: Any) -> None:
        super().add_configurations(experiments)
        experiment = experiments[0] if isinstance(experiments, list) else experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        if self._recorded and not self._needs_slot(self._recorded[0]):
            return self._restore(self._recorded.popleft())
        if self._stopper.outcome is not None:
            self.set_finished()  # otherwise Tune would wait here for minutes
        num_running = len(self._unfinished) - self._scheduler.num_paused
        if self.is_finished() or num_running >= self._slots():
            return None
        if self._recorded:
            return self._restore(self._recorded.popleft())
        may_start = not (self._none_left or self._stopper.holds_back)
        is_last = not may_start and not num_running
        if self._scheduler.promote(is_last):
            return None
        if is_last:
            self._scheduler.stop_paused()
        return self._suggest() if may_start else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._unfinished.discard(trial_id)
        super().on_trial_complete(trial_id, result, error)

    def is_finished(self) -> bool:
        return self._is_over or (self._none_left and self._scheduler.is_settled)

    def set_finished(self) -> None:
        super().set_finished()
        self._is_over = True

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Part of Tune's snapshots, which are copied to the storage: a record that is not there
        already goes with them. Nothing else needs saving: the record holds everything."""
        if self._sweep.folder.is_remote and not self._record.is_lost:
            shutil.copy(self._record.file, dirpath)

    @property
    def _none_left(self) -> bool:
        """Whether no further trial is to start."""
        is_full = self._num_started >= self.total_samples
        return not self._recorded and (is_full or self.is_exhausted)

    def _needs_slot(self, recorded: FrozenTrial) -> bool:
        is_finished = recorded.state.is_finished()
        return not (is_finished or self._scheduler.is_paused(id_of(recorded)))

    def _suggest(self) -> Trial | None:
        trial_id = Trial.generate_id()
        config = self.searcher.suggest(trial_id)
        if config == Searcher.FINISHED:
            self.is_exhausted = True
            return None
        self._num_started += 1
        recorded = self._record.trial(trial_id)
        if recorded.state.is_finished():  # in its search space
            return self._restore(recorded)
        self._unfinished.add(trial_id)
        return self._make(trial_id, config)

    def _restore(self, recorded: FrozenTrial) -> Trial:
        trial = self._make(id_of(recorded), config_of(recorded, self._sweep.space))
        trial.init_local_path()
        reports = reports_of(recorded)
        kept = self._shelf.of(trial.storage.trial_dir_name, reports)
        self._shelf.remove_others(trial.storage.trial_dir_name, kept.values())
        for number, path in kept.items():
            checkpoint = Checkpoint(path, self._shelf.filesystem)
            register_checkpoint(trial, checkpoint, dict(reports[number]))
        if recorded.state.is_finished():
            self._end(trial, recorded, reports)
        else:
            # What was reported after the last checkpoint is trained again.
            last = max(kept, default=0)
            reports = {number: report for number, report in reports.items() if number <= last}
            self._unfinished.add(trial.trial_id)
            if not self._needs_slot(recorded):
                trial.set_status(Trial.PAUSED)
                write_results(trial, reports.values())  # it may never start again
        for report in reports.values():
            trial.update_last_result(dict(report))
        return trial

    def _end(
        self, trial: Trial, recorded: FrozenTrial, reports: Mapping[int, dict[str, Any]]
    ) -> None:
        # When the driver died, its logs may have been in Ray's staging folder only.
        write_results(trial, reports.values())
        outcome = outcome_of(recorded)
        if outcome is None or not outcome.is_failure:
            trial.set_status(Trial.TERMINATED)
            return
        Path(trial.local_path, ERROR_FILE).write_text(outcome.traceback)
        trial.run_metadata.error_filename = ERROR_FILE
        trial.set_status(Trial.ERROR)

    def _make(self, trial_id: str, config: dict[str, Any]) -> Trial:
        spec = self._spec
        return SweepTrial(
            spec["run"],
            trial_id=trial_id,
            config=config,
            evaluated_params=flatten_dict(config),
            stopping_criterion=spec["stop"],
            checkpoint_config=spec["checkpoint_config"],
            placement_group_factory=spec["resources_per_trial"],
            trial_dirname_creator=self._folder_of,
            log_to_file=spec["log_to_file"],
            storage=spec["storage"],
            max_failures=spec["max_failures"],
        )

    def _folder_of(self, trial: Trial) -> str:
        """By its number in the study, which trials.csv has too."""
        return trial_folder(self._record.trial(trial.trial_id).number)


def _has_odd_keys(value: Any) -> bool:
    """Whether there is a key in it that JSON does not take."""
    if isinstance(value, dict):
        is_odd = any(not isinstance(key, (str, int, float, type(None))) for key in value)
        return is_odd or any(map(_has_odd_keys, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_odd_keys, value))
