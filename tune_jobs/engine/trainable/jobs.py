"""The two kinds of job, Lightning and function, and what their trials are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.loaded import Loaded
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.trainable.function import FunctionJob
from tune_jobs.engine.trainable.lightning import LightningJob

__all__ = ["Job", "Workload", "make_job"]


# Both have: `source`, the function by which the job's own code is found; `make_trainable(metric,
# resources, data)`, what Tune runs for each trial; and `is_lightning`, whether the trials report
# Lightning checkpoints, so that the winner can be tested.
Job: TypeAlias = LightningJob | FunctionJob


@dataclass(frozen=True)
class Workload:
    """What every trial of a sweep trains, on what, with what.

    Attributes:
        job: Makes the model.
        loaded: What `load_data` returned, with what is recorded of it.
        resources: What each trial holds.
    """

    job: Job
    loaded: Loaded
    resources: Resources


def make_job(
    settings: Settings,
    objective: Callable[..., Any] | None,
    load_data: Callable[[Any], Any] | None,
    make_model: Callable[[dict[str, Any], Any], Any] | None,
    make_data: Callable[[dict[str, Any], Any], Any] | None,
    trainer_kwargs: Mapping[str, Any] | None,
) -> Job:
    """The job that `run_sweep` was given.

    Raises:
        SettingsError: The arguments do not fit together, or do not fit the settings.
    """
    halving = settings.halving
    if objective is None:
        if make_model is None or make_data is None:
            raise SettingsError("run_sweep takes either objective, or make_model and make_data.")
        if halving is None:
            raise SettingsError(
                "a LightningModule needs settings with max_epochs, such as LightningSettings, "
                f"got {type(settings).__name__}."
            )
        return LightningJob(make_model, make_data, halving, settings.seed, trainer_kwargs or {})
    if make_model and make_data:
        raise SettingsError("run_sweep takes either objective, or make_model and make_data.")
    if make_model or make_data or trainer_kwargs:
        raise SettingsError(
            "make_model, make_data and trainer_kwargs belong to a LightningModule, not to "
            "objective."
        )
    return FunctionJob(objective, load_data is not None, settings.seed)
