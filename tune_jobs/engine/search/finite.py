"""Which configs of a dict of domains were tried, and which is to be tried next: `Tried`."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tune_jobs.engine.core.space import SearchSpace

__all__ = ["Tried"]


class Tried:
    """The configs that were tried, where there are finitely many, and the points of the grid.

    A config has a place among all configs: that of its grid point, then those of its other values.
    Values are compared as the config has them, after rounding.

    Args:
        space: A dict of domains.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._parameters = space.parameters
        self._size = space.size
        self._grid = list(space.grid)
        self._others = [name for name in space.parameters if name not in space.grid]
        self._num_points = math.prod(self._sizes(self._grid))
        # How many configs share a grid point.
        self._num_others = 0 if self._size is None else self._size // self._num_points
        self._places: set[int] = set()
        self._drawn = Counter[int]()  # grid point -> trials
        self._different = Counter[int]()  # grid point -> different configs

    @property
    def has_all(self) -> bool:
        """Whether nothing is left to try."""
        return self._size is not None and len(self._places) >= self._size

    def add(self, params: Mapping[str, Any]) -> None:
        """Take in a trial with what the study holds; one that ended in its space has not all."""
        if not all(name in params for name in self._grid):
            return
        try:
            point, place = self._place(self._grid, params), self._place_of(params)
        except ValueError:  # a value that the space had under an earlier version
            return
        self._drawn[point] += bool(self._grid)
        if place is not None and place not in self._places:
            self._places.add(place)
            self._different[point] += 1

    def has(self, params: Mapping[str, Any]) -> bool:
        """Whether this config was tried; False if there are infinitely many."""
        place = self._place_of(params)
        return place is not None and place in self._places

    def next_point(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The grid point to try next, as the study holds it: the first of those drawn least often.

        Args:
            given: Values that are fixed already.
        """
        fixed = {name: given[name] for name in self._grid if name in given}
        if not self._grid or len(fixed) == len(self._grid):
            return fixed
        if fixed:
            fits = (p for p in range(self._num_points) if fixed.items() <= self._point(p).items())
            return self._point(min(fits, key=lambda point: (self._drawn[point], point)))
        return self._point(self._least_drawn())

    def pick(self, seeds: Sequence[int], point: Mapping[str, Any]) -> dict[str, Any]:
        """One of the configs that were not tried, all alike; there must be one.

        Args:
            seeds: What the draw depends on.
            point: The grid point that it must have; {} without a grid.
        """
        first = self._place(self._grid, point) * self._num_others if self._grid else 0
        end = first + self._num_others if self._grid else self._size or 0
        tried = sorted(place for place in self._places if first <= place < end)
        (state,) = np.random.SeedSequence(list(seeds)).generate_state(1)
        place = first + random.Random(int(state)).randrange(end - first - len(tried))
        for other in tried:  # the untried one of that rank, without a list of all
            place += other <= place
        return self._params(place)

    def _least_drawn(self) -> int:
        if len(self._drawn) < self._num_points:
            return next(p for p in range(self._num_points) if p not in self._drawn)
        points: Iterable[int] = range(self._num_points)
        if self._num_others:
            points = [p for p in points if self._different[p] < self._num_others]
        return min(points, key=lambda point: (self._drawn[point], point))

    def _sizes(self, names: Iterable[str]) -> list[int]:
        return [self._parameters[name].size or 0 for name in names]

    def _place_of(self, params: Mapping[str, Any]) -> int | None:
        """The place of a config; None: there are infinitely many, or it is not whole."""
        names = [*self._grid, *self._others]
        if self._size is None or not all(name in params for name in names):
            return None
        return self._place(names, params)

    def _place(self, names: Sequence[str], params: Mapping[str, Any]) -> int:
        place = 0
        for name, size in zip(names, self._sizes(names), strict=True):
            place = place * size + self._parameters[name].index(params[name])
        return place

    def _point(self, place: int) -> dict[str, Any]:
        return self._held(self._grid, place)

    def _params(self, place: int) -> dict[str, Any]:
        return self._held([*self._grid, *self._others], place)

    def _held(self, names: Sequence[str], place: int) -> dict[str, Any]:
        held = {}
        for name, size in zip(reversed(names), reversed(self._sizes(names)), strict=True):
            place, index = divmod(place, size)
            held[name] = self._parameters[name].held_at(index)
        return {name: held[name] for name in names}
