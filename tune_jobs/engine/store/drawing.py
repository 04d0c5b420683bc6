"""What a define-by-run space asks for, found out by running it: `draw`, `draw_often`."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler

from tune_jobs.engine.core.define_by_run import SpaceTrial, run_space
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.space import DefineByRun

__all__ = ["Drawn", "draw", "draw_often"]

DRAWS = 50  # to see the branches that a space has


@dataclass
class Drawn:
    """What a space asked for and gave, by name.

    Attributes:
        asked: The distributions.
        held: What the study would hold.
        constants: What it returned.
        is_whole: Whether it came to its end.
        varying: The constants that differed between draws.
    """

    asked: dict[str, BaseDistribution] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    is_whole: bool = True
    varying: set[str] = field(default_factory=set)


def draw(define: DefineByRun, given: Mapping[str, Any]) -> Drawn:
    """Run a space once.

    Args:
        define: The function.
        given: Values that it gets when it asks for them; it is stopped at one that is not in the
            domain.
    """
    with _quiet() as study:
        return _draw(define, given, study, 0)


def draw_often(define: DefineByRun, given: Mapping[str, Any]) -> Drawn:
    """Run a space with random draws beside the values given; arguments as for `draw`."""
    seen = Drawn()
    with _quiet() as study:
        for number in range(DRAWS):
            drawn = _draw(define, given, study, number)
            seen.asked |= drawn.asked
            seen.held |= drawn.held
            for name in drawn.constants.keys() & seen.constants.keys():
                if readable(drawn.constants[name]) != readable(seen.constants[name]):
                    seen.varying.add(name)
            seen.constants |= drawn.constants
    return seen


def _draw(define: DefineByRun, given: Mapping[str, Any], study: optuna.Study, number: int) -> Drawn:
    trial = SpaceTrial(study.ask(), number, given)
    suggested = run_space(define, trial, [number])
    constants = {n: v for n, v in suggested.config.items() if n not in trial.values}
    held = {name: value for name, value in trial.held.items() if name in trial.values}
    return Drawn(dict(trial.asked), held, constants, suggested.outcome is None)


@contextmanager
def _quiet() -> Iterator[optuna.Study]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the function's own come when it is run in earnest
            yield optuna.create_study(sampler=RandomSampler(seed=0))
    finally:
        optuna.logging.set_verbosity(verbosity)
