"""A search space as it is searched: `convert_space`."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from ray.tune.search import sample

from tune_jobs.engine.core.domains import (
    convert_domain,
    domains_in,
    forgotten_in,
    grid_values,
    has_domain,
    is_domain,
    rule_of,
    spell,
)
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.parameters import Choice, Number, Parameter, copied, send
from tune_jobs.engine.core.readable import is_text_of, quoted, readable, same
from tune_jobs.engine.core.rewriting import suggest_instead, suggest_sampled
from tune_jobs.engine.core.settings import Settings

__all__ = ["DefineByRun", "SearchSpace", "Space", "check_grid", "contains", "convert_space"]

DefineByRun: TypeAlias = Callable[[optuna.Trial], dict[str, Any] | None]
Space: TypeAlias = dict[str, Any] | DefineByRun


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, and the constants that every config holds besides.

    Names are flat: `{"model": {"lr": ...}}` has the name `model/lr`. A part of the space without a
    domain is one constant, whatever it holds.

    Attributes:
        parameters: By name; empty for a define-by-run space.
        define: The function of a define-by-run space.
        constants: By name.
        grid: The names of the parameters whose points are all tried: `tune.grid_search`.
        notes: What the user should know of it.
    """

    parameters: dict[str, Parameter]
    define: DefineByRun | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    grid: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def searched(self) -> dict[str, BaseDistribution] | DefineByRun:
        """The distributions by name, or the function."""
        if self.define is not None:
            return self.define
        return {name: known.distribution for name, known in self.parameters.items()}

    @cached_property
    def size(self) -> int | None:
        """How many different configs there are; None: infinitely many, or it is not known."""
        sizes = [known.size for known in self.parameters.values()]
        is_known = self.define is None and None not in sizes
        return math.prod(size for size in sizes if size is not None) if is_known else None

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a config by name, from what the study holds."""
        if self.define is not None:
            return dict(params)
        known = self.parameters
        return {name: known[name].decode(held) for name, held in params.items() if name in known}

    def encode(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What the study holds for a config, or for a part of one.

        Args:
            config: Nested, or with flat names; values may be in their readable form. Constants are
                checked and left out.

        Raises:
            ValueError: It is not in the space; the message names the parameter.
        """
        if self.define is not None:
            return dict(config)
        params = {}
        for name, value in self._named(config):
            if name in self.parameters:
                params[name] = self._encode(name, value)
            elif not _agrees(value, self.constants[name]):
                constant = f"{readable(self.constants[name])!r}"
                raise ValueError(f"has {name} = {value!r}, which is not in the space: {constant}")
        return params

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nested config of values by name, with the constants."""
        if self.define is not None:
            return dict(values)
        constants = {name: copied(constant) for name, constant in self.constants.items()}
        config: dict[str, Any] = {}
        for name, value in {**constants, **values}.items():
            *path, last = name.split("/")
            place = config
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        return config

    def points(self) -> Iterator[dict[str, Any]]:
        """The points of the grid in their order, as the study holds them."""
        axes = [self.parameters[name] for name in self.grid]
        for places in product(*(range(axis.size or 0) for axis in axes)):
            held = (axis.held_at(place) for axis, place in zip(axes, places, strict=True))
            yield dict(zip(self.grid, held, strict=True))

    def _encode(self, name: str, value: Any) -> Any:
        try:
            return self.parameters[name].encode(value)
        except ValueError as error:
            domain = self.parameters[name].text
            raise ValueError(
                f"has {name} = {value!r}, which is not in the space: {domain}"
            ) from error

    def _named(self, config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        """The entries of a config by the names of the space."""
        known = [*self.parameters, *self.constants]
        for key, value in config.items():
            name = f"{prefix}{key}"
            owner = next((c for c in self.constants if name.startswith(f"{c}/")), None)
            if name in known:
                yield name, value
            elif isinstance(value, Mapping) and any(n.startswith(f"{name}/") for n in known):
                yield from self._named(value, f"{name}/")
            elif owner is not None:  # within a constant
                yield owner, _nested(name.removeprefix(f"{owner}/"), value)
            else:
                raise ValueError(f"has {name!r}; the space has {', '.join(known)}")


def convert_space(space: Space | None) -> SearchSpace:
    """A search space as it is searched: parameters and constants, or the define-by-run function.

    Ray's own conversion drops constants and the grids of logarithmic domains, and takes constants
    apart.

    Raises:
        SettingsError: The space holds nothing to search, a domain that cannot be searched, or a
            key that cannot be part of a name; the message says how to write it.
    """
    if isinstance(space, dict):
        return _convert(space)
    if callable(space):
        _check_function(space)
        return SearchSpace({}, space)
    raise SettingsError(
        "space must be a dict of Tune domains or a function of an Optuna trial, got "
        f'{_shown(space)}; give for example {{"lr": tune.loguniform(1e-4, 1e-1)}}.'
    )


def check_grid(space: SearchSpace, settings: Settings) -> None:
    """Check that every point of a grid can be tried.

    Raises:
        SettingsError: There are more points than trials.
    """
    sizes = [space.parameters[name].size or 0 for name in space.grid]
    num_points = math.prod(sizes)
    if space.grid and settings.num_trials < num_points:
        raise SettingsError(
            f"num_trials must be at least {num_points}, the number of points of grid_search "
            f"({' x '.join(map(str, sizes))}), got {settings.num_trials}; raise --num-trials, or "
            "write tune.choice for values that need not all be tried."
        )


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value can be drawn from a distribution."""
    try:
        optuna.trial.create_trial(
            value=0.0, params={"value": value}, distributions={"value": distribution}
        )
    except (ValueError, TypeError):  # another type, out of range, or not one of the choices
        return False
    return True


def _convert(space: dict[str, Any]) -> SearchSpace:
    flat = dict(_flatten(space))
    for name, value in flat.items():
        if (called := forgotten_in(value)) is not None:
            raise SettingsError(
                f"{name!r} has a function of Tune that is not called; write {called}."
            )
    domains = {name: value for name, value in flat.items() if has_domain(value)}
    if not domains:
        raise SettingsError("space holds nothing to search; give a parameter tune.uniform(0, 1).")
    for name, domain in domains.items():
        _check_domain(name, domain, domains)
    parameters = {name: convert_domain(name, domain) for name, domain in domains.items()}
    constants = {name: value for name, value in flat.items() if name not in domains}
    _check_sent(parameters, constants)
    return SearchSpace(
        parameters,
        constants=constants,
        grid=tuple(name for name, domain in domains.items() if grid_values(domain) is not None),
        notes=tuple(_notes(domains, parameters)),
    )


def _flatten(space: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Domains and constants by name; what holds no domain is not taken apart."""
    for key, value in space.items():
        _check_key(key)
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not is_domain(value) and has_domain(value):
            yield from _flatten(value, f"{name}/")
        else:
            yield name, value


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise SettingsError(f"space has the key {key!r}, which is no text; write {str(key)!r}.")
    if "/" in key:
        outer, inner = key.split("/", 1)
        raise SettingsError(
            f"space has the key {key!r}, and '/' separates the names of nested dicts; write "
            f"{{{outer!r}: {{{inner!r}: ...}}}}, or {key.replace('/', '_')!r}."
        )


def _check_domain(name: str, domain: Any, domains: dict[str, Any]) -> None:
    if isinstance(domain, sample.Function):
        code = suggest_sampled(name, domain, domains)
        raise SettingsError(
            f"{name!r} is tune.sample_from, of which Optuna does not know what it draws; write the "
            f"space as a function:\n{code}"
        )
    choices = grid_values(domain)
    if choices is None:
        choices = getattr(domain, "categories", getattr(domain, "choices", None))
    inside = domain if not is_domain(domain) else list(choices) if _is_list(choices) else []
    found = next(domains_in(inside), None)
    if found is not None:
        where = "inside a choice" if is_domain(domain) else f"inside a {type(domain).__name__}"
        raise SettingsError(
            f"{name!r} has {spell(found)} {where}, where it cannot be searched; write the space as "
            f"a function:\n{suggest_instead(name, domain)}"
        )


def _check_sent(parameters: Mapping[str, Parameter], constants: Mapping[str, Any]) -> None:
    choices = {name: p.choices for name, p in parameters.items() if isinstance(p, Choice)}
    for name, value in {**choices, **constants}.items():
        try:
            send(value)
        except Exception as error:
            raise SettingsError(
                f"{name!r} holds {quoted(value)}, which cannot be sent to a trial "
                f"({type(error).__name__}: {error}); make it in the function that is trained."
            ) from error


def _is_list(choices: Any) -> bool:
    return choices is not None and hasattr(choices, "__iter__")


def _check_function(space: DefineByRun) -> None:
    try:
        inspect.signature(space).bind(None)
    except TypeError as error:
        raise SettingsError(
            "space must be a function of an Optuna trial, such as `def space(trial): "
            f'trial.suggest_float("lr", 0, 1)`; {_shown(space)} does not take one argument.'
        ) from error
    except ValueError:  # its signature is not known
        return


def _shown(space: Any) -> str:
    return spell(space) if is_domain(space) else repr(readable(space))


def _notes(domains: dict[str, Any], parameters: dict[str, Parameter]) -> Iterator[str]:
    for name, domain in domains.items():
        number = parameters[name]
        if not isinstance(number, Number) or not isinstance(domain, sample.Float):
            continue
        bounds = number.distribution
        if isinstance(rule_of(domain)[0], sample.Normal):
            yield (
                f"{name}: {spell(domain)} is searched evenly between {bounds.low:g} and "
                f"{bounds.high:g}, its mean and three standard deviations to either side."
            )


def _nested(name: str, value: Any) -> Any:
    for part in reversed(name.split("/")):
        value = {part: value}
    return value


def _agrees(given: Any, constant: Any) -> bool:
    """Whether a given value, or its readable form or a part of it, is that of a constant."""
    if isinstance(given, dict) and isinstance(constant, dict):
        known = dict(zip(map(str, constant), constant.values(), strict=True))
        return all(str(k) in known and _agrees(v, known[str(k)]) for k, v in given.items())
    if same(given, constant):
        return True
    plain, own = readable(given), readable(constant)
    is_equal = isinstance(plain, bool) == isinstance(own, bool) and bool(plain == own)
    return is_equal or is_text_of(plain, own)
