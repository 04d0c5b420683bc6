"""What a config may hold, written down for people."""

import functools
import json
import math
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from tune_jobs.engine.core.readable import label, ordered, quoted, readable, same, unique


class Color(Enum):
    RED = 1


class Size(IntEnum):
    LARGE = 3


@dataclass
class Point:
    x: float


class Silent:
    """An object of the default representation, which holds its address."""


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


def double(x: float, by: int = 2) -> float:
    return x * by


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, value) for value in (None, True, 3, 0.5, "text", "", [], {})),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (torch.tensor(2), 2),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (torch.ones(2), [1.0, 1.0]),
        (np.zeros((1000, 20)), "array of shape (1000, 20)"),
        (np.array([{"a": (1,)}], dtype=object), [{"a": [1]}]),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1: "a", (2, 3): "b", None: "c"}, {"1": "a", "[2, 3]": "b", "None": "c"}),
        ({1: "a", "1": "b"}, {"1": "a", "1 (2)": "b"}),
        (Color.RED, "RED"),
        (Size.LARGE, "LARGE"),
        (PurePosixPath("a/b"), "a/b"),
        (Path, "Path"),
        (torch.nn.ReLU, "ReLU"),
        (double, "double"),
        (functools.partial(double, by=3), "double(by=3)"),
        (functools.partial(torch.optim.SGD, momentum=0.9), "SGD(momentum=0.9)"),
        (torch.float16, "torch.float16"),
        (Point(0.5), "Point(x=0.5)"),
        (Silent(), "Silent"),
        (Broken(), "Broken"),
        ([Broken()], ["Broken"]),
        (Point(Silent()), "Point"),  # type: ignore[arg-type]
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("0.1"), "0.1"),
        (b"ab", "b'ab'"),
        (1 + 2j, "(1+2j)"),
        (range(3), "range(0, 3)"),
        ("\ud800", "\\ud800"),
        (1 << 20_000, "integer of 20001 bits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_readable_value(value: Any, expected: Any) -> None:
    plain = readable(value)
    assert same(plain, expected), plain
    json.dumps(plain).encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("-inf"), [math.nan]])
def test_readable_not_finite(value: Any) -> None:
    assert str(readable(value)) == str(value).replace("np.float64(-inf)", "-inf")


def test_readable_holds_itself() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert readable(endless) == [1, "..."]
    json.dumps(readable(deep))


def test_label_is_one_line() -> None:
    assert label("a\n  b") == "a b"
    assert label([(1, 2), "a"]) == '[[1, 2], "a"]'
    assert [label(value) for value in (None, True, 1, 1.0)] == ["None", "True", "1", "1.0"]


def test_label_long_texts_differ() -> None:
    one, other = label("a" * 500 + "b"), label("a" * 500 + "c")
    assert one != other
    assert len(one) < 220
    assert label("a" * 500 + "b") == one


def test_unique_texts() -> None:
    assert unique(["a", "b", "a", "a", "a (2)"]) == ["a", "b", "a (2)", "a (3)", "a (2) (2)"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        ([1], [True], False),
        ((1,), [1], False),
        ({"a": (1, 2)}, {"a": (1, 2)}, True),
        ({"a": 1}, {"b": 1}, False),
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([1, 2]), np.array([1.0, 2.0]), False),
        (np.array([1, 2]), np.array([1, 2, 3]), False),
        (torch.ones(2), torch.ones(2), True),
        ([torch.ones(2)], [torch.zeros(2)], False),
        (Point(1), Point(1), True),
        (Broken(), Broken(), False),
    ],
)
def test_same_values_and_types(one: Any, other: Any, expected: bool) -> None:
    assert same(one, other) is expected


@pytest.mark.parametrize(
    ("value", "text"),
    [("tpe", "'tpe'"), (Path("a"), "a"), (Path, "Path"), (3, "3"), (["a", Path], "['a', 'Path']")],
)
def test_quoted_text_alone(value: Any, text: str) -> None:
    assert quoted(value) == text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tanh", "relu", "gelu", "elu"}, ["elu", "gelu", "relu", "tanh"]),
        (frozenset({(5, 5), (3, 3), None, 10, 9}), [9, 10, None, (3, 3), (5, 5)]),
        (["b", "a"], ["b", "a"]),
        (("b", "a"), ["b", "a"]),
    ],
)
def test_ordered_set(values: Any, expected: list[Any]) -> None:
    """Texts have another hash in every process."""
    assert ordered(values) == expected
