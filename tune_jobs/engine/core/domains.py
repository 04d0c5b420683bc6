"""Tune's domains as parameters: `convert_domain`."""

import functools
import inspect
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search import sample

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.parameters import Choice, Grid, Number, Parameter
from tune_jobs.engine.core.readable import ordered, readable

__all__ = [
    "convert_domain",
    "domains_in",
    "fields_of",
    "forgotten_in",
    "grid_values",
    "has_domain",
    "is_domain",
    "rule_of",
    "spell",
]

WIDTH = 3  # standard deviations to either side of a normal distribution's mean
MOST_PARTS = 50_000  # of a value that is looked through
MANY_STEPS = 2**53  # a float cannot tell more apart


def is_domain(value: Any) -> bool:
    """Whether a value of a space is searched."""
    return isinstance(value, (sample.Domain, BaseDistribution)) or grid_values(value) is not None


def grid_values(value: Any) -> Any:
    """The values of `tune.grid_search`, as they were given; None: it is something else."""
    if isinstance(value, sample.Categorical) and value.is_grid():
        return value.categories
    if type(value) is dict and value.keys() == {"grid_search"}:
        return value["grid_search"]
    return None


def domains_in(value: Any) -> Iterator[Any]:
    """The domains inside a value, on any level."""
    return filter(is_domain, _parts(value))


def has_domain(value: Any) -> bool:
    """Whether there is a domain inside a value, or it is one."""
    return next((True for _ in domains_in(value)), False)


def forgotten_in(value: Any) -> str | None:
    """A function of Tune's inside a value, as it is to be called; None: there is none."""
    own = sample.__name__
    found = (
        f"tune.{part.__name__}({', '.join(inspect.signature(part).parameters)})"
        for part in _parts(value)
        if isinstance(part, FunctionType) and part.__module__ == own
    )
    return next(found, None)


def fields_of(value: Any) -> dict[str, Any]:
    """What an object holds by name; {} for modules, classes, functions, arrays, and the objects of
    Ray and Optuna, which have domains of their own."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    has_none = isinstance(value, (type, ModuleType, FunctionType)) or hasattr(value, "dtype")
    if has_none or type(value).__module__.partition(".")[0] in ("ray", "optuna"):
        return {}
    held = getattr(value, "__dict__", {})
    return held if type(held) is dict else {}


def convert_domain(name: str, domain: Any) -> Parameter:
    """A domain as a parameter.

    Args:
        name: The parameter's name, for messages.
        domain: Something for which `is_domain` holds, but not `tune.sample_from`.

    Raises:
        SettingsError: It cannot be searched.
    """
    values = grid_values(domain)
    if values is not None:
        return Choice.of(_listed(name, "grid_search", values))
    if isinstance(domain, (sample.Categorical, CategoricalDistribution)):
        return Choice.of(_listed(name, "choice", _choices(domain)))
    if isinstance(domain, (FloatDistribution, IntDistribution)):
        return Number(domain)
    if isinstance(domain, (sample.Float, sample.Integer)):
        return _number(name, domain)
    raise SettingsError(
        f"{name!r} is {type(domain).__name__}, which cannot be searched; give tune.uniform, "
        "tune.choice or another domain of Tune."
    )


def rule_of(domain: Any) -> tuple[Any, float | None]:
    """The sampler of one of Tune's domains, and the step of its grid; None: it has no grid."""
    rule, step = domain.get_sampler(), None
    while isinstance(rule, sample.Quantized):
        step, rule = step or rule.q, rule.sampler
    return rule, step


def spell(domain: Any) -> str:
    """A domain as a user writes it."""
    values = grid_values(domain)
    if values is not None:
        return f"tune.grid_search({readable(values)!r})"
    if isinstance(domain, sample.Categorical):
        return f"tune.choice({readable(domain.categories)!r})"
    if isinstance(domain, (sample.Float, sample.Integer)):
        return _spell_number(domain)
    if isinstance(domain, sample.Function):
        return "tune.sample_from"
    return str(domain) if isinstance(domain, BaseDistribution) else type(domain).__name__


def _spell_number(domain: Any) -> str:
    rule, step = rule_of(domain)
    log = "log" if isinstance(rule, sample.LogUniform) else ""
    name = f"{log}randint" if isinstance(domain, sample.Integer) else f"{log}uniform"
    given = [domain.lower, domain.upper]
    if isinstance(rule, sample.Normal):
        name, given = "randn", [rule.mean, rule.sd]
    texts = [f"{readable(value)}" for value in (given if step is None else [*given, step])]
    return f"tune.{'' if step is None else 'q'}{name}({', '.join(texts)})"


def _parts(value: Any) -> Iterator[Any]:
    """A value and what it holds on any level, from the outside in."""
    waiting, seen = deque([value]), set[int]()  # a list may hold itself
    while waiting and len(seen) < MOST_PARTS:
        part = waiting.popleft()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if not is_domain(part):
            waiting.extend(islice(_items(part), MOST_PARTS))


def _items(value: Any) -> Iterable[Any]:
    try:
        if isinstance(value, Mapping):
            return list(value.values())
        if isinstance(value, np.ndarray):
            return value.flat if value.dtype == object else ()
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return value
        if isinstance(value, functools.partial):
            return [value.func, *value.args, *value.keywords.values()]
        return list(fields_of(value).values())
    except Exception:  # of a user's own class
        return ()


def _choices(domain: Any) -> Iterable[Any]:
    is_tunes = isinstance(domain, sample.Categorical)
    choices: Iterable[Any] = domain.categories if is_tunes else domain.choices
    return choices


def _listed(name: str, kind: str, values: Any) -> list[Any]:
    is_listed = isinstance(values, Iterable) and not isinstance(values, (str, bytes, dict))
    listed = ordered(values) if is_listed else []
    if not listed:
        raise SettingsError(
            f"{name!r} must have a list of values to choose from, got tune.{kind}({values!r})."
        )
    return listed


def _number(name: str, domain: Any) -> Number:
    rule, step = rule_of(domain)
    if step is not None:
        _check(name, domain, "step", step)
        if not readable(step) > 0:
            raise SettingsError(f"{name!r} must have a step above 0, got {spell(domain)}.")
    if isinstance(domain, sample.Integer):
        number = _integer(name, domain, rule, step)
    elif isinstance(rule, sample.Normal):
        number = _normal(name, domain, rule, step)
    else:
        number = _float(name, domain, rule, step)
    return number


def _float(name: str, domain: Any, rule: Any, step: Any) -> Number:
    low, high = (float(bound) for bound in _bounds(name, domain))
    is_log = isinstance(rule, sample.LogUniform)
    if step is None:
        return Number(_distribution(name, domain, low, high, is_log))
    grid = _grid(name, domain, (low, high), float(readable(step)))
    if is_log:
        return Number(_distribution(name, domain, low, high, is_log), grid)
    return Number(FloatDistribution(grid[0], grid[len(grid) - 1], step=grid.step), grid)


def _normal(name: str, domain: Any, rule: Any, step: Any) -> Number:
    mean, sd = (_check(name, domain, part, getattr(rule, part)) for part in ("mean", "sd"))
    low, high = float(mean - WIDTH * sd), float(mean + WIDTH * sd)
    if step is None:
        return Number(_distribution(name, domain, low, high, is_log=False))
    grid = _grid(name, domain, (low, high), float(readable(step)))
    return Number(FloatDistribution(grid[0], grid[len(grid) - 1], step=grid.step), grid)


def _integer(name: str, domain: Any, rule: Any, step: Any) -> Number:
    bounds = [_whole(name, domain, bound) for bound in _bounds(name, domain)]
    q = 1 if step is None else _whole(name, domain, readable(step))
    # As Tune has it: the upper bound is exclusive where there is no grid.
    low, high = bounds[0], bounds[1] - (q == 1)
    if low > high:
        raise _empty(name, domain, "; its upper bound is exclusive" if q == 1 else "")
    is_log = isinstance(rule, sample.LogUniform)
    if is_log and low < 1:
        raise SettingsError(f"{name!r} must have bounds above 0, got {spell(domain)}.")
    if q == 1:
        return Number(IntDistribution(low, high, log=is_log))
    grid = _grid(name, domain, (low, high), q)
    if is_log:
        return Number(IntDistribution(low, high, log=True), grid)
    return Number(IntDistribution(int(grid[0]), int(grid[len(grid) - 1]), step=q))


def _distribution(
    name: str, domain: Any, low: float, high: float, is_log: bool
) -> FloatDistribution:
    if low > high:
        raise _empty(name, domain)
    if is_log and low <= 0:
        raise SettingsError(f"{name!r} must have bounds above 0, got {spell(domain)}.")
    return FloatDistribution(low, high, log=is_log)


def _grid(name: str, domain: Any, bounds: tuple[float, float], step: float) -> Grid:
    """The multiples of the step within the bounds."""
    low, high = (Decimal(str(bound)) / Decimal(str(step)) for bound in bounds)
    if not max(abs(low), abs(high)) < MANY_STEPS:
        raise SettingsError(f"{name!r} has more steps than can be counted: {spell(domain)}.")
    # A bound such as 0.1 + 0.2 is meant to be on the grid.
    first, last = math.ceil(low - Decimal("1e-9")), math.floor(high + Decimal("1e-9"))
    if first > last:
        raise _empty(name, domain)
    if isinstance(step, int):
        return Grid(first * step, step, last - first + 1)
    return Grid(float(first * Decimal(str(step))), step, last - first + 1)


def _bounds(name: str, domain: Any) -> list[Any]:
    bounds = {"lower bound": domain.lower, "upper bound": domain.upper}
    return [_check(name, domain, part, bound) for part, bound in bounds.items()]


def _check(name: str, domain: Any, part: str, value: Any) -> Any:
    """A bound as a Python number."""
    plain = readable(value)
    is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    if not is_number or not math.isfinite(plain):
        kind = "number, not True or False," if isinstance(plain, bool) else "finite number"
        raise SettingsError(f"{name!r} must have a {kind} as its {part}, got {spell(domain)}.")
    return plain


def _whole(name: str, domain: Any, value: Any) -> int:
    if value != int(value):
        raise SettingsError(f"{name!r} must have whole numbers, got {spell(domain)}.")
    return int(value)


def _empty(name: str, domain: Any, why: str = "") -> SettingsError:
    return SettingsError(f"{name!r} holds no value: {spell(domain)}{why}.")
