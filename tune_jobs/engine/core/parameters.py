"""What a search space holds for one name: `Parameter`, a number or a choice."""

import copy
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, overload

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray import cloudpickle

from tune_jobs.engine.core.readable import is_text_of, label, ordered, readable, same, unique

__all__ = ["Choice", "Grid", "Number", "Parameter", "copied", "send"]

CLOSE = 1e-6  # of a step


class Parameter(ABC):
    """What is searched under one name.

    The study holds a number or a label, which Optuna and its dashboards can hold; the config holds
    the value that the user wrote.

    Attributes:
        distribution: What Optuna searches.
    """

    distribution: BaseDistribution

    @abstractmethod
    def decode(self, held: Any) -> Any:
        """The config's value.

        Args:
            held: What the study holds.
        """

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """What the study holds for a config's value, or for its readable form.

        Raises:
            ValueError: The value is not in the domain.
        """

    @property
    def text(self) -> str:
        """The domain in words, for messages."""
        return str(self.distribution)

    @property
    @abstractmethod
    def values(self) -> Sequence[Any] | None:
        """The different values of a config; None: infinitely many."""

    @abstractmethod
    def index(self, held: Any) -> int:
        """The place in `values` of what the study holds."""

    @abstractmethod
    def held_at(self, index: int) -> Any:
        """What the study holds for a place in `values`."""

    @property
    def size(self) -> int | None:
        """How many different values a config may have; None: infinitely many."""
        return None if self.values is None else len(self.values)


@dataclass(frozen=True)
class Grid(Sequence[Any]):
    """The numbers `low + i * step`, computed as they are asked for.

    Attributes:
        low: The first.
        step: From one to the next.
        num: How many there are.
    """

    low: float
    step: float
    num: int

    def __len__(self) -> int:
        return self.num

    @overload
    def __getitem__(self, index: int) -> float: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...

    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num))]
        if not 0 <= index < self.num:
            raise IndexError(index)
        if isinstance(self.low, int) and isinstance(self.step, int):
            return self.low + index * self.step
        # 3 * 0.1 is 0.30000000000000004
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step)))

    def nearest(self, number: float) -> int:
        """The place of the nearest number."""
        return min(max(round((number - self.low) / self.step), 0), self.num - 1)

    def find(self, number: float) -> int | None:
        """The place of a number; None: it is not on the grid."""
        index = self.nearest(number)
        return index if abs(self[index] - number) <= CLOSE * self.step else None


@dataclass(frozen=True)
class Number(Parameter):
    """A number.

    Attributes:
        distribution: What Optuna searches.
        grid: What a config may hold, where Optuna has no such distribution: it has no logarithmic
            one with a step.
    """

    distribution: FloatDistribution | IntDistribution
    grid: Grid | None = None

    def decode(self, held: Any) -> Any:
        return held if self.grid is None else self.grid[self.grid.nearest(held)]

    def encode(self, value: Any) -> Any:
        number = _number(value)
        domain = self.distribution
        # Beside a grid, the study holds numbers that are not rounded, and a queue may give them.
        known = self._drawn
        is_outside = number is None or not domain.low <= number <= domain.high
        if number is None or is_outside or (known is not None and _find(known, number) is None):
            raise ValueError(f"{value!r} is not in {self.text}")
        if isinstance(domain, IntDistribution):
            return round(number)
        if domain.step is None:
            return float(number)
        steps = round((number - domain.low) / domain.step)
        return min(domain.low + steps * domain.step, domain.high)

    @cached_property
    def _values(self) -> Sequence[Any] | None:
        return self._drawn if self.grid is None else self.grid

    @cached_property
    def _drawn(self) -> Sequence[Any] | None:
        """The different values that the study may hold; None: infinitely many."""
        domain = self.distribution
        if isinstance(domain, IntDistribution):
            return range(domain.low, domain.high + 1, domain.step)
        if domain.step is not None:
            num = round((domain.high - domain.low) / domain.step) + 1
            return Grid(domain.low, domain.step, num)
        return Grid(domain.low, 1.0, 1) if domain.low == domain.high else None

    @property
    def values(self) -> Sequence[Any] | None:
        return self._values

    @property
    def size(self) -> int | None:
        values = self.values
        if isinstance(values, range):  # which may be longer than `len` can say
            return (values.stop - values.start - 1) // values.step + 1
        return super().size

    def index(self, held: Any) -> int:
        values: Any = self.values
        return int(values.index(held) if isinstance(values, range) else values.nearest(held))

    def held_at(self, index: int) -> Any:
        values: Any = self.values
        return self.encode(values[index])

    @property
    def text(self) -> str:
        grid = self.grid
        if grid is None:
            return super().text
        return f"the multiples of {grid.step:g} from {grid[0]:g} to {grid[len(grid) - 1]:g}"


@dataclass(frozen=True)
class Choice(Parameter):
    """One of several values, which may be anything.

    Attributes:
        distribution: Its choices are the values where Optuna can hold and tell them apart, else
            labels.
        choices: The values, in the same order.
    """

    distribution: CategoricalDistribution
    choices: tuple[Any, ...]

    @classmethod
    def of(cls, values: Iterable[Any]) -> "Choice":
        """A choice of these values, of which there is at least one."""
        choices = tuple(ordered(values))
        return cls(CategoricalDistribution(_held(choices)), choices)

    def decode(self, held: Any) -> Any:
        return copied(self.choices[self._place(held)])

    def encode(self, value: Any) -> Any:
        names = self.distribution.choices
        plain = readable(value)
        plains = [readable(choice) for choice in self.choices]
        # The value itself comes first; JSON has a list for a tuple, and 1 for 1.0.
        for matches in (
            (same(value, choice) for choice in self.choices),
            (same(plain, other) for other in plains),
            (same(value, name) for name in names),
            (_equals(plain, other) for other in plains),
        ):
            place = next((i for i, is_found in enumerate(matches) if is_found), None)
            if place is not None:
                return names[place]
        raise ValueError(f"{value!r} is not one of {', '.join(map(repr, names))}")

    @cached_property
    def _firsts(self) -> list[int]:
        """For each choice, the place of the first that is the same."""
        alike: dict[str, list[int]] = defaultdict(list)  # by label: choices may be many
        firsts = []
        for place, choice in enumerate(self.choices):
            seen = alike[label(choice)]
            first = next((i for i in seen if same(choice, self.choices[i])), place)
            seen.append(first)
            firsts.append(first)
        return firsts

    @cached_property
    def _different(self) -> list[int]:
        return sorted(set(self._firsts))

    @property
    def values(self) -> Sequence[Any]:
        return [self.choices[place] for place in self._different]

    def index(self, held: Any) -> int:
        return self._different.index(self._firsts[self._place(held)])

    def held_at(self, index: int) -> Any:
        return self.distribution.choices[self._different[index]]

    def _place(self, held: Any) -> int:
        return int(self.distribution.to_internal_repr(held))


def copied(value: Any) -> Any:
    """A copy, so that trials do not share what they may change; the value, if it has no copy."""
    try:
        return copy.deepcopy(value)
    except Exception:  # a module, a lock, a tensor within a graph
        return value


def send(value: Any) -> None:
    """Do what Ray does to a config that it sends to a trial; it would end the sweep if it failed.

    Raises:
        Exception: The value cannot be copied, pickled, shown, or written as JSON without those keys
            that JSON has not: it holds itself, an integer is huge, or its `__repr__` raises.
    """
    json.dumps(value, default=repr, skipkeys=True)
    cloudpickle.dumps(copy.deepcopy(value))


def _held(choices: Sequence[Any]) -> list[Any]:
    """What the study holds for these choices."""
    plain = [readable(value) if hasattr(value, "dtype") else value for value in choices]
    if all(map(_is_plain, plain)) and len(set(plain)) == len(plain):
        return plain
    # Texts that are their own label have it: what the study holds is never another choice's text.
    labels = [label(value) for value in choices]
    order = sorted(range(len(choices)), key=lambda place: not same(choices[place], labels[place]))
    named = dict(zip(order, unique(labels[place] for place in order), strict=True))
    return [named[place] for place in range(len(choices))]


def _is_plain(value: Any) -> bool:
    """Whether a study's file can hold a value, and finds it again."""
    if type(value) is float:
        return abs(value) != float("inf") and value == value
    return value is None or type(value) in (bool, int, str)


def _number(value: Any) -> float | int | None:
    plain = readable(value)
    if isinstance(plain, str):
        try:
            return float(plain)
        except ValueError:
            return None
    return plain if isinstance(plain, (int, float)) and not isinstance(plain, bool) else None


def _find(values: Any, number: float) -> int | None:
    if isinstance(values, range):
        is_whole = number == round(number)
        return values.index(round(number)) if is_whole and round(number) in values else None
    place: int | None = values.find(number)
    return place


def _equals(one: Any, other: Any) -> bool:
    """Whether readable values are equal, where 1 is 1.0 but not True."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equals, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equals(one[k], other[k]) for k in one)
    is_equal = isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
    return is_equal or is_text_of(one, other)
