"""Draws that depend on the seed and the trial's number alone: `reseed`."""

import numpy as np
from optuna.samplers import BaseSampler

from tune_jobs.engine.core.define_by_run import seeds_of
from tune_jobs.engine.search.internals import reseed_generators

__all__ = ["reseed"]


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
