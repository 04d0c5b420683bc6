"""What a config may hold, in a form that can be written down: `readable`."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from itertools import count
from pathlib import PurePath
from typing import Any

import numpy as np

__all__ = ["is_text_of", "label", "ordered", "quoted", "readable", "same", "unique"]

MOST_ITEMS = 1_000  # of an array that is written out
DEEPEST = 50
MOST_BITS = 4_096  # of an integer; Python refuses to write one of more than 4,300 digits
LONGEST_LABEL = 200

# An address differs from process to process, and says nothing.
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}")


def readable(value: Any) -> Any:
    """A value as JSON can hold it, for people to read: never fails, and holds no memory address.

    NumPy's and torch's scalars become Python's numbers, arrays and tuples lists, classes and
    functions their names. Of a large array the shape is left. Numbers may be infinite or NaN.

    Args:
        value: Anything that a config may hold.
    """
    return _readable(value, ())


def label(value: Any) -> str:
    """A value as one line of text, for a choice that Optuna cannot hold itself.

    The same value has the same label in every process.
    """
    plain = readable(value)
    text = plain if isinstance(plain, str) else _text(plain)
    text = " ".join(text.split())
    if len(text) <= LONGEST_LABEL:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[:LONGEST_LABEL]}... #{digest}"


def quoted(value: Any) -> str:
    """A value in a message: only what is text stands in quotes, not the name of something else."""
    plain = readable(value)
    return plain if isinstance(plain, str) and not isinstance(value, str) else repr(plain)


def is_text_of(text: Any, value: Any) -> bool:
    """Whether a text is what best.json has for infinity or NaN, which JSON cannot hold."""
    is_special = isinstance(value, float) and not math.isfinite(value)
    return is_special and isinstance(text, str) and text == json.dumps(value)


def ordered(values: Iterable[Any]) -> list[Any]:
    """The values as a list; those of a set in an order that does not depend on the process."""
    if not isinstance(values, (set, frozenset)):
        return list(values)
    return sorted(values, key=lambda value: _order(readable(value)))


def unique(texts: Iterable[str]) -> list[str]:
    """The texts, of which repeated ones end in " (2)", " (3)" and so on."""
    found: dict[str, None] = {}
    for text in texts:
        numbered = (text if n == 1 else f"{text} ({n})" for n in count(1))
        found[next(name for name in numbered if name not in found)] = None
    return list(found)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same type, on every level: 1 is not True or 1.0."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    try:
        if _is_array(one):
            alike = (one.shape, one.dtype) == (other.shape, other.dtype)
            return alike and bool((one == other).all())
        return bool(one == other)
    except Exception:  # a user's own comparison
        return False


def _readable(value: Any, around: tuple[int, ...]) -> Any:
    if id(value) in around or len(around) > DEEPEST:
        return "..."
    try:
        return _convert(value, (*around, id(value)))
    except Exception:  # a user's own __str__, __iter__ or keys()
        return type(value).__qualname__


def _convert(value: Any, around: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (np.generic, str, int, float)):
        return _scalar(value)
    if _is_array(value):
        return _array(value, around)
    if isinstance(value, Mapping):
        names = unique(_text(_readable(key, around)) for key in value)
        return dict(zip(names, (_readable(v, around) for v in value.values()), strict=True))
    if isinstance(value, (list, tuple)):
        return [_readable(item, around) for item in value]
    if isinstance(value, (set, frozenset)):
        # In an order that does not depend on the process.
        return sorted((_readable(item, around) for item in value), key=_order)
    return _name(value, around)


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = float(value) if isinstance(value, np.floating) else value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)
        return value if value.bit_length() <= MOST_BITS else f"integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return float(value)
    # A lone surrogate could not be written into a file.
    return str(value).encode("utf-8", "backslashreplace").decode()


def _is_array(value: Any) -> bool:
    """NumPy's, torch's or JAX's; not a class of them."""
    return not isinstance(value, type) and all(
        hasattr(value, name) for name in ("dtype", "shape", "tolist")
    )


def _array(value: Any, around: tuple[int, ...]) -> Any:
    shape = tuple(value.shape)
    if math.prod(shape) > MOST_ITEMS:
        return f"array of shape {shape}"
    return _readable(value.tolist(), around)


def _name(value: Any, around: tuple[int, ...]) -> str:
    if isinstance(value, PurePath):
        return str(_scalar(str(value)))
    if isinstance(value, functools.partial):
        given = [_text(_readable(arg, around)) for arg in value.args]
        given += [f"{name}={_text(_readable(arg, around))}" for name, arg in value.keywords.items()]
        return f"{_name(value.func, around)}({', '.join(given)})"
    if callable(value):
        name = getattr(value, "__qualname__", None)
        if isinstance(name, str):
            return name
    text = str(_scalar(str(value)))
    return type(value).__qualname__ if ADDRESS.search(text) else text


def _text(plain: Any) -> str:
    """A readable value as text; numbers as Python writes them."""
    if isinstance(plain, str):
        return plain
    if plain is None or isinstance(plain, (bool, int, float)):
        return str(plain)
    return json.dumps(plain, ensure_ascii=False)


def _order(plain: Any) -> tuple[bool, float, str]:
    """Numbers in their order, then the rest."""
    is_number = isinstance(plain, (int, float))
    return not is_number, plain if is_number else 0, _text(plain)
