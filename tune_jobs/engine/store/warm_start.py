"""What a search begins with: configs to try first, trials of other studies, failed trials."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import OUTCOME_ATTR, Cause, Kind, Outcome, has_failed
from tune_jobs.engine.core.parameters import Parameter
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.space import DefineByRun, SearchSpace, contains
from tune_jobs.engine.store.drawing import Drawn, draw, draw_often
from tune_jobs.engine.store.entries import decision_of
from tune_jobs.engine.store.foreign import Source, name_of, read_trials
from tune_jobs.engine.store.record import Record

__all__ = [
    "agrees",
    "check_configs",
    "enqueue",
    "others_of",
    "read_configs",
    "read_others",
    "retry_failed",
]

CRASHED = Outcome("failed in another study", Cause.TRIAL)


def read_configs(file: str, space: SearchSpace) -> list[dict[str, Any]]:
    """Read configs to try first. Parameters that a config leaves out are searched.

    Returns:
        What the study holds for each, by its flat name.

    Raises:
        SettingsError: The file cannot be read, or a config is not in the space.
    """
    try:
        content = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"enqueue: {file} cannot be read: {error}.") from error
    configs = content if isinstance(content, list) else [content]
    if not configs or not all(isinstance(config, dict) and config for config in configs):
        raise SettingsError(
            f'enqueue: {file} must hold a list of configs, such as [{{"lr": 0.001}}].'
        )
    return [_encode(f"enqueue: {file}", config, space) for config in configs]


def check_configs(configs: Any, space: SearchSpace) -> list[dict[str, Any]]:
    """Check configs to try first that `run_sweep` was given, as `read_configs` does those of a
    file.

    Raises:
        SettingsError: It is no list of configs, or one is not in the space.
    """
    if isinstance(configs, Mapping):
        configs = [configs]
    if isinstance(configs, (str, bytes)) or not isinstance(configs, Iterable):
        raise SettingsError(
            f'enqueue must be a list of configs, such as [{{"lr": 0.001}}], got {configs!r}; '
            "a file with configs is a setting: Settings(enqueue=...)."
        )
    listed = list(configs)
    for number, config in enumerate(listed):
        if not isinstance(config, Mapping) or not config:
            raise SettingsError(
                f'enqueue[{number}] must be a config, such as {{"lr": 0.001}}, got {config!r}.'
            )
    return [_encode(f"enqueue[{n}]", config, space) for n, config in enumerate(listed)]


def enqueue(record: Record, configs: Iterable[dict[str, Any]]) -> int:
    """Add configs to the queue, each once in the life of a sweep.

    A restored OptunaSearch queues its `points_to_evaluate` again.

    Returns:
        How many are new.
    """
    known = [trial.system_attrs.get("fixed_params") for trial in record.own()]
    num_known = len(known)
    for config in configs:
        if config not in known:
            record.enqueue(config)
            known.append(config)
    return len(known) - num_known


def retry_failed(record: Record) -> int:
    """Add the configs of failed trials to the queue, as new trials; the failed ones stay recorded.

    If the second attempt failed too, there is a third. The attributes are those of Optuna's own
    `RetryFailedTrialCallback`.

    Returns:
        How many were added.
    """
    trials = record.own()
    retried = {trial.system_attrs.get("retry_of") for trial in trials}
    failed = [trial for trial in trials if has_failed(trial) and trial.number not in retried]
    for trial in failed:
        history = [*trial.system_attrs.get("retry_history", ()), trial.number]
        first = trial.system_attrs.get("failed_trial", trial.number)
        attrs = {"failed_trial": first, "retry_history": history, "retry_of": trial.number}
        record.enqueue(trial.params, attrs)
    return len(failed)


def read_others(
    source: Source,
    goal: Goal,
    space: SearchSpace,
    storage_path: str,
    notify: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Read the trials of another study that agree with this sweep's space, as JSON.

    They are not trials of this sweep: they do not count, and are never its best. Trials that were
    left unfinished are read as pruned. Failed trials are read as crashed, and so are those that
    were pruned before they had a value: of both the sampler is to learn that they are bad.

    Args:
        source: A sweep or any other study, as `read_trials` takes it.
        goal: What this sweep optimizes.
        space: What it searches.
        storage_path: Where it is.
        notify: Called with a line that says how many were read.

    Raises:
        SettingsError: There is no such study, it optimizes something else, or no trial agrees.
    """
    name = name_of(source)
    trials = [trial for trial in read_trials(source, goal, storage_path) if _teaches(trial)]
    if not trials:
        raise SettingsError(f"warm_start: {name} has no trial with a value to learn from.")
    agreeing = [(trial, drawn) for trial in trials if (drawn := _drawn(trial, space))]
    if not agreeing:
        raise SettingsError(
            f"warm_start: none of the {len(trials)} trials of {name} agrees with the space; they "
            "must have the same parameters, with values that can be drawn here."
        )
    notify(f"Learning from {len(agreeing)} of the {len(trials)} trials of {name}")
    return [_pack(trial, drawn) for trial, drawn in agreeing]


def others_of(packed: Iterable[dict[str, Any]]) -> list[FrozenTrial]:
    """The trials that `read_others` read."""
    return [_unpack(trial) for trial in packed]


def _teaches(trial: FrozenTrial) -> bool:
    """Whether a sampler can learn from a trial."""
    return bool(_value_of(trial) is not None or _curve_of(trial) or _has_crashed(trial))


def _value_of(trial: FrozenTrial) -> float | None:
    is_complete = trial.state == TrialState.COMPLETE and math.isfinite(trial.values[0])
    return trial.values[0] if is_complete else None


def _curve_of(trial: FrozenTrial) -> dict[int, float]:
    curve = trial.intermediate_values.items()
    return {epoch: score for epoch, score in curve if math.isfinite(score)}


def _has_crashed(trial: FrozenTrial) -> bool:
    """Whether samplers are shown a trial as the worst; of other studies the state has to tell."""
    outcome = decision_of(trial)
    if outcome is not None and outcome.kind != Kind.PRUNED:
        return outcome.is_crash
    if trial.state == TrialState.COMPLETE:
        return _value_of(trial) is None
    is_empty = trial.state == TrialState.PRUNED and not _curve_of(trial)
    return is_empty or trial.state == TrialState.FAIL


def agrees(trial: FrozenTrial, space: SearchSpace) -> bool:
    """Whether a trial has the parameters of a space, with values that can be drawn from it."""
    drawn = _drawn(trial, space)
    return drawn is not None and drawn.held == trial.params


def _drawn(trial: FrozenTrial, space: SearchSpace) -> Drawn | None:
    """The trial as this sweep's space gives it; None: it could not be drawn here."""
    if space.define is not None:
        drawn = draw(space.define, trial.params)
        is_same = drawn.is_whole and drawn.held.keys() == trial.params.keys()
        return drawn if is_same else None
    if trial.params.keys() != space.parameters.keys():
        return None
    try:
        held = {n: _held(space.parameters[n], value) for n, value in trial.params.items()}
    except ValueError:
        return None
    return Drawn({name: space.parameters[name].distribution for name in held}, held)


def _held(parameter: Parameter, value: Any) -> Any:
    """What the study holds for a value of another study, which may hold it so already."""
    return value if contains(parameter.distribution, value) else parameter.encode(value)


def _encode(where: str, config: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The config as the queue holds it.

    Args:
        where: Where the config is, for messages.
        config: The config.
        space: What is searched.
    """
    try:
        if space.define is None:
            return space.encode(config)
        return _check_drawn(config, space.define)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{where} {error}.") from error


def _check_drawn(config: Mapping[str, Any], define: DefineByRun) -> dict[str, Any]:
    """The parameters of a config, which a define-by-run space must ask for in some branch; what it
    returns besides is left out."""
    plain = {str(name): readable(value) for name, value in config.items()}
    seen = draw_often(define, {**flatten_dict(plain), **plain})
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        is_whole = name in seen.asked or name in seen.constants
        flat |= {name: value} if is_whole else flatten_dict({name: value})
    for name, value in flat.items():
        if name in seen.asked and name not in seen.held:
            domain = seen.asked[name]
            raise ValueError(f"has {name} = {value!r}, which is not in the space: {domain}")
        is_known = name in seen.asked or name in seen.varying
        if not is_known and readable(seen.constants.get(name, seen)) != value:
            raise ValueError(f"has {name!r}; the space has {', '.join(seen.asked)}")
    return {name: value for name, value in flat.items() if name in seen.asked}


def _pack(trial: FrozenTrial, drawn: Drawn) -> dict[str, Any]:
    value, has_crashed = _value_of(trial), _has_crashed(trial)
    return {
        "state": "PRUNED" if value is None else "COMPLETE",
        "params": drawn.held,
        "distributions": {n: distribution_to_json(drawn.asked[n]) for n in drawn.held},
        "values": None if value is None else [value],
        "curve": {} if has_crashed else _curve_of(trial),
        "crashed": has_crashed,
        "constraints": trial.constraints,
    }


def _unpack(packed: dict[str, Any]) -> FrozenTrial:
    distributions = packed["distributions"].items()
    # Manifests of earlier versions do not say it.
    has_crashed = packed.get("crashed", not packed["curve"])
    return create_trial(
        state=TrialState[packed["state"]],
        params=packed["params"],
        distributions={name: json_to_distribution(text) for name, text in distributions},
        values=packed["values"],
        intermediate_values={int(epoch): score for epoch, score in packed["curve"].items()},
        constraints=packed.get("constraints"),
        system_attrs={OUTCOME_ATTR: CRASHED.to_entry()} if has_crashed else {},
    )
