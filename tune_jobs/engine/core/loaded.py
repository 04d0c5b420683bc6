"""Data that a job wants recorded: `Loaded`."""

import math
from dataclasses import dataclass, field
from typing import Any

from tune_jobs.engine.core.errors import SettingsError

__all__ = ["Loaded"]


@dataclass(frozen=True, init=False)
class Loaded:
    """What `load_data` returns if its result is to be recorded.

        return Loaded(splits, data="digits")

    The facts are written to `sweep.json` and `best.json`, and a fact must not change when the sweep
    is resumed. A fact with the name of one of the job's own settings says how that setting was
    settled: if the setting is left open on resume, `load_data` is given the recorded value.

    Attributes:
        data: What trials are given.
        facts: Name -> None, bool, int, str or a finite float.

    Raises:
        SettingsError: A fact is something else.
    """

    data: Any
    facts: dict[str, Any] = field(default_factory=dict)

    def __init__(self, data: Any, /, **facts: Any) -> None:
        for name, fact in facts.items():
            is_scalar = fact is None or isinstance(fact, (bool, int, float, str))
            if not is_scalar or (isinstance(fact, float) and not math.isfinite(fact)):
                raise SettingsError(
                    f"fact {name!r} of Loaded must be None, bool, int, str or a finite float, "
                    f"got {fact!r}."
                )
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "facts", facts)
