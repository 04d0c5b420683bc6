"""Seeds the random generators of a function's trial: `seed_generators`."""

import importlib.util
import random
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["seed_generators"]


def seed_generators(seed: int, epoch: int) -> None:
    """Seed `random`, NumPy and torch, whatever ran in this process before.

    Torch is seeded when it is imported, if that is later: importing it takes seconds, which a
    function without it should not pay.

    Args:
        seed: The sweep's.
        epoch: The epoch after which the trial resumes; 0: it starts. A trial that resumes does not
            draw the same numbers again.
    """
    own = seed
    if epoch:
        (state,) = np.random.SeedSequence([seed, epoch]).generate_state(1)
        own = int(state)
    random.seed(own)
    np.random.seed(own)
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _SeedsTorch)]
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(own)
    else:
        sys.meta_path.insert(0, _SeedsTorch(own))


class _SeedsTorch(MetaPathFinder):
    """Seeds torch as soon as it is imported; Python has no other way to hear of an import."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _SeedingLoader(spec.loader, self._seed)
        return spec


class _SeedingLoader(Loader):
    def __init__(self, loader: Loader, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.manual_seed(self._seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
