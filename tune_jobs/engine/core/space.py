"""A search space as Optuna takes it: `convert_space`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.errors import SettingsError

__all__ = ["DefineByRun", "SearchSpace", "Space", "contains", "convert_space"]

DefineByRun: TypeAlias = Callable[[optuna.Trial], dict[str, Any] | None]
Space: TypeAlias = dict[str, Any] | DefineByRun


class SearchSpace(NamedTuple):
    """What is searched, and the constants that every config holds besides.

    Names are flat: `{"model": {"lr": ...}}` has the name `model/lr`.
    """

    searched: dict[str, BaseDistribution] | DefineByRun
    constants: dict[str, Any]


def convert_space(space: Space) -> SearchSpace:
    """Split a Tune search space into Optuna's distributions and constants.

    Ray's own conversion drops the constants. A define-by-run function is returned unchanged.

    Raises:
        SettingsError: The space holds nothing to search, or a domain that Optuna cannot search.
    """
    if callable(space):
        return SearchSpace(space, {})
    try:
        flat = flatten_dict(space, prevent_delimiter=True)
        _check_choices(flat)
        distributions = OptunaSearch.convert_search_space(space)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"space cannot be searched by Optuna: {error}") from error
    distributions |= {name: v for name, v in flat.items() if isinstance(v, BaseDistribution)}
    if not distributions:
        raise SettingsError("space holds nothing to search; give a parameter tune.uniform(0, 1).")
    constants = {name: v for name, v in flat.items() if name not in distributions}
    return SearchSpace(distributions, constants)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value can be drawn from a distribution."""
    try:
        optuna.trial.create_trial(
            value=0.0, params={"value": value}, distributions={"value": distribution}
        )
    except (ValueError, TypeError):  # another type, out of range, or not one of the choices
        return False
    return True


def _check_choices(flat: dict[str, Any]) -> None:
    """The study's file holds these types alone; Optuna finds out when it is asked for a trial."""
    for name, domain in flat.items():
        for choice in getattr(domain, "categories", getattr(domain, "choices", ())):
            if choice is not None and not isinstance(choice, (bool, int, float, str)):
                raise SettingsError(
                    f"choices of {name!r} must be None, bool, int, float or str, got {choice!r}; "
                    "search a name for it and look it up where the model is made."
                )
