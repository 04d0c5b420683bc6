"""The record of a sweep: an Optuna study on disk, written before anything acts on it."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.errors import RecordError
from tune_jobs.engine.core.goal import LAST_EPOCH_ATTR, Goal
from tune_jobs.engine.core.layout import STUDY_FILE
from tune_jobs.engine.core.outcome import OUTCOME_ATTR, Kind, Outcome, outcome_of
from tune_jobs.engine.core.result import epoch_of
from tune_jobs.engine.store.configs import CONFIG_ATTR, pack_config, to_json
from tune_jobs.engine.store.entries import (
    ENDED_IN_SPACE,
    OTHER_REPORT,
    PROMOTED,
    RESULT,
    RETURNED,
    SWEEP,
    decision_of,
    duration_of,
    id_of,
    own_of,
    results_of,
    to_entry,
)
from tune_jobs.engine.store.journal import refuse, remove_locks, repair
from tune_jobs.engine.store.study import study_storage

__all__ = ["Record"]

PAUSING = "tune_jobs:pausing"  # a system attribute of the study


class Record:
    """What has happened in a sweep, trial by trial, in `study.log`.

    A trial holds its parameters and its curve, as in any study. Its user attributes are

    - `trial_id`, Tune's;
    - `paused_at`, the rung at which it is paused; None while it is not;
    - once it has ended, `reason`, `duration_s`, `metrics`, and of a failed one `error`.

    And its system attributes: its config; each epoch's whole result, with the decision to stop
    there if there was one; reports without the metric; what its function returned; the last rung
    from which it was promoted; and its outcome. An epoch that is trained again replaces what was
    there.

    A trial that no driver of this sweep has started is foreign: the user has added it to the study,
    or asked for it.

    Every entry is appended and flushed to disk before the call returns.

    Args:
        folder: The folder that holds the file.
        storage: Optuna's storage of that file.
        name: The name of the study in it.
        lost: Set once another driver has taken over the sweep; nothing is entered from then on.

    Attributes:
        file: The file.
        study: The study.
        trouble: What kept the record from being written; None: nothing.
        num_trials: Trials of the sweep's own that have started, and those that wait.
    """

    def __init__(self, folder: Path, storage: BaseStorage, name: str, lost: Event) -> None:
        self.file = folder / STUDY_FILE
        self.study = optuna.load_study(study_name=name, storage=storage)
        self.trouble: RecordError | None = None
        self._lost = lost
        self._storage = storage
        self._running_since: dict[str, float] = {}  # the last report, start or resumption
        self._study_id = storage.get_study_id_from_name(name)
        self._sweep: str | None = self.kept().get(SWEEP)
        own = self.started()
        self._ids = {id_of(trial): self._optuna_id(trial.number) for trial in own}
        self._waiting = deque(t for t in self.trials() if t.state == TrialState.WAITING)
        self.num_trials = len(own) + len(self._waiting)

    @classmethod
    def create(cls, folder: Path, name: str, goal: Goal, lost: Event) -> "Record":
        """Begin the record of a new sweep.

        A file that is already there belongs to a driver that died before it had written a line.
        """
        (folder / STUDY_FILE).unlink(missing_ok=True)
        remove_locks(folder)
        storage = study_storage(folder)
        study_id = storage.create_new_study([StudyDirection[goal.direction.upper()]], name)
        storage.set_study_system_attr(study_id, SWEEP, uuid4().hex)
        return cls(folder, storage, name, lost)

    @classmethod
    def open(cls, folder: Path, lost: Event) -> "Record":
        """Reopen the record of a sweep whose driver has exited.

        The caller must hold the sweep's lock.

        Raises:
            SettingsError: The file is missing or damaged; it is left unchanged.
        """
        file = folder / STUDY_FILE
        repair(file)
        try:
            storage = study_storage(folder)
            (name,) = optuna.get_all_study_names(storage)
            return cls(folder, storage, name, lost)
        except Exception as error:  # lines that are whole, but not what Optuna has written
            refuse(file, f"{type(error).__name__}: {error}")

    @property
    def storage(self) -> BaseStorage:
        """Optuna's storage of the file; for reading."""
        return self._storage

    @property
    def is_lost(self) -> bool:
        """Whether another driver has taken over the sweep."""
        return self._lost.is_set()

    @property
    def next_number(self) -> int:
        """The number that the next trial gets which does not wait already."""
        return len(self.trials())

    @property
    def num_retries(self) -> int:
        """Trials that run a failed one again; they do not count against `num_trials`."""
        return sum("failed_trial" in trial.system_attrs for trial in self.own())

    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def started(self) -> list[FrozenTrial]:
        """The sweep's own trials that have started; others wait in the queue."""
        return own_of(self.trials(), self._sweep)

    def own(self) -> list[FrozenTrial]:
        """The sweep's own trials, those that wait last."""
        return [*self.started(), *self._waiting]

    def running(self) -> list[FrozenTrial]:
        """The sweep's own trials that have started and not ended; they run or are paused."""
        return [trial for trial in self.started() if trial.state == TrialState.RUNNING]

    def foreign(self) -> list[FrozenTrial]:
        """The trials that the user has added to the study, or asked for."""
        own, waiting = {trial.number for trial in self.started()}, TrialState.WAITING
        return [t for t in self.trials() if t.number not in own and t.state != waiting]

    def trial(self, trial_id: str) -> FrozenTrial:
        """The trial with Tune's id."""
        return self._storage.get_trial(self._ids[trial_id])

    def decided(self, trial_id: str) -> Outcome | None:
        """The outcome that is decided for a trial, though it may not have ended yet."""
        return decision_of(self.trial(trial_id))

    def next_waiting(self) -> FrozenTrial | None:
        """The next trial in the queue; None: the queue is empty."""
        return self._waiting[0] if self._waiting else None

    def enqueue(self, params: dict[str, Any], system_attrs: dict[str, Any] | None = None) -> None:
        """Add a config, or a part of one, to the queue of configs that are tried first."""
        attrs = {"fixed_params": params, **(system_attrs or {})}
        with self._writing():
            self.study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=attrs))
        self._waiting.append(self.trials()[-1])
        self.num_trials += 1

    def start(
        self,
        trial_id: str,
        asked: FrozenTrial,
        suggested: Mapping[str, Any],
        ended: Outcome | None = None,
    ) -> int:
        """Enter a trial that starts, atomically: a trial with half an entry could not be resumed.

        Args:
            trial_id: Tune's id.
            asked: What the sampler gave, and what the search space noted with it.
            suggested: What the search space made of it, as `pack_config` takes it.
            ended: Why it ended in its search space; None: it is to be trained.

        Returns:
            Its number.
        """
        attrs = {**asked.system_attrs, CONFIG_ATTR: pack_config(suggested), SWEEP: self._sweep}
        if ended is not None:
            attrs |= {OUTCOME_ATTR: ended.to_entry(), ENDED_IN_SPACE: True}
        notes = {name: to_json(note) for name, note in asked.user_attrs.items()}
        user_attrs = {**notes, "trial_id": trial_id}
        with self._writing():
            if self._waiting:
                number = self._waiting[0].number
                self._start_waiting(number, asked, user_attrs, attrs)
                self._waiting.popleft()
            else:
                template = create_trial(
                    state=TrialState.RUNNING, params=asked.params,
                    distributions=asked.distributions, user_attrs=user_attrs, system_attrs=attrs,
                )  # fmt: skip
                optuna_id = self._storage.create_new_trial(self._study_id, template)
                number = self._storage.get_trial_number_from_id(optuna_id)
                self.num_trials += 1
        self._ids[trial_id] = self._optuna_id(number)
        self._running_since[trial_id] = time.monotonic()
        return number

    def report(
        self, trial_id: str, score: float, result: Mapping[str, Any], stop: Kind | None
    ) -> None:
        """Enter a result and the decision on it.

        Args:
            trial_id: Tune's id.
            score: The value of the metric; enters the curve if it is finite.
            result: The whole result, flat.
            stop: Why the trial stops here; None: it continues.
        """
        optuna_id, epoch = self._ids[trial_id], epoch_of(result)
        with self._writing():
            # The result first: `repair_curves` can make the curve from it.
            self._enter_report(trial_id, f"{RESULT}{epoch:06d}", result, stop)
            if math.isfinite(score):
                self._storage.set_trial_intermediate_value(optuna_id, epoch, score)
            self._enter_last_epoch(trial_id, epoch)

    def report_other(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Enter a report without the metric."""
        name = f"{OTHER_REPORT}{int(result['training_iteration']):06d}"
        with self._writing():
            self._enter_report(trial_id, name, result, None)

    def report_returned(self, trial_id: str, result: Mapping[str, Any], stop: Kind | None) -> None:
        """Enter what a function returned; arguments as for `report`."""
        with self._writing():
            self._enter_report(trial_id, RETURNED, result, stop)

    def pause(self, trial_id: str, rung: int | None) -> None:
        """Enter at which rung a trial is paused; None: it is not paused any more."""
        with self._writing():
            self._storage.set_trial_user_attr(self._ids[trial_id], "paused_at", rung)
        if rung is not None:
            self._running_since.pop(trial_id, None)
        else:
            self._running_since[trial_id] = time.monotonic()

    def promote(self, trial_id: str, rung: int) -> None:
        """Enter that a trial continues from a rung."""
        with self._writing():
            self._enter(trial_id, PROMOTED, rung)

    def decide(self, trial_id: str, outcome: Outcome) -> None:
        """Enter why a trial is about to end; on resume, such a trial is ended.

        A trial that has ended is left alone: Tune takes an error of a callback at the end of a
        trial for a failure of the trial.
        """
        if self.trial(trial_id).state.is_finished():
            return
        with self._writing():
            self._enter(trial_id, OUTCOME_ATTR, outcome.to_entry())

    def end(
        self,
        trial_id: str,
        outcome: Outcome,
        value: float | None,
        metrics: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> FrozenTrial:
        """Enter the end of a trial.

        Args:
            trial_id: Tune's id.
            outcome: Why it ended.
            value: Its value; a failed trial has none.
            metrics: What it reported with its value.
            system_attrs: What the sampler keeps with the trial.
        """
        trial = self.trial(trial_id)
        if outcome_of(trial) != outcome:
            self.decide(trial_id, outcome)
        user_attrs = {
            "reason": str(outcome.kind),
            "duration_s": self._duration_of(trial),
            "metrics": to_entry(metrics or {}, None),
        }
        if outcome.is_failure:
            user_attrs["error"] = outcome.message
        if trial.user_attrs.get("paused_at") is not None:
            user_attrs["paused_at"] = None
        optuna_id = self._ids[trial_id]
        with self._writing():
            for name, attr in (system_attrs or {}).items():
                self._enter(trial_id, name, attr)
            for name, attr in user_attrs.items():
                self._storage.set_trial_user_attr(optuna_id, name, attr)
            values = None if value is None else [value]
            self._storage.set_trial_state_values(optuna_id, outcome.state, values)
        return self._storage.get_trial(optuna_id)

    @property
    def stops_only(self) -> bool:
        """Whether it is entered that trials of this sweep cannot be paused."""
        return self.kept().get(PAUSING) is False

    def note(self, trial_id: str, system_attrs: Mapping[str, Any]) -> None:
        """Enter what the sampler says of a trial that has not ended."""
        with self._writing():
            for name, attr in system_attrs.items():
                self._enter(trial_id, name, attr)

    def stop_only(self) -> None:
        """Enter that trials of this sweep cannot be paused."""
        self.keep({PAUSING: False})

    def keep(self, study_attrs: Mapping[str, Any]) -> None:
        """Enter what a sampler keeps with the study."""
        known = self.kept()
        with self._writing():
            for name, value in study_attrs.items():
                if known.get(name) != value:
                    self._storage.set_study_system_attr(self._study_id, name, value)

    def kept(self) -> dict[str, Any]:
        """What was entered with `keep`."""
        return self._storage.get_study_system_attrs(self._study_id)

    def repair_curves(self, metric: str) -> None:
        """Repair the curves of running trials, if the driver died between result and score."""
        for trial in self.running():
            for epoch, result in results_of(trial).items():
                score = float(result[metric])
                if math.isfinite(score) and trial.intermediate_values.get(epoch) != score:
                    with self._writing():
                        optuna_id = self._optuna_id(trial.number)
                        self._storage.set_trial_intermediate_value(optuna_id, epoch, score)

    def _enter(self, trial_id: str, name: str, attr: Any) -> None:
        self._storage.set_trial_system_attr(self._ids[trial_id], name, attr)

    def _enter_report(
        self, trial_id: str, name: str, result: Mapping[str, Any], stop: Kind | None
    ) -> None:
        self._enter(trial_id, name, to_entry(result, stop))
        self._running_since[trial_id] = time.monotonic()

    def _duration_of(self, trial: FrozenTrial) -> float:
        """Seconds that a trial which ends now was trained: until its last report, and since."""
        now = time.monotonic()
        since = now - self._running_since.get(id_of(trial), now)
        return round((duration_of(trial) or 0.0) + since, 3)

    def _enter_last_epoch(self, trial_id: str, epoch: int) -> None:
        """Enter how far a trial has come that is run again, until it is as far as before."""
        trial = self.trial(trial_id)
        is_behind = epoch < max(trial.intermediate_values, default=0)
        if is_behind or trial.system_attrs.get(LAST_EPOCH_ATTR) is not None:
            self._enter(trial_id, LAST_EPOCH_ATTR, epoch if is_behind else None)

    def _start_waiting(
        self, number: int, asked: FrozenTrial, user_attrs: dict[str, Any], attrs: dict[str, Any]
    ) -> None:
        optuna_id = self._optuna_id(number)
        for name, distribution in asked.distributions.items():
            value = distribution.to_internal_repr(asked.params[name])
            self._storage.set_trial_param(optuna_id, name, value, distribution)
        for name, attr in attrs.items():
            self._storage.set_trial_system_attr(optuna_id, name, attr)
        for name, attr in user_attrs.items():
            self._storage.set_trial_user_attr(optuna_id, name, attr)
        # Last: until this line it waits, and all of the above will be written again.
        self._storage.set_trial_state_values(optuna_id, TrialState.RUNNING)

    def _optuna_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._lost.is_set():
            raise RecordError(f"{self.file} belongs to another driver now")
        try:
            yield
        except OSError as error:
            self.trouble = RecordError(f"{self.file} cannot be written: {error.strerror}")
            raise self.trouble from error
