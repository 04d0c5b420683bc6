"""Configs as they are recorded, and read again."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import FixedTrial, FrozenTrial
from ray import cloudpickle
from ray.tune.utils import flatten_dict
from ray.tune.utils.util import unflatten_dict

from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.space import SearchSpace

__all__ = [
    "CONFIG_ATTR",
    "config_of",
    "pack_config",
    "recordable",
    "shown_config",
    "to_json",
    "values_of",
]

# The system attribute in which an Optuna trial holds what the search space gave it: the values of a
# dict of domains by their flat names, or the config of a define-by-run space as it is.
CONFIG_ATTR = "tune_jobs:values"
OLD_CONFIG_ATTR = "tune_jobs:config"  # flat names, which were nested again

PICKLED = "tune_jobs:pickled"
MOST_BYTES = 100_000  # of a value that its label stands for


def pack_config(suggested: Mapping[str, Any]) -> dict[str, Any]:
    """What a space gave a trial, as JSON; values that JSON would change are pickled."""
    return {name: v if _is_json(v) else _pickle(v) for name, v in suggested.items()}


def recordable(values: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """What is recorded of a config: without large choices of a dict of domains, such as arrays.

    Each trial would record them again. The study has their labels, and the space the values.
    """
    if space.define is not None:
        return dict(values)
    return {name: value for name, value in values.items() if _is_light(value)}


def to_json(value: Any) -> Any:
    """A note of a user's as JSON: readable, and without NaN, which dashboards refuse."""
    return value if _is_json(value) else json.loads(json.dumps(readable(value)), parse_constant=str)


def config_of(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
    """The config of a recorded trial, nested.

    Args:
        trial: The trial.
        space: What is searched; it has the constants, which are not recorded with each trial.
    """
    if CONFIG_ATTR in trial.system_attrs:
        return space.config(values_of(trial, space))
    recorded = trial.system_attrs.get(OLD_CONFIG_ATTR)
    if recorded is not None:
        return _nested(space, {name: _unpack(value) for name, value in recorded.items()})
    return _suggest_again(trial, space)


def values_of(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
    """What the space gave a recorded trial, by flat name; arguments as for `config_of`."""
    decoded = {} if space.define is not None else space.decode(trial.params)
    return {**decoded, **_unpack_known(trial.system_attrs.get(CONFIG_ATTR, {}), decoded)}


def shown_config(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial was given, to be shown: labels stand for what the record can only pickle."""
    recorded = trial.system_attrs.get(CONFIG_ATTR, {})
    plain = {name: v for name, v in recorded.items() if not (isinstance(v, dict) and PICKLED in v)}
    return {**trial.params, **plain}


def _nested(space: SearchSpace, suggested: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an earlier record, in which every name with "/" was nested."""
    if space.define is None:
        return space.config(suggested)
    return dict(unflatten_dict(dict(suggested)))


def _suggest_again(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
    """The config of a record in which it was not entered (format 1)."""
    if space.define is None:
        return space.config(space.decode(trial.params))
    given = FixedTrial(trial.params)
    constants = space.define(given)  # type: ignore[arg-type]
    return _nested(space, {**given.params, **flatten_dict(constants or {})})


def _is_light(value: Any) -> bool:
    return _is_json(value) or len(cloudpickle.dumps(value)) <= MOST_BYTES


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return type(value) is float and math.isfinite(value)
    if type(value) is list:
        return all(map(_is_json, value))
    if type(value) is dict:
        return PICKLED not in value and all(
            type(name) is str and _is_json(item) for name, item in value.items()
        )
    return value is None or type(value) in (bool, int, str)


def _pickle(value: Any) -> dict[str, str]:
    return {PICKLED: base64.b64encode(cloudpickle.dumps(value)).decode()}


def _unpack_known(recorded: Mapping[str, Any], decoded: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded values; one that cannot be unpickled any more is left to its label."""
    values = {}
    for name, value in recorded.items():
        try:
            values[name] = _unpack(value)
        except Exception:  # of the module that the value's class is in
            if name not in decoded:
                raise
    return values


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and PICKLED in value:
        return cloudpickle.loads(base64.b64decode(value[PICKLED]))
    return value
