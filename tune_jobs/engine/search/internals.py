"""The private names of Ray and Optuna that the search needs.

Each has a canary in `tests/test_internals.py`, which fails on an upgrade before a sweep does.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from optuna.samplers import BaseSampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.search_space import IntersectionSearchSpace
from ray.tune.experiment import Trial

__all__ = [
    "controller_of",
    "forget_stop",
    "has_constraints",
    "max_epochs_of",
    "mode_of",
    "pause_pending",
    "reseed_generators",
    "show_again",
]

Part = TypeVar("Part")


def controller_of(wrapper: Any) -> Any:
    """Tune's controller behind what it gives its schedulers.

    A wrapper stands before it that has no public way to stop a trial, or to keep one paused.
    """
    return getattr(wrapper, "_tune_controller", None)


def mode_of(scheduler: Any) -> str | None:
    """The mode that one of Tune's schedulers was given; its metric alone is public."""
    mode: str | None = getattr(scheduler, "_mode", None)
    return mode


def max_epochs_of(scheduler: Any) -> float:
    """The epoch at which a trial is complete for one of Tune's ASHAs; infinite for others."""
    return float(getattr(scheduler, "_max_t", math.inf))


def forget_stop(scheduler: Any, trial: Trial) -> None:
    """Let one of Tune's schedulers forget that it stopped a trial.

    Replayed results come trial by trial, so that MedianStoppingRule decides otherwise than it did;
    it would raise at the next result of a trial that it believes to be stopped.
    """
    getattr(scheduler, "_stopped_trials", set()).discard(trial)


def pause_pending(controller: Any, trial: Trial) -> None:
    """Mark a pending trial as paused, so that Tune does not start it.

    `Trial.set_status` would leave it in the controller's own lists.
    """
    controller._set_trial_status(trial, Trial.PAUSED)


def has_constraints(sampler: BaseSampler) -> bool:
    """Whether one of Optuna's samplers was given a `constraints_func`."""
    return getattr(sampler, "_constraints_func", None) is not None


def reseed_generators(sampler: BaseSampler, seed: int) -> None:
    """Seed every random generator of one of Optuna's samplers.

    Its public `reseed_rng` draws the seed from the operating system. A sampler that is not Optuna's
    keeps its own generators.
    """
    for part in _parts(sampler, LazyRandomState):
        part.rng.seed(seed)


def show_again(sampler: BaseSampler, numbers: Iterable[int]) -> None:
    """Let a sampler look again at the parameters of trials that it has seen as ended.

    Optuna caches a search space, and looks at each trial until it has ended.
    """
    for space in _parts(sampler, IntersectionSearchSpace):
        space._cached_trial_number = min([space._cached_trial_number, *numbers])


def _parts(sampler: BaseSampler, kind: type[Part]) -> Iterator[Part]:
    """The attributes of a kind that a sampler has, and the samplers that it is made of."""
    for part in vars(sampler).values():
        if isinstance(part, kind):
            yield part
        elif isinstance(part, BaseSampler):
            yield from _parts(part, kind)
