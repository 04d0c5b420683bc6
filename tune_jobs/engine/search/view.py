"""What the sampler is shown: `View`, a study in memory that follows the record."""

import copy
from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.goal import Goal, curve_of
from tune_jobs.engine.core.outcome import Kind, Outcome, outcome_of
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.search.internals import has_constraints, show_again

__all__ = ["Ending", "View"]

STUDY_NAME = "view"
VALUES_PER_PARAMETER = 3
LEAST_LEVEL = 8  # epochs

_Appearance = tuple[TrialState, float | None, Mapping[int, float]]  # state, value, curve


class Ending(NamedTuple):
    """How a trial ended.

    Attributes:
        outcome: Why.
        value: Its value; None: it has none.
        curve: Epoch -> score.
        metrics: What it reported with its value.
        config: What it was given, by flat name; what the study holds may be labels.
    """

    outcome: Outcome
    value: float | None
    curve: Mapping[int, float]
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]


@dataclass
class _Seen:
    """What is known of a trial.

    Attributes:
        trial_id: Its id in the rungs.
        rungs: Where its scores are: the sweep's own rungs, or those of other sweeps' trials.
        state: RUNNING, or the state in which it ended.
        value: Its value then.
        curve: Epoch -> score, then.
        has_crashed: Whether it is shown as the worst.
    """

    trial_id: str
    rungs: Rungs
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    has_crashed: bool = False


class _ViewStorage(InMemoryStorage):
    """Optuna's storage in memory, whose trials can be shown with another state than they have.

    Optuna does not let a finished trial change.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[int, FrozenTrial] = {}  # number -> as it is shown

    def show(self, number: int, shown: FrozenTrial) -> None:
        self._shown[number] = shown

    def actual(self, trial_id: int) -> FrozenTrial:
        """The trial itself, whatever it is shown as."""
        return super().get_trial(trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = self.actual(trial_id)
        return self._shown.get(trial.number, trial)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        waiting = (TrialState.WAITING,)
        if states == waiting:  # they are shown as they are, and Optuna's own method is quick
            return super().get_all_trials(study_id, deepcopy, waiting)
        trials = super().get_all_trials(study_id, deepcopy=False)
        shown = [self._shown.get(number, trial) for number, trial in enumerate(trials)]
        if states is not None:
            shown = [trial for trial in shown if trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown


class _Study(optuna.Study):
    """A study whose sampler may say that it has tried everything, outside of Optuna's own loop.

    Attributes:
        is_exhausted: Whether it has.
    """

    is_exhausted = False

    def stop(self) -> None:
        self.is_exhausted = True


class View:
    """The study in which the sampler is asked; the record on disk keeps the truth.

    Where trials are compared at rungs, few run to the end. A sampler that ranks those first learns
    from them alone, however bad they are. One that is given each trial's last value mixes values of
    the first epoch with values of the last. So all trials are shown at one rung, the level, as BOHB
    does (https://arxiv.org/abs/1807.01774): the highest rung that enough trials have reached, three
    for each parameter and as many as run in parallel; but none below the eighth epoch, or the last
    rung but one. Of 420 recorded configs, the best 1 % were on average at place 34 of 100 at the
    first epoch, 14 at the third, 9 at the ninth: what is learned from low rungs misleads.

    - A trial that has reached the level is COMPLETE with its value there, though it may still run;
      one that ended by itself before the level, with its own value.
    - A trial that has crashed or diverged is PRUNED without a value: TPE ranks it last. (As FAIL,
      which samplers leave out, 42 of 120 trials crashed where 21 did so.)
    - A trial that runs below the level is RUNNING: the constant liar counts it as bad.
    - A trial that ended or is paused below the level is FAIL, which samplers leave out.

    Without rungs, trials are shown as they ended.

    Args:
        goal: What is optimized.
        sampler: Any Optuna sampler.
        rungs: Which trial reached which rung; kept up to date by the scheduler.
        attrs: What the sampler has kept with the study.
        is_paused: Tells by Tune's id whether a trial is paused.

    Attributes:
        study: The study; its trials are those of other sweeps, then the record's in their order.
        storage: Its storage.
    """

    def __init__(
        self,
        goal: Goal,
        sampler: BaseSampler,
        rungs: Rungs,
        attrs: Mapping[str, Any] | None = None,
        is_paused: Callable[[str], bool] = lambda trial_id: False,
    ) -> None:
        self.storage = _ViewStorage()
        optuna.create_study(
            storage=self.storage, study_name=STUDY_NAME, direction=goal.direction, sampler=sampler
        )
        self.study = _Study(STUDY_NAME, self.storage, sampler=sampler)
        self._study_id = self.storage.get_study_id_from_name(STUDY_NAME)
        for name, value in (attrs or {}).items():
            self.storage.set_study_system_attr(self._study_id, name, value)
        self._rungs = rungs
        self._rungs_of_others = Rungs(goal, rungs.epochs)
        self._is_paused = is_paused
        self._level = self._find_least_level()
        self._num_params = 0
        self._seen: list[_Seen] = []  # by number
        self._numbers: dict[str, int] = {}
        self._unfinished: set[int] = set()
        self._paused: set[int] = set()  # those of them that are paused
        self._touched: set[int] = set()  # those that started or reported since they were shown
        self._uncovered: set[int] = set()  # those that had been shown as FAIL
        self._num_crashed = Counter[int]()  # rung -> trials that reached it and crashed

    def add(self, trial: FrozenTrial, trial_id: str) -> None:
        """Show a trial of the record, whose scores are in the rungs.

        Args:
            trial: The recorded trial.
            trial_id: Tune's id.
        """
        outcome = outcome_of(trial)
        is_last = outcome is not None and _ranks_last(outcome, trial.value)
        self._add(trial, trial_id, self._rungs, is_last)

    def add_other(self, trial: FrozenTrial) -> None:
        """Show a trial of another study, whose outcome says whether it has crashed."""
        outcome = outcome_of(trial)
        has_crashed = outcome is not None and outcome.is_crash
        trial_id = f"other {len(self._seen)}"
        self._rungs_of_others.restore(trial_id, trial.intermediate_values)
        self._add(trial, trial_id, self._rungs_of_others, has_crashed)

    def start(self, trial_id: str) -> FrozenTrial:
        """Take in that the trial which the sampler was asked for last has started.

        Returns:
            The trial with what the sampler gave it.
        """
        self._ensure_asked()
        return self._actual(self._begin(trial_id, self._rungs))

    def discard(self) -> None:
        """Hide the trial that the sampler was asked for last, which is not going to start."""
        self._ensure_asked()
        number = self._begin(f"discarded {len(self._seen)}", self._rungs_of_others)
        self._seen[number].state = TrialState.FAIL
        self._finish(number, has_crashed=False)

    def touch(self, trial_id: str) -> None:
        """Take in that a running trial has reported."""
        self._touched.add(self._numbers[trial_id])

    def end(self, trial_id: str, ending: Ending) -> dict[str, Any]:
        """Show how a trial ended.

        Args:
            trial_id: Tune's id.
            ending: How it ended. Its metrics are the trial's user attribute `metrics`, where a
                `constraints_func` finds them, and its config the attribute `config`.

        Returns:
            What the sampler keeps with the trial.

        Raises:
            Exception: What the sampler raises, or a function of the user's in it.
        """
        number, state, value = self._numbers[trial_id], ending.outcome.state, ending.value
        known = dict(self._actual(number).system_attrs)
        self.storage.set_trial_user_attr(self._optuna_id(number), "metrics", dict(ending.metrics))
        self._tell_sampler(number, state, value, ending.config)
        kept = self._actual(number).system_attrs
        seen = self._seen[number]
        seen.state, seen.value, seen.curve = state, value, ending.curve
        self._finish(number, _ranks_last(ending.outcome, value))
        return {name: attr for name, attr in kept.items() if known.get(name) != attr}

    def violations(
        self, trial_id: str, value: float, metrics: Mapping[str, Any], config: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the sampler's constraints say of a trial that has not ended; arguments and result as
        for `end`, but nothing if the sampler has no constraints."""
        if not has_constraints(self.study.sampler):
            return {}
        number = self._numbers[trial_id]
        self.storage.set_trial_user_attr(self._optuna_id(number), "metrics", dict(metrics))
        self._tell_sampler(number, TrialState.PRUNED, value, config)
        attrs = self._actual(number).system_attrs
        return {name: attr for name, attr in attrs.items() if name.startswith("constraints")}

    def attrs(self) -> dict[str, Any]:
        """What the sampler keeps with the study."""
        return self.storage.get_study_system_attrs(self._study_id)

    def refresh(self) -> None:
        """Show all trials in their present state; to be called before the sampler is asked."""
        if not self._rungs.epochs:
            return
        before, self._paused = self._paused, self._find_paused()
        has_moved = self._move_level(num_running=len(self._unfinished) - len(self._paused))
        changed = self._touched | (self._paused ^ before)
        for number in range(len(self._seen)) if has_moved else changed:
            self._show(number)
        self._touched.clear()
        show_again(self.study.sampler, self._uncovered)
        self._uncovered.clear()

    def remember_the_end(self) -> None:
        """Let a sampler that had tried everything find that out again."""
        if not isinstance(self.study.sampler, (BruteForceSampler, GridSampler)):
            return
        ended = [number for number, seen in enumerate(self._seen) if seen.state.is_finished()]
        if ended:
            last = self._seen[ended[-1]]
            self._tell_sampler(ended[-1], last.state, last.value, {})

    def _ensure_asked(self) -> None:
        """Make the trial, if the sampler failed before Optuna had made it."""
        if self.storage.get_n_trials(self._study_id) == len(self._seen):
            self.storage.create_new_trial(self._study_id)

    def _find_paused(self) -> set[int]:
        return {n for n in self._unfinished if self._is_paused(self._seen[n].trial_id)}

    def _find_least_level(self) -> int:
        """The lowest rung to learn from; 0: there are no rungs."""
        but_last = self._rungs.epochs[:-1] or self._rungs.epochs or [0]
        return next((rung for rung in but_last if rung >= LEAST_LEVEL), but_last[-1])

    def _move_level(self, num_running: int) -> bool:
        """Move up to the highest rung that enough trials have reached, and stay there, unless too
        many of them have crashed since."""
        per_parameters = VALUES_PER_PARAMETER * self._num_params
        num_enough = max(per_parameters, num_running, 1)
        enough = [rung for rung in self._rungs.epochs if self._num_values(rung) >= num_enough]
        before = self._level
        stays = self._num_values(before) >= per_parameters
        self._level = max([before if stays else self._find_least_level(), *enough])
        return self._level != before

    def _num_values(self, rung: int) -> int:
        """How many trials have a value to learn from at this rung or a higher one."""
        num_reached = self._rungs.num_reached(rung) + self._rungs_of_others.num_reached(rung)
        return num_reached - self._num_crashed[rung]

    def _add(self, trial: FrozenTrial, trial_id: str, rungs: Rungs, has_crashed: bool) -> None:
        template = create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            # the sampler's own
            system_attrs={k: v for k, v in trial.system_attrs.items() if "tune_jobs:" not in k},
        )
        self.storage.create_new_trial(self._study_id, template)
        number = self._begin(trial_id, rungs)
        if trial.state.is_finished():
            seen = self._seen[number]
            seen.state, seen.value, seen.curve = trial.state, trial.value, curve_of(trial)
            self._finish(number, has_crashed)

    def _begin(self, trial_id: str, rungs: Rungs) -> int:
        number = len(self._seen)
        self._seen.append(_Seen(trial_id, rungs))
        self._numbers[trial_id] = number
        self._num_params = max(len(self._actual(number).params), self._num_params)
        self._unfinished.add(number)
        self._touched.add(number)
        return number

    def _finish(self, number: int, has_crashed: bool) -> None:
        seen = self._seen[number]
        seen.has_crashed = has_crashed
        if has_crashed:
            highest = seen.rungs.highest(seen.trial_id) or 0
            self._num_crashed.update(rung for rung in self._rungs.epochs if rung <= highest)
        self._unfinished.discard(number)
        self._show(number)

    def _show(self, number: int) -> None:
        state, value, curve = self._appearance(self._seen[number], number in self._paused)
        shown, actual = self._shown(number), self._actual(number)
        same = (shown.state, shown.value, shown.system_attrs) == (state, value, actual.system_attrs)
        if same:
            return
        if shown.state == TrialState.FAIL:
            self._uncovered.add(number)
        # A copy, as Optuna's own storage makes one: samplers may hold the trial that was there.
        shown = copy.copy(actual)
        shown.state, shown.value, shown.intermediate_values = state, value, dict(curve)
        if state.is_finished():
            shown.datetime_complete = shown.datetime_complete or shown.datetime_start
        self.storage.show(number, shown)

    def _appearance(self, seen: _Seen, is_paused: bool) -> _Appearance:
        """State, value and curve that a trial is shown with."""
        if seen.has_crashed:
            return TrialState.PRUNED, None, {}
        value = seen.rungs.score_from(seen.trial_id, self._level)
        if value is not None:
            return TrialState.COMPLETE, value, {}
        if seen.state == TrialState.RUNNING and not is_paused:
            return TrialState.RUNNING, None, {}
        has_value = seen.value is not None or bool(seen.curve)
        if has_value and (not self._rungs.epochs or seen.state == TrialState.COMPLETE):
            return seen.state, seen.value, seen.curve
        return TrialState.FAIL, None, {}

    def _shown(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._optuna_id(number))

    def _actual(self, number: int) -> FrozenTrial:
        return self.storage.actual(self._optuna_id(number))

    def _optuna_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _tell_sampler(
        self, number: int, state: TrialState, value: float | None, config: Mapping[str, Any]
    ) -> None:
        values = None if value is None else [value]
        # A trial without a value has no metrics, of which a constraint may be.
        state = state if values else TrialState.FAIL
        told, sampler = copy.copy(self._actual(number)), self.study.sampler
        told.values = values
        told.user_attrs = {**told.user_attrs, "config": dict(config)}
        # Optuna's grid fails on a config that it has not given itself.
        is_foreign = isinstance(sampler, GridSampler) and "grid_id" not in told.system_attrs
        with suppress(KeyError) if is_foreign else nullcontext():
            sampler.after_trial(self.study, told, state, values)


def _ranks_last(outcome: Outcome, value: float | None) -> bool:
    """Whether a trial is shown as the worst: Optuna itself does so with one that was pruned before
    it reported anything."""
    return outcome.is_crash or (outcome.kind == Kind.PRUNED and value is None)
