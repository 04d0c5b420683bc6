"""The job that tunes a plain function: `FunctionJob`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ray import tune

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.trainable.process import OrderlyTrial, prepare_device

__all__ = ["FunctionJob"]


@dataclass(frozen=True)
class FunctionJob:
    """Tunes a function.

    Attributes:
        objective: Maps a config to its score.
    """

    objective: Callable[[dict[str, Any]], float]

    is_lightning: ClassVar[Literal[False]] = False

    @property
    def source(self) -> Callable[..., Any]:
        """The function by which the job's own code is found."""
        return self.objective

    def make_trainable(self, metric: str, resources: Resources, data: Any) -> Any:
        """What Tune runs: a trial that calls the function once and reports what it returns."""
        objective = self.objective

        def trial(config: dict[str, Any]) -> None:
            if resources.gpus:  # without a GPU no torch is needed, nor the seconds of its import
                prepare_device(resources)
            tune.report({metric: float(objective(config))})

        trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
        return trial
