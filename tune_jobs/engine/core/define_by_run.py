"""A define-by-run space, run for one trial: `run_space`."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from tune_jobs.engine.core.domains import domains_in, forgotten_in, spell
from tune_jobs.engine.core.internals import give
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.parameters import Choice, Number, Parameter, copied
from tune_jobs.engine.core.raised import outcome_of_raised
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.space import DefineByRun

__all__ = ["ATTEMPTS", "SpaceTrial", "Suggested", "check_note", "run_space", "seeds_of"]

ATTEMPTS = 10  # to draw a config that was not tried

# The user attributes in which the record holds what happens to a trial.
RECORDED = ("trial_id", "paused_at", "reason", "duration_s", "metrics", "error")


class SpaceTrial(optuna.Trial):
    """The trial that a define-by-run function is given.

    - Its number is that of the record; a view that has trials of another sweep counts otherwise.
    - Choices may be anything; the study holds labels, as of a dict of domains. `params` are the
      values that were suggested.
    - A value of the queue that is not in the domain raises, and is not used with a warning.

    Args:
        trial: What Optuna asks.
        number: Its number in the record.
        given: The values that it has from the queue.

    Attributes:
        asked: What it was asked for, by name.
        values: What it gave, by name.
        has_sampler_failed: Whether the sampler raised.
        is_misfit: Whether a value that it was given was not in the domain.
    """

    def __init__(self, trial: optuna.Trial, number: int, given: Mapping[str, Any]) -> None:
        vars(self).update(vars(trial))  # asked by Optuna already
        self.asked: dict[str, BaseDistribution] = {}
        self.values: dict[str, Any] = {}
        self.has_sampler_failed = self.is_misfit = False
        self._given = given
        self._number_in_record = number

    @property
    def number(self) -> int:
        return self._number_in_record

    @property
    def params(self) -> dict[str, Any]:
        return {name: copied(value) for name, value in self.values.items()}

    @property
    def held(self) -> dict[str, Any]:
        """What the study holds, by name."""
        return super().params

    def suggest_float(
        self,
        name: str,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
    ) -> float:
        parameter = Number(FloatDistribution(low, high, log=log, step=step))
        suggest = super().suggest_float
        value: float = self._suggest_as(
            name, parameter, lambda: suggest(name, low, high, step=step, log=log)
        )
        return value

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        parameter = Number(IntDistribution(low, high, log=log, step=step))
        suggest = super().suggest_int
        value: int = self._suggest_as(
            name, parameter, lambda: suggest(name, low, high, step=step, log=log)
        )
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        parameter = Choice.of(choices)
        suggest, held = super().suggest_categorical, parameter.distribution.choices
        return self._suggest_as(name, parameter, lambda: suggest(name, held))

    def set_user_attr(self, key: str, value: Any) -> None:
        check_note(key)
        super().set_user_attr(key, value)

    def _suggest_as(self, name: str, parameter: Parameter, suggest: Callable[[], Any]) -> Any:
        self.asked[name] = parameter.distribution
        if name in self._given:
            give(self, name, self._encode(name, parameter))
        try:
            value = parameter.decode(suggest())
        except Exception:
            self._check_others(name, parameter.distribution)
            self.has_sampler_failed = True
            raise
        self.values[name] = value
        return copied(value)

    def _encode(self, name: str, parameter: Parameter) -> Any:
        try:
            return parameter.encode(self._given[name])
        except ValueError:
            self.is_misfit = True
            raise ValueError(
                f"the config in the queue has {name} = {self._given[name]!r}, which is not in the "
                f"space: {parameter.text}"
            ) from None

    def _check_others(self, name: str, asked: BaseDistribution) -> None:
        """Say what Optuna means by a dynamic value space."""
        for trial in self.study.get_trials(deepcopy=False):
            other = trial.distributions.get(name, asked)
            try:
                check_distribution_compatibility(other, asked)
            except ValueError:
                raise ValueError(
                    f"{name!r} was asked for as {_spell(other)} before, and now as {_spell(asked)};"
                    " Optuna searches one domain under a name: give the two their own names, such "
                    f"as '{name}_1' and '{name}_2'."
                ) from None


@dataclass(frozen=True)
class Suggested:
    """What a space gave a trial.

    Attributes:
        config: What was suggested and returned; what was suggested so far if it ended there.
        outcome: Why the trial ended in its space; None: it is to be trained.
    """

    config: dict[str, Any]
    outcome: Outcome | None = None


def check_note(name: str) -> None:
    """Check that a user attribute which the user gives a trial is none that the record enters.

    Raises:
        ValueError: It is.
    """
    if name in RECORDED:
        raise ValueError(
            f"the user attribute {name!r} is one that the sweep enters itself (they are "
            f"{', '.join(RECORDED)}); give yours another name"
        )


def seeds_of(seed: int, number: int, attempt: int = 0) -> list[int]:
    """What the draws of a trial depend on.

    Args:
        seed: The sweep's.
        number: The trial's.
        attempt: How often the trial was drawn before, with a config that had been tried.
    """
    return [seed, number, attempt] if attempt else [seed, number]


def run_space(define: DefineByRun, trial: SpaceTrial, seeds: Sequence[int]) -> Suggested:
    """Run a define-by-run function.

    Args:
        define: The function.
        trial: What it is given.
        seeds: Of Python's and NumPy's global generators while the function runs.
    """
    try:
        with _seeded(seeds):
            returned = define(trial)
        return Suggested({**trial.values, **_checked(returned)})
    except optuna.TrialPruned as error:
        return Suggested(trial.values, Outcome.of(Kind.PRUNED, str(error)))
    except (Exception, SystemExit) as error:
        return Suggested(trial.values, outcome_of_raised(error))


def _checked(returned: Any) -> dict[str, Any]:
    """The constants that a function returned."""
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"the space returned {readable(returned)!r}; it must return None or a dict of constants"
        )
    for key, value in returned.items():
        if not isinstance(key, str):
            raise TypeError(f"the space returned the key {key!r}, which is no text")
        if (found := next(domains_in(value), None)) is not None:
            raise TypeError(
                f"the space returned {spell(found)} as {key!r}; suggest it with trial.suggest_..."
            )
        if (called := forgotten_in(value)) is not None:
            raise TypeError(
                f"the space returned a function of Tune as {key!r}, {called}; suggest it with "
                "trial.suggest_..."
            )
    return {key: copied(value) for key, value in returned.items()}


@contextmanager
def _seeded(seeds: Sequence[int]) -> Iterator[None]:
    """Seed the global generators of Python and NumPy, and restore them."""
    states = random.getstate(), np.random.get_state()
    one, other = np.random.SeedSequence(list(seeds)).generate_state(2)
    random.seed(int(one))
    np.random.seed(int(other))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _spell(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {list(distribution.choices)}"
    return str(distribution)
