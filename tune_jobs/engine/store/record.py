"""The record of a sweep: an Optuna study on disk, written before anything acts on it."""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.goal import Goal, epoch_of
from tune_jobs.engine.core.outcome import Blame, Failure
from tune_jobs.engine.core.settings import SettingsError
from tune_jobs.engine.store.study import STUDY_FILE, study_storage

__all__ = [
    "Record",
    "RecordError",
    "failure_in",
    "folder_name",
    "id_of",
    "is_failed",
    "is_started",
    "promoted_from",
    "reason_of",
    "results_of",
]

# System attributes are Optuna's place for what is not the user's: a dashboard does not list them.
RESULT = "tune_jobs:result:"
STOP = "tune_jobs:stop"
END = "tune_jobs:end"
PROMOTED = "tune_jobs:promoted"

# What Tune adds to every result for itself; `config/...` is in the trial's parameters.
TUNES_OWN = {"trial_id", "done", "should_checkpoint", "experiment_tag", "timesteps_total"}


class RecordError(OSError):
    """The record cannot be written."""


class Record:
    """What has happened in a sweep, trial by trial, in `study.log`.

    A trial holds its parameters and its curve, as any study does; the user attributes `trial_id`
    (Tune's) and, once it has ended, `reason` and perhaps `error`; and as system attributes each
    epoch's whole result, with the reason why the trial was stopped there, if it was, and the last
    rung from which it was promoted. An epoch that is trained again replaces what was there.

    Every entry is appended and flushed to the disk before the call returns.

    Args:
        folder: The folder that holds the file.
        study: The study in it.
        lost: Set once another driver has taken the sweep over; nothing is entered from then on.

    Attributes:
        file: Where it is kept.
        study: The study.
        trouble: What kept the record from being written; None: nothing.
    """

    def __init__(self, folder: Path, study: optuna.Study, lost: Event) -> None:
        self.file = folder / STUDY_FILE
        self._lost = lost
        self.study = study
        self.trouble: RecordError | None = None
        self._storage = study._storage
        trials = self.trials()
        self.num_trials = len(trials)
        self._ids = {id_of(t): t._trial_id for t in trials if is_started(t)}
        self._waiting = deque(t for t in trials if t.state == TrialState.WAITING)

    @classmethod
    def create(cls, folder: Path, name: str, goal: Goal, lost: Event) -> "Record":
        """Begin the record of a new sweep.

        A file that is there is of a driver that died before it had written a line.
        """
        (folder / STUDY_FILE).unlink(missing_ok=True)
        _remove_locks(folder)
        study = optuna.create_study(
            storage=study_storage(folder), study_name=name, direction=goal.direction
        )
        return cls(folder, study, lost)

    @classmethod
    def open(cls, folder: Path, lost: Event) -> "Record":
        """Go on with a record whose driver is gone; the caller has made sure that it is.

        Raises:
            SettingsError: The file is missing or damaged; it is left as it is.
        """
        file = folder / STUDY_FILE
        _repair(file)
        try:
            storage = study_storage(folder)
            (name,) = optuna.get_all_study_names(storage)
            return cls(folder, optuna.load_study(study_name=name, storage=storage), lost)
        except Exception as error:  # lines that are whole, but not what Optuna has written
            _refuse(file, f"{type(error).__name__}: {error}")

    @property
    def is_lost(self) -> bool:
        """Whether another driver has taken the sweep over."""
        return self._lost.is_set()

    @property
    def num_retries(self) -> int:
        """Trials that run a failed one again; they come on top of those that were asked for."""
        return sum("failed_trial" in trial.system_attrs for trial in self.trials())

    @property
    def num_waiting(self) -> int:
        """Trials that are to be tried first and have not been started."""
        return len(self._waiting)

    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def started(self) -> list[FrozenTrial]:
        """Those of them that have been started; the others wait."""
        return [trial for trial in self.trials() if is_started(trial)]

    def running(self) -> list[FrozenTrial]:
        """Those of them that have been started and have not ended."""
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def trial(self, trial_id: str) -> FrozenTrial:
        """The trial with Tune's id."""
        return self._storage.get_trial(self._ids[trial_id])

    def next_waiting(self) -> FrozenTrial | None:
        """The trial that is to be started next; None: there is none that waits."""
        return self._waiting[0] if self._waiting else None

    def enqueue(self, params: dict[str, Any], system_attrs: dict[str, Any] | None = None) -> None:
        """Put a config, or a part of one, into the queue of those that are tried first."""
        attrs = {"fixed_params": params, **(system_attrs or {})}
        with self._writing():
            self.study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=attrs))
        self._waiting.append(self.trials()[-1])
        self.num_trials += 1

    def start(self, trial_id: str, asked: FrozenTrial) -> int:
        """Enter a trial, in one piece: one that was half entered could not be gone on with.

        Args:
            trial_id: Tune's id.
            asked: What the sampler gave.

        Returns:
            Its number.
        """
        with self._writing():
            if self._waiting:
                waiting = self._waiting[0]
                optuna_id = self._start_waiting(trial_id, waiting, asked)
                self._waiting.popleft()
            else:
                template = create_trial(
                    state=TrialState.RUNNING,
                    params=asked.params,
                    distributions=asked.distributions,
                    user_attrs={"trial_id": trial_id},
                    system_attrs=asked.system_attrs,
                )
                optuna_id = self._storage.create_new_trial(self.study._study_id, template)
                self.num_trials += 1
        self._ids[trial_id] = optuna_id
        return self._storage.get_trial(optuna_id).number

    def report(
        self, trial_id: str, score: float, result: Mapping[str, Any], reason: str | None
    ) -> None:
        """Enter a result and what is about to be done about it.

        Args:
            trial_id: Tune's id.
            score: The value of the metric; enters the curve if it is finite.
            result: The whole result, flat.
            reason: Why the trial is stopped here; None: it goes on.
        """
        optuna_id, epoch = self._ids[trial_id], epoch_of(result)
        entry = _to_json(result)
        if reason is not None:
            entry[STOP] = str(reason)
        with self._writing():
            # First: it holds all there is, and `open` brings the curve to it.
            self._storage.set_trial_system_attr(optuna_id, f"{RESULT}{epoch:06d}", entry)
            if math.isfinite(score):
                self._storage.set_trial_intermediate_value(optuna_id, epoch, score)

    def promote(self, trial_id: str, rung: int) -> None:
        """Enter that a trial goes on from a rung."""
        with self._writing():
            self._storage.set_trial_system_attr(self._ids[trial_id], PROMOTED, rung)

    def end(
        self,
        trial_id: str,
        state: TrialState,
        reason: str,
        value: float | None,
        failure: Failure | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> FrozenTrial:
        """Enter the end of a trial.

        Args:
            trial_id: Tune's id.
            state: COMPLETE or PRUNED.
            reason: Why it ended.
            value: Its value.
            failure: What it died of, where it failed.
            system_attrs: What the sampler keeps with the trial.
        """
        optuna_id = self._ids[trial_id]
        entry = {"reason": str(reason)}
        if failure is not None:
            entry |= {"message": failure.message, "text": failure.text}
        with self._writing():
            # First, and in one piece: a trial that has this is ended on resume.
            self._storage.set_trial_system_attr(optuna_id, END, entry)
            for name, attr in (system_attrs or {}).items():
                self._storage.set_trial_system_attr(optuna_id, name, attr)
            self._storage.set_trial_user_attr(optuna_id, "reason", str(reason))
            if failure is not None:
                self._storage.set_trial_user_attr(optuna_id, "error", failure.message)
            values = None if value is None else [value]
            self._storage.set_trial_state_values(optuna_id, state, values)
        return self._storage.get_trial(optuna_id)

    def keep(self, study_attrs: Mapping[str, Any]) -> None:
        """Enter what a sampler keeps with the study."""
        known = self._storage.get_study_system_attrs(self.study._study_id)
        with self._writing():
            for name, value in study_attrs.items():
                if known.get(name) != value:
                    self._storage.set_study_system_attr(self.study._study_id, name, value)

    def kept(self) -> dict[str, Any]:
        """What has been entered with `keep`."""
        return self._storage.get_study_system_attrs(self.study._study_id)

    def mend_curves(self, metric: str) -> None:
        """Bring each running trial's curve to its results: the driver may have died between."""
        for trial in self.running():
            for epoch, result in results_of(trial).items():
                score = float(result[metric])
                if math.isfinite(score) and trial.intermediate_values.get(epoch) != score:
                    with self._writing():
                        self._storage.set_trial_intermediate_value(trial._trial_id, epoch, score)

    def _start_waiting(self, trial_id: str, waiting: FrozenTrial, asked: FrozenTrial) -> int:
        optuna_id = waiting._trial_id
        for name, distribution in asked.distributions.items():
            value = distribution.to_internal_repr(asked.params[name])
            self._storage.set_trial_param(optuna_id, name, value, distribution)
        for name, attr in asked.system_attrs.items():
            self._storage.set_trial_system_attr(optuna_id, name, attr)
        self._storage.set_trial_user_attr(optuna_id, "trial_id", trial_id)
        # Last: until this line it waits, and all of the above will be written again.
        self._storage.set_trial_state_values(optuna_id, TrialState.RUNNING)
        return optuna_id

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._lost.is_set():
            raise RecordError(f"{self.file} is another driver's now")
        try:
            yield
        except OSError as error:
            self.trouble = RecordError(f"{self.file} cannot be written: {error.strerror}")
            raise self.trouble from error


def folder_name(number: int) -> str:
    """The name of a trial's folder."""
    return f"trial_{number:04d}"


def id_of(trial: FrozenTrial) -> str:
    """Tune's id of a trial that has been started."""
    trial_id: str = trial.user_attrs["trial_id"]
    return trial_id


def is_started(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.WAITING


def is_failed(trial: FrozenTrial) -> bool:
    """Whether it died of an exception; in the study it is PRUNED, so that samplers heed it."""
    return failure_in(trial) is not None


def failure_in(trial: FrozenTrial) -> Failure | None:
    """What it died of; None: nothing."""
    end = trial.system_attrs.get(END, {})
    if "text" not in end:
        return None
    return Failure(end["reason"], Blame.TRIAL, end["message"], end["text"])


def reason_of(trial: FrozenTrial) -> str | None:
    """Why it ended, or must end; None: it goes on."""
    reason: str | None = trial.system_attrs.get(END, {}).get("reason")
    if reason is None:
        stops = (result[STOP] for result in results_of(trial).values() if STOP in result)
        reason = next(stops, None)
    return reason


def promoted_from(trial: FrozenTrial) -> int | None:
    """The last rung that it was promoted from; None: none."""
    rung: int | None = trial.system_attrs.get(PROMOTED)
    return rung


def results_of(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """Its results, epoch -> result, in order."""
    names = sorted(name for name in trial.system_attrs if name.startswith(RESULT))
    return {int(name.removeprefix(RESULT)): trial.system_attrs[name] for name in names}


def _to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, value in result.items():
        if name in TUNES_OWN or name.startswith("config/"):
            continue
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, float) and not math.isfinite(plain):
            plain = str(plain)  # JSON has no NaN, and a dashboard's browser insists on that
        if plain is None or isinstance(plain, (bool, int, float, str)):
            entry[name] = plain
    return entry


def _repair(file: Path) -> None:
    """Take away what the death of the last driver left behind in the file.

    Its last line, where it was not written to the end: nothing has acted on it. And Optuna's lock,
    which would be waited for, in any of its stages.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        _refuse(file, error.strerror or str(error))
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            _refuse(file, f"line {number} is damaged")
    if not whole:
        _refuse(file, "it is empty")
    try:
        if whole < len(content):
            with file.open("r+b") as stream:
                stream.truncate(whole)
        _remove_locks(file.parent)
    except OSError as error:
        _refuse(file, error.strerror or str(error))


def _remove_locks(folder: Path) -> None:
    """Optuna's, of a driver that is gone; one may be half released."""
    for lock in folder.glob(f"{STUDY_FILE}.lock*"):
        lock.unlink()


def _refuse(file: Path, reason: str) -> NoReturn:
    raise SettingsError(
        f"{file}, the record of the sweep, cannot be used: {reason}; nothing has been changed. "
        "Put back a copy of it, or start a new sweep with another --name."
    )
