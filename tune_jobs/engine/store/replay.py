"""Whether a define-by-run function still asks for what it asked for: `check_asked`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from tune_jobs.engine.core.define_by_run import ATTEMPTS, SpaceTrial, run_space, seeds_of
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.space import DefineByRun
from tune_jobs.engine.store.entries import has_ended_in_space
from tune_jobs.engine.store.manifest import spell_distribution

__all__ = ["check_asked"]

MOST_TRIALS = 50


def check_asked(define: DefineByRun, trials: Sequence[FrozenTrial], seed: int) -> None:
    """Check a define-by-run function against what was recorded, before a sweep is resumed.

    The function is run with the recorded values, and what it asks for is compared; its source may
    change. A trial in which it raised is no obstacle: the function may have been mended.

    Args:
        define: The function.
        trials: The sweep's own trials that have started.
        seed: The sweep's.

    Raises:
        SettingsError: It asks for something else; the message names the first difference.
    """
    known = [trial for trial in trials if not has_ended_in_space(trial)]
    for trial in known[:: len(known) // MOST_TRIALS + 1]:
        difference = _difference(define, trial, seeds_of(seed, trial.number))
        # Which attempt was recorded is not known, and a function may draw at random what it asks.
        others = (seeds_of(seed, trial.number, attempt) for attempt in range(1, ATTEMPTS + 1))
        if difference is not None and all(_difference(define, trial, seeds) for seeds in others):
            raise SettingsError(
                f"the sweep cannot be resumed as another one: its space {difference} in trial "
                f"{trial.number}. Resume it unchanged, or start a new sweep with another --name."
            )


def _difference(define: DefineByRun, trial: FrozenTrial, seeds: Sequence[int]) -> str | None:
    asked, is_whole = _replay(define, trial, seeds)
    return next(_differences(trial.distributions, asked, is_whole), None)


def _replay(
    define: DefineByRun, trial: FrozenTrial, seeds: Sequence[int]
) -> tuple[dict[str, BaseDistribution], bool]:
    """What the function asks for when it gets the recorded values, and whether it came to its
    end."""
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.enqueue_trial(trial.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values out of range, which are compared next
        replayed = SpaceTrial(study.ask(), trial.number, {})
        is_whole = run_space(define, replayed, seeds).outcome is None
    return replayed.asked, is_whole


def _differences(
    before: Mapping[str, BaseDistribution], now: Mapping[str, BaseDistribution], is_whole: bool
) -> Iterator[str]:
    for name, asked in now.items():
        if name not in before:
            yield f"asks for {name} {spell_distribution(asked)}, and did not ask for it"
        elif asked != before[name]:
            yield (
                f"asks for {name} {spell_distribution(asked)}, and asked for "
                f"{spell_distribution(before[name])}"
            )
    for name in before.keys() - now.keys():
        if is_whole:
            yield f"does not ask for {name}, and asked for {spell_distribution(before[name])}"
