"""The private names of Optuna that search spaces need.

Each has a canary in `tests/test_internals.py`, which fails on an upgrade before a sweep does.
"""

from typing import Any

import optuna

__all__ = ["give"]


def give(trial: optuna.Trial, name: str, held: Any) -> None:
    """Let a trial that was enqueued suggest this value.

    Optuna looks for the value of the queue among the choices, and a queue may hold a list, where
    the study holds its label.
    """
    trial._fixed_params[name] = held
