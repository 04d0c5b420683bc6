"""What the sampler is shown: `View`, a study in memory that is kept up with the record."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Failure, Reason
from tune_jobs.engine.search.asha import rung_at
from tune_jobs.engine.store.record import failure_in, reason_of

__all__ = ["View", "has_crashed", "reseed"]

Part = TypeVar("Part")

VALUES_PER_PARAMETER = 3
LEAST_LEVEL = 8  # epochs


@dataclass
class _Seen:
    """What is known of a trial.

    Attributes:
        trial_id: Tune's id; None: it is of another sweep.
        at_rungs: Rung -> the epoch that has reached it, and its value.
        state: RUNNING, or the state in which it ended.
        value: Its value then.
        curve: Epoch -> value, then.
        has_crashed: Whether it is shown as the worst.
    """

    trial_id: str | None
    at_rungs: dict[int, tuple[int, float]] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    has_crashed: bool = False


class View:
    """The study in which the sampler is asked; the record on the disk stays as it is.

    Where trials are judged at rungs, those that ran to the end are few, and a sampler that ranks
    them first learns from them alone, however bad they are; told each trial's last value, it mixes
    values of the first epoch with values of the last. So all are shown at one rung, as BOHB does
    (https://arxiv.org/abs/1807.01774): the highest that enough trials have reached, three for each
    parameter and as many as run side by side; but none below the eighth epoch, or the last rung but
    one. Of 420 recorded configs the best 1 % were on average the 34th in a hundred at the first
    epoch, the 14th at the third, the 9th at the ninth: what is learnt from low rungs leads astray.

    - A trial that has reached that rung is COMPLETE with its value there, though it may still run;
      one that ended by itself before it, with its own.
    - One that has crashed or diverged is PRUNED without a value: TPE ranks it last. (As FAIL,
      which samplers leave out, 42 of 120 trials crashed where 21 did so.)
    - One that runs below that rung is RUNNING: the constant liar counts it as bad.
    - One that ended or waits below that rung is FAIL, which samplers leave out.

    Without rungs, trials are shown as they ended.

    Args:
        goal: What is optimised.
        sampler: Any Optuna sampler.
        kept: What the sampler has kept with the study.
        rungs: The milestones at which trials are compared.
        has_to_wait: Whether a trial, by Tune's id, is paused.

    Attributes:
        study: The study; its trials are those of other sweeps, then the record's in their order.
    """

    def __init__(
        self,
        goal: Goal,
        sampler: BaseSampler,
        kept: Mapping[str, Any],
        rungs: Iterable[int] = (),
        has_to_wait: Callable[[str], bool] = lambda trial_id: False,
    ) -> None:
        self.study = optuna.create_study(direction=goal.direction, sampler=sampler)
        self._storage: Any = self.study._storage
        for name, value in kept.items():
            self._storage.set_study_system_attr(self.study._study_id, name, value)
        self._rungs = sorted(rungs)
        self._has_to_wait = has_to_wait
        self._level = self._find_least_level()
        self._num_params = 0
        self._seen: list[_Seen] = []  # by number
        self._numbers: dict[str, int] = {}
        self._unfinished: set[int] = set()
        self._waiting: set[int] = set()  # those of them that wait
        self._noted: set[int] = set()  # those that have started or reported since they were shown
        self._uncovered: set[int] = set()  # those that had been shown as FAIL
        self._num_at = Counter[int]()  # rung -> how many have reached it

    def add(self, trial: FrozenTrial, trial_id: str | None = None) -> None:
        """Show a trial that an earlier driver, or another sweep, has left.

        One of another sweep that has no curve has crashed.
        """
        template = create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            # the sampler's own
            system_attrs={k: v for k, v in trial.system_attrs.items() if "tune_jobs:" not in k},
        )
        self._storage.create_new_trial(self.study._study_id, template)
        number = self._begin(trial_id, len(trial.params))
        curve = trial.intermediate_values
        self._note(number, curve)
        if trial.state.is_finished():
            crashed = has_crashed(reason_of(trial), failure_in(trial))
            crashed |= trial_id is None and not curve
            self._finish(number, trial.state, trial.value, curve, crashed)

    def start(self, trial_id: str, asked: FrozenTrial) -> None:
        """Take in that a trial which the sampler has been asked for has started."""
        self._begin(trial_id, len(asked.params))

    def report(self, trial_id: str, epoch: int, value: float) -> None:
        """Take in what a running trial has reported."""
        number = self._numbers[trial_id]
        self._note(number, {epoch: value})
        self._noted.add(number)

    def end(
        self,
        trial_id: str,
        state: TrialState,
        value: float | None,
        curve: Mapping[int, float],
        has_crashed: bool,
    ) -> dict[str, Any]:
        """Show how a trial ended.

        Args:
            trial_id: Tune's id.
            state: COMPLETE or PRUNED.
            value: Its value.
            curve: Epoch -> value.
            has_crashed: Whether it is shown as the worst.

        Returns:
            What the sampler keeps with it.
        """
        number = self._numbers[trial_id]
        known = dict(self._shown(number).system_attrs)
        self._tell_sampler(number, state, value)
        self._note(number, curve)
        self._finish(number, state, value, curve, has_crashed)
        kept = self._shown(number).system_attrs
        return {name: attr for name, attr in kept.items() if known.get(name) != attr}

    def refresh(self) -> None:
        """Show all trials as they are now; to be called before the sampler is asked."""
        if not self._rungs:
            return
        waited, self._waiting = self._waiting, self._find_waiting()
        has_moved = self._move_level(num_running=len(self._unfinished) - len(self._waiting))
        changed = self._noted | (self._waiting ^ waited)
        for number in range(len(self._seen)) if has_moved else changed:
            self._show(number)
        self._noted.clear()
        self._let_look_again()

    def recall_the_end(self) -> None:
        """Let a sampler that had tried everything find that out again."""
        ended = [number for number, seen in enumerate(self._seen) if seen.state.is_finished()]
        if ended:
            last = self._seen[ended[-1]]
            self._tell_sampler(ended[-1], last.state, last.value)

    def _find_waiting(self) -> set[int]:
        return {n for n in self._unfinished if self._has_to_wait(str(self._seen[n].trial_id))}

    def _find_least_level(self) -> int:
        """The lowest rung to learn from; 0: there are no rungs."""
        but_last = self._rungs[:-1] or self._rungs or [0]
        return next((rung for rung in but_last if rung >= LEAST_LEVEL), but_last[-1])

    def _move_level(self, num_running: int) -> bool:
        """Go up to the highest rung that enough trials have reached, and stay there, unless too
        many of them have crashed since."""
        per_parameters = VALUES_PER_PARAMETER * self._num_params
        num_enough = max(per_parameters, num_running, 1)
        enough = [rung for rung in self._rungs if self._num_at[rung] >= num_enough]
        before = self._level
        stays = self._num_at[before] >= per_parameters
        self._level = max([before if stays else self._find_least_level(), *enough])
        return self._level != before

    def _let_look_again(self) -> None:
        """Let samplers see trials that had been hidden.

        Optuna looks at the parameters of each trial until it has ended, and one that is shown as
        FAIL has ended; it has them in a search space that it caches.
        """
        for space in _parts(self.study.sampler, IntersectionSearchSpace):
            space._cached_trial_number = min([space._cached_trial_number, *self._uncovered])
        self._uncovered.clear()

    def _begin(self, trial_id: str | None, num_params: int) -> int:
        number = len(self._seen)
        self._seen.append(_Seen(trial_id))
        if trial_id is not None:
            self._numbers[trial_id] = number
        self._num_params = max(num_params, self._num_params)
        self._unfinished.add(number)
        self._noted.add(number)
        return number

    def _note(self, number: int, curve: Mapping[int, float]) -> None:
        """Take in values at rungs: of the first epoch that is not before the rung."""
        at_rungs = self._seen[number].at_rungs
        for epoch, value in curve.items():
            rung = rung_at(self._rungs, epoch)
            if rung is None or epoch > at_rungs.get(rung, (epoch, value))[0]:
                continue
            highest = max(at_rungs, default=0)
            self._num_at.update(r for r in self._rungs if highest < r <= rung)
            at_rungs[rung] = (epoch, value)

    def _finish(
        self,
        number: int,
        state: TrialState,
        value: float | None,
        curve: Mapping[int, float],
        has_crashed: bool,
    ) -> None:
        seen = self._seen[number]
        seen.state, seen.value, seen.curve = state, value, curve
        seen.has_crashed = has_crashed
        if has_crashed:  # it has no value to learn from
            highest = max(seen.at_rungs, default=0)
            self._num_at.subtract(rung for rung in self._rungs if rung <= highest)
        self._unfinished.discard(number)
        self._show(number)

    def _show(self, number: int) -> None:
        state, value, curve = self._face(self._seen[number], number in self._waiting)
        shown = self._shown(number)
        if (shown.state, shown.value) == (state, value):
            return
        if shown.state == TrialState.FAIL:
            self._uncovered.add(number)
        # As Optuna's own storage does it: samplers may hold the one that was there.
        shown = copy.copy(shown)
        shown.state, shown.value, shown.intermediate_values = state, value, dict(curve)
        if state.is_finished():
            shown.datetime_complete = shown.datetime_complete or shown.datetime_start
        self._storage._set_trial(shown._trial_id, shown)

    def _face(
        self, seen: _Seen, is_waiting: bool
    ) -> tuple[TrialState, float | None, Mapping[int, float]]:
        """State, value and curve that a trial is shown with."""
        if seen.has_crashed:
            return TrialState.PRUNED, None, {}
        # Where epochs are not validated one by one, the level's rung may have been passed by.
        reached = min((rung for rung in seen.at_rungs if rung >= self._level), default=None)
        if reached is not None:
            return TrialState.COMPLETE, seen.at_rungs[reached][1], {}
        if seen.state == TrialState.RUNNING and not is_waiting:
            return TrialState.RUNNING, None, {}
        if seen.curve and (not self._rungs or seen.state == TrialState.COMPLETE):
            return seen.state, seen.value, seen.curve
        return TrialState.FAIL, None, {}

    def _shown(self, number: int) -> FrozenTrial:
        trial: FrozenTrial = self._storage._studies[self.study._study_id].trials[number]
        return trial

    def _tell_sampler(self, number: int, state: TrialState, value: float | None) -> None:
        values = None if value is None else [value]
        # KeyError: Optuna's grid stumbles over a config that it has not given itself.
        with _stop_allowed(self.study), suppress(KeyError):
            self.study.sampler.after_trial(self.study, self._shown(number), state, values)


def has_crashed(reason: str | None, failure: Failure | None) -> bool:
    """Whether a trial that ended so is shown as the worst.

    Optuna ranks what was pruned by the length of its curve first, so that crashes after good epochs
    would lead it astray.
    """
    return failure is not None or reason == Reason.NAN


def reseed(sampler: BaseSampler, seed: int, number: int) -> None:
    """Draw what comes next from the seed and the trial's number alone.

    So there is no random state to be stored, and a sweep that was killed goes on as if it had not
    been. A sampler that is not Optuna's keeps its own ways.
    """
    (state,) = np.random.SeedSequence([seed, number]).generate_state(1)
    for part in _parts(sampler, LazyRandomState):
        part.rng.seed(int(state))


def _parts(sampler: BaseSampler, kind: type[Part]) -> Iterator[Part]:
    """What a sampler, and those that it is made of, have of a kind."""
    for part in vars(sampler).values():
        if isinstance(part, kind):
            yield part
        elif isinstance(part, BaseSampler):
            yield from _parts(part, kind)


@contextmanager
def _stop_allowed(study: optuna.Study) -> Iterator[None]:
    """Let a sampler that has tried everything call `Study.stop`; Optuna allows it in its own loop
    alone."""
    study._thread_local.in_optimize_loop = True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False
