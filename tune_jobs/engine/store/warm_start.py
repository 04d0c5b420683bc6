"""What a search begins with: configs to try first, trials of other sweeps, failed trials."""

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import has_failed
from tune_jobs.engine.core.space import DefineByRun, SearchSpace, contains
from tune_jobs.engine.store.folder import is_url, storage_uri
from tune_jobs.engine.store.manifest import Manifest
from tune_jobs.engine.store.record import Record, decision_of
from tune_jobs.engine.store.study import load_study

__all__ = [
    "agrees",
    "enqueue",
    "others_of",
    "read_configs",
    "read_others",
    "retry_failed",
]

DRAWS = 50  # of a define-by-run space, to see the branches that it has


def read_configs(file: str, space: SearchSpace) -> list[dict[str, Any]]:
    """Read configs to try first, flat. Parameters that a config leaves out are searched.

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
    return [_encode(file, config, space) for config in configs]


def enqueue(record: Record, configs: Iterable[dict[str, Any]]) -> int:
    """Add configs to the queue, each once in the life of a sweep.

    A restored OptunaSearch queues its `points_to_evaluate` again.

    Returns:
        How many are new.
    """
    known = [trial.system_attrs.get("fixed_params") for trial in record.trials()]
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
    trials = record.trials()
    retried = {trial.system_attrs.get("retry_of") for trial in trials}
    failed = [trial for trial in trials if has_failed(trial) and trial.number not in retried]
    for trial in failed:
        history = [*trial.system_attrs.get("retry_history", ()), trial.number]
        first = trial.system_attrs.get("failed_trial", trial.number)
        attrs = {"failed_trial": first, "retry_history": history, "retry_of": trial.number}
        record.enqueue(trial.params, attrs)
    return len(failed)


def read_others(
    path: str,
    goal: Goal,
    space: SearchSpace,
    storage_path: str,
    notify: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Read the trials of another sweep that agree with this one's space, as JSON.

    They are not trials of this sweep: they do not count, and are never its best. Trials that the
    other sweep left unfinished are read as pruned.

    Args:
        path: The other sweep's folder or URL, or its name in `storage_path`.
        goal: What this sweep optimizes.
        space: What it searches.
        storage_path: Where it is.
        notify: Called with a line that says how many were read.

    Raises:
        SettingsError: There is no such sweep, it optimizes something else, or no trial agrees.
    """
    trials = [trial for trial in _load_other(path, goal, storage_path) if _has_reported(trial)]
    agreeing = [trial for trial in trials if agrees(trial, space)]
    if not agreeing:
        raise SettingsError(
            f"warm_start: none of the {len(trials)} trials of {path} agrees with the space; they "
            "must have the same parameters, with values that can be drawn here."
        )
    notify(f"Learning from {len(agreeing)} of the {len(trials)} trials of {path}")
    return [_pack(trial, space) for trial in agreeing]


def others_of(packed: Iterable[dict[str, Any]]) -> list[FrozenTrial]:
    """The trials that `read_others` read."""
    return [_unpack(trial) for trial in packed]


def _load_other(path: str, goal: Goal, storage_path: str) -> list[FrozenTrial]:
    is_path = is_url(path) or Path(path).is_dir()
    folder = path if is_path else f"{storage_uri(storage_path)}/{path}"
    try:
        manifest = Manifest.read(folder)
        trials = load_study(folder).get_trials()
    except (OSError, ValueError, SettingsError) as error:
        raise SettingsError(f"warm_start: no sweep can be read at {folder}: {error}") from error
    if (manifest.metric, manifest.mode) != (goal.metric, goal.mode):
        raise SettingsError(
            f"warm_start: {folder} optimizes {manifest.metric} ({manifest.mode}), "
            f"not {goal.metric} ({goal.mode}); its scores cannot be compared."
        )
    return trials


def _has_reported(trial: FrozenTrial) -> bool:
    return bool(trial.intermediate_values) or _has_crashed(trial)


def _has_crashed(trial: FrozenTrial) -> bool:
    outcome = decision_of(trial)
    return outcome is not None and outcome.is_crash


def agrees(trial: FrozenTrial, space: SearchSpace) -> bool:
    """Whether a trial has the parameters of a space, with values that can be drawn from it."""
    searched = _searched(space, trial.params)
    return trial.params.keys() == searched.keys() and all(
        contains(searched[name], value) for name, value in trial.params.items()
    )


def _searched(space: SearchSpace, params: dict[str, Any]) -> dict[str, BaseDistribution]:
    """The distributions of a space; of a define-by-run space those that it asks for when it gets
    these values, or none if it raises."""
    if space.define is None:
        return {name: known.distribution for name, known in space.parameters.items()}
    trial = FixedTrial(params)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values out of range, which are checked next
            space.define(trial)  # type: ignore[arg-type]
    except Exception:
        return {}
    return trial.distributions


def _encode(file: str, config: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """What the study holds for a config."""
    if space.define is not None:
        config = dict(flatten_dict(config))
        _check_config(file, config, _seen_distributions(space.define, config))
        return config
    try:
        return space.encode(config)
    except ValueError as error:
        raise SettingsError(f"enqueue: {file} {error}.") from error


def _check_config(file: str, config: dict[str, Any], searched: dict[str, BaseDistribution]) -> None:
    for name, value in config.items():
        if name not in searched:
            known = ", ".join(searched)
            raise SettingsError(f"enqueue: {file} has {name!r}; the space has {known}.")
        if not contains(searched[name], value):
            domain = searched[name]
            raise SettingsError(
                f"enqueue: {file} has {name} = {value!r}, which is not in the space: {domain}."
            )


def _seen_distributions(space: DefineByRun, config: dict[str, Any]) -> dict[str, BaseDistribution]:
    """The distributions that a define-by-run space asks for in random trials that begin with the
    config."""
    seen: dict[str, BaseDistribution] = {}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(DRAWS):
        study.enqueue_trial(config)
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values out of range, which are checked next
            space(trial)
        seen |= trial.distributions
    return seen


def _pack(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
    own = _searched(space, trial.params)
    is_complete = trial.state == TrialState.COMPLETE
    return {
        "state": "COMPLETE" if is_complete else "PRUNED",
        "params": trial.params,
        "distributions": {name: distribution_to_json(own[name]) for name in trial.params},
        "values": trial.values if is_complete else None,
        "curve": {} if _has_crashed(trial) else trial.intermediate_values,
    }


def _unpack(packed: dict[str, Any]) -> FrozenTrial:
    distributions = packed["distributions"].items()
    return create_trial(
        state=TrialState[packed["state"]],
        params=packed["params"],
        distributions={name: json_to_distribution(text) for name, text in distributions},
        values=packed["values"],
        intermediate_values={int(epoch): score for epoch, score in packed["curve"].items()},
    )
