"""A define-by-run space that does what a dict of domains cannot: `suggest_instead`."""

import re
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, IntDistribution
from ray.tune.search import sample

from tune_jobs.engine.core.domains import fields_of, grid_values, has_domain, is_domain, rule_of
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.sampled import body_of

__all__ = ["suggest_instead", "suggest_sampled"]


def suggest_instead(name: str, value: Any) -> str:
    """The function that searches a domain within a list, or within a choice.

    Args:
        name: The parameter's flat name.
        value: What the space has there.
    """
    variable = _variable(name)
    choices = grid_values(value)
    if choices is None:
        choices = getattr(value, "categories", getattr(value, "choices", None))
    if choices is None:
        return _function(f"{variable} = {_code_within(value, variable)}", name, variable)
    places = list(range(len(list(choices))))
    texts = [_code_within(choice, f"{variable}_{place}") for place, choice in enumerate(choices)]
    cases = [f"{text} if which == {place}" for place, text in zip(places, texts[:-1], strict=False)]
    which = f'which = trial.suggest_categorical("{variable}", {places})'
    return _function(which, name, " else ".join([*cases, texts[-1]]))


def suggest_sampled(name: str, domain: Any, others: dict[str, Any]) -> str:
    """The function that does what `tune.sample_from` does.

    Args:
        name: The parameter's flat name.
        domain: What `tune.sample_from` returned.
        others: The other domains of the space, by flat name.
    """
    known = {n: o for n, o in others.items() if is_domain(o) and not isinstance(o, sample.Function)}
    plain = [n for n in known if n.rpartition("/")[2].isidentifier()]
    body, read = body_of(domain.func, plain) or (None, [])
    shown = list(dict.fromkeys(read)) or list(known)[:1]
    lines = [f"{_variable(n)} = {_code(known[n], _variable(n))}" for n in shown]
    if body is None:
        body = _variable(name)
        other = f"2 * {_variable(shown[0])}" if shown else f'trial.suggest_float("{body}", 0, 1)'
        lines.append(f"{body} = {other}  # in place of what the function does")
    return _function("\n        ".join(lines), name, body)


def _function(line: str, name: str, value: str) -> str:
    for part in reversed(name.split("/")):
        value = f'{{"{part}": {value}}}'
    lines = f"{line}\n        " if line else ""
    return f"    def space(trial):\n        {lines}return {value}"


def _variable(name: str) -> str:
    variable = re.sub(r"\W", "_", name.rpartition("/")[2])
    return variable if variable.isidentifier() else f"x_{variable}"


def _code_within(value: Any, name: str) -> str:
    try:
        return _code(value, name)
    except RecursionError:  # it holds itself
        return "..."


def _code(value: Any, name: str) -> str:
    """A value as code in which domains are suggested."""
    if is_domain(value):
        return _suggest(value, name)
    if not has_domain(value):
        return _literal(value)
    if isinstance(value, Mapping):
        items = (f"{k!r}: {_code(v, f'{name}_{_variable(str(k))}')}" for k, v in value.items())
        return f"{{{', '.join(items)}}}".replace("'", '"')
    if isinstance(value, partial):
        return _object("partial", [value.func, *value.args], value.keywords, name)
    if isinstance(value, deque):
        return f"deque({_code(list(value), name)})"
    if not isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return _object(type(value).__name__, [], fields_of(value), name)
    items = (_code(item, f"{name}_{place}") for place, item in enumerate(value))
    text = ", ".join(items)
    return f"({text},)" if isinstance(value, tuple) else f"[{text}]"


def _object(called: str, args: list[Any], fields: dict[str, Any], name: str) -> str:
    texts = [_code(arg, f"{name}_{place}") for place, arg in enumerate(args)]
    texts += [f"{key}={_code(item, f'{name}_{key}')}" for key, item in fields.items()]
    return f"{called}({', '.join(texts)})"


def _literal(value: Any) -> str:
    plain = readable(value)
    is_name = isinstance(plain, str) and not isinstance(value, str)
    text = plain if is_name else repr(tuple(plain) if isinstance(value, tuple) else plain)
    return text.replace("'", '"') if '"' not in text else text


def _suggest(domain: Any, name: str) -> str:
    values = grid_values(domain)
    if values is None:
        values = getattr(domain, "categories", None)
    if isinstance(domain, CategoricalDistribution):
        values = domain.choices
    if values is not None:
        choices = "..." if has_domain(list(values)) else _literal(list(values))
        return f'trial.suggest_categorical("{name}", {choices})'
    if isinstance(domain, (sample.Float, sample.Integer)):
        return _suggest_number(domain, name)
    if isinstance(domain, sample.Function):
        return "..."
    return _call(name, isinstance(domain, IntDistribution), [domain.low, domain.high], domain.step)


def _suggest_number(domain: Any, name: str) -> str:
    rule, step = rule_of(domain)
    is_integer = isinstance(domain, sample.Integer)
    low, high = domain.lower, domain.upper
    if isinstance(rule, sample.Normal):
        low, high = rule.mean - 3 * rule.sd, rule.mean + 3 * rule.sd
    elif is_integer:
        high -= step in (None, 1)
    is_log = isinstance(rule, sample.LogUniform)
    return _call(name, is_integer, [low, high], None if is_log else step, is_log)


def _call(
    name: str, is_integer: bool, bounds: list[Any], step: Any = None, is_log: bool = False
) -> str:
    kind = "int" if is_integer else "float"
    texts = [f'"{name}"', *(str(readable(bound)) for bound in bounds)]
    if step not in (None, 1) or (step == 1 and not is_integer):
        texts.append(f"step={readable(step)}")
    return f"trial.suggest_{kind}({', '.join(texts)}{', log=True' if is_log else ''})"
