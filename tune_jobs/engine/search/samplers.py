"""Draws that depend on the seed and the trial's number alone: `reseed`."""

from typing import Any

import numpy as np
from optuna.samplers import BaseSampler

from tune_jobs.engine.core.define_by_run import seeds_of
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.readable import quoted
from tune_jobs.engine.search.internals import reseed_generators

__all__ = ["check_sampler", "reseed"]


def check_sampler(sampler: Any) -> None:
    """Check that a sampler is one of Optuna's.

    Raises:
        SettingsError: It is not.
    """
    if not isinstance(sampler, BaseSampler):
        raise SettingsError(
            "sampler must be an Optuna sampler, such as optuna.samplers.TPESampler(), got "
            f"{quoted(sampler)}."
        )


def reseed(sampler: BaseSampler, seed: int, number: int, attempt: int = 0) -> None:
    """Seed a sampler for one trial.

    So no random state needs storing, and a killed sweep continues as if it had not been killed.

    Args:
        sampler: Any Optuna sampler; one that is not Optuna's keeps its own random states.
        seed: The sweep's.
        number: The trial's.
        attempt: As for `seeds_of`.
    """
    (state,) = np.random.SeedSequence(seeds_of(seed, number, attempt)).generate_state(1)
    reseed_generators(sampler, int(state))
