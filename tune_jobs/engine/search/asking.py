"""Asks the sampler, and the search space, what a trial is to try: `DictAsker`, `DefineAsker`."""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BruteForceSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.define_by_run import (
    ATTEMPTS,
    SpaceTrial,
    Suggested,
    check_note,
    run_space,
    seeds_of,
)
from tune_jobs.engine.core.parameters import Number, send
from tune_jobs.engine.core.raised import outcome_of_raised
from tune_jobs.engine.core.space import DefineByRun, SearchSpace
from tune_jobs.engine.search.finite import Tried
from tune_jobs.engine.search.samplers import reseed
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.configs import CONFIG_ATTR
from tune_jobs.engine.store.entries import has_ended_in_space

__all__ = ["Asker", "make_asker"]


def make_asker(space: SearchSpace, view: View, seed: int) -> "Asker":
    """What asks for the trials of a sweep.

    Args:
        space: What is searched.
        view: What the sampler is shown.
        seed: The sweep's.
    """
    kind = DictAsker if space.define is None else DefineAsker
    return kind(space, view, seed)


class Asker(ABC):
    """Asks what a trial is to try. What was tried is drawn again, where that can be seen.

    Each draw depends on the seed of the sweep, the trial's number, and how often it was drawn.

    Args:
        space: What is searched.
        view: What the sampler is shown.
        seed: The sweep's.
    """

    def __init__(self, space: SearchSpace, view: View, seed: int) -> None:
        self._space, self._view, self._seed = space, view, seed

    @abstractmethod
    def add(self, trial: FrozenTrial) -> None:
        """Take in a trial of the sweep that has started."""

    @abstractmethod
    def ask(self, number: int) -> Suggested | None:
        """Ask for a new trial, which is the view's last one then.

        Args:
            number: Its number in the record.

        Returns:
            What was suggested; None: everything has been tried.
        """

    def ask_waiting(self, number: int, waiting: FrozenTrial) -> Suggested:
        """Ask for a trial of the queue, whether it was tried or not.

        Args:
            number: Its number in the record.
            waiting: The trial, as it waits.
        """
        try:
            _check_notes(waiting)
        except ValueError as error:
            return Suggested({}, outcome_of_raised(error))
        return self._ask_waiting(number, waiting)

    @abstractmethod
    def _ask_waiting(self, number: int, waiting: FrozenTrial) -> Suggested:
        """Ask for a trial of the queue whose notes are in order."""

    def _ask_study(
        self, number: int, attempt: int, fixed: Mapping[str, Any], waiting: FrozenTrial | None
    ) -> optuna.Trial:
        study = self._view.study
        if fixed or waiting is not None:
            notes = None if waiting is None else waiting.user_attrs
            study.enqueue_trial(dict(fixed), notes)
        reseed(study.sampler, self._seed, number, attempt)
        self._view.refresh()
        return study.ask(self._space.searched if self._space.define is None else None)  # type: ignore[arg-type]

    def _seeds(self, number: int, attempt: int) -> list[int]:
        return seeds_of(self._seed, number, attempt)


class DictAsker(Asker):
    """Asks for the parameters of a dict of domains."""

    def __init__(self, space: SearchSpace, view: View, seed: int) -> None:
        super().__init__(space, view, seed)
        self._tried = Tried(space)

    def add(self, trial: FrozenTrial) -> None:
        self._tried.add(trial.params)

    def ask(self, number: int) -> Suggested | None:
        if self._tried.has_all:
            return None
        point = self._tried.next_point({})
        for attempt in range(ATTEMPTS):
            suggested, params = self._ask(number, attempt, point)
            if suggested.outcome is not None or not self._tried.has(params):
                return suggested
            self._view.discard()
        picked = self._tried.pick(self._seeds(number, ATTEMPTS), point)
        return self._ask(number, ATTEMPTS, picked)[0]

    def _ask_waiting(self, number: int, waiting: FrozenTrial) -> Suggested:
        try:
            fixed = self._space.encode(waiting.system_attrs.get("fixed_params", {}))
        except ValueError as error:
            return Suggested({}, outcome_of_raised(ValueError(f"the config in the queue {error}")))
        fixed = {**self._tried.next_point(fixed), **fixed}
        return self._ask(number, 0, fixed, waiting)[0]

    def _ask(
        self,
        number: int,
        attempt: int,
        fixed: Mapping[str, Any],
        waiting: FrozenTrial | None = None,
    ) -> tuple[Suggested, dict[str, Any]]:
        try:
            params = self._ask_study(number, attempt, fixed, waiting).params
            return _sendable(Suggested(self._space.decode(params))), params
        except Exception as error:  # the sampler's
            return Suggested({}, outcome_of_raised(error)), {}


class DefineAsker(Asker):
    """Asks a define-by-run function."""

    def __init__(self, space: SearchSpace, view: View, seed: int) -> None:
        super().__init__(space, view, seed)
        assert space.define is not None
        self._define: DefineByRun = space.define
        self._trials: list[FrozenTrial] = []
        self._tried: set[str] = set()

    def add(self, trial: FrozenTrial) -> None:
        has_nothing = has_ended_in_space(trial) and not trial.params  # it is no config
        if not has_nothing and all(map(_is_finite, trial.distributions.values())):
            self._trials.append(trial)
            self._tried.add(_key(trial.params))

    def ask(self, number: int) -> Suggested | None:
        for attempt in range(ATTEMPTS):
            suggested, trial = self._ask(number, attempt, {})
            if not self._is_tried(trial):
                return suggested
            self._view.discard()
        untried = self._find_untried(number)
        return None if untried is None else self._ask(number, ATTEMPTS, untried)[0]

    def _ask_waiting(self, number: int, waiting: FrozenTrial) -> Suggested:
        """What the config leaves out is drawn until the values that it has fit what is drawn."""
        fixed = waiting.system_attrs.get("fixed_params", {})
        for attempt in range(ATTEMPTS):
            suggested, trial = self._ask(number, attempt, fixed, waiting)
            if trial is None or not trial.is_misfit or trial.held.keys() <= fixed.keys():
                return suggested
            self._view.discard()
        return self._ask(number, ATTEMPTS, fixed, waiting)[0]

    def _ask(
        self,
        number: int,
        attempt: int,
        fixed: Mapping[str, Any],
        waiting: FrozenTrial | None = None,
    ) -> tuple[Suggested, SpaceTrial | None]:
        try:
            asked = self._ask_study(number, attempt, fixed, waiting)
        except Exception as error:  # the sampler's
            return Suggested({}, outcome_of_raised(error)), None
        trial = SpaceTrial(asked, number, fixed)
        seeds = self._seeds(number, attempt)
        return _sendable(run_space(self._define, trial, seeds)), trial

    def _is_tried(self, trial: SpaceTrial | None) -> bool:
        if trial is None or trial.has_sampler_failed:
            return False
        if not all(map(_is_finite, trial.asked.values())):
            return False
        return _key(trial.held) in self._tried

    def _find_untried(self, number: int) -> dict[str, Any] | None:
        """Params that were not tried, by Optuna's own search of everything; None: there are none.

        It does not know how many there are before it has tried them. It raises where it comes to a
        parameter that has infinitely many values; from there on, the sampler draws.
        """
        seeds = self._seeds(number, ATTEMPTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study = optuna.create_study(sampler=BruteForceSampler(seed=sum(seeds)))
        study.add_trials([_complete(trial) for trial in self._trials])
        trial = SpaceTrial(study.ask(), number, {})
        run_space(self._define, trial, seeds)
        return None if self._is_tried(trial) else trial.held


def _check_notes(waiting: FrozenTrial) -> None:
    has_begun = CONFIG_ATTR in waiting.system_attrs  # a driver died while it entered the start
    for name in waiting.user_attrs:
        if not (has_begun and name == "trial_id"):
            check_note(name)


def _sendable(suggested: Suggested) -> Suggested:
    """The same, or a failure: what cannot be sent reaches no trial and no record."""
    try:
        send(suggested.config)
    except Exception as error:
        return Suggested({}, outcome_of_raised(error))
    return suggested


def _key(params: Mapping[str, Any]) -> str:
    """What a trial asked for; what its space returned may differ by nothing but its number."""
    return json.dumps(params, sort_keys=True)


def _is_finite(distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return True
    return Number(distribution).size is not None  # type: ignore[arg-type]


def _complete(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE, value=0.0, params=trial.params, distributions=trial.distributions
    )
