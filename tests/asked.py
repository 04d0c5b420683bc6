"""Sweeps whose trials are only asked for, and end at once with a score: `Ran`."""

from pathlib import Path
from typing import Any

from driven import Driven, result
from optuna.samplers import BaseSampler
from ray.tune.search import Searcher

from tune_jobs.engine.core.outcome import outcome_of
from tune_jobs.engine.core.space import Space
from tune_jobs.engine.store.configs import config_of


class Ran:
    """A sweep whose trials all end with a score.

    Attributes:
        configs: What was trained, in order.
        is_exhausted: Whether the search said that nothing is left.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        num: int,
        queue: list[dict[str, Any]] | None = None,
        sampler: BaseSampler | None = None,
    ) -> None:
        self.driven = Driven(folder, space=space, sampler=sampler)
        self.configs: list[dict[str, Any]] = []
        self.is_exhausted = False
        for params in queue or []:
            self.driven.record.enqueue(params)
        for _ in range(num):
            self.run()

    def run(self) -> None:
        driven, trial_id = self.driven, f"t{len(self.driven.record.started())}"
        config = driven.search.suggest(trial_id)
        self.is_exhausted = config == Searcher.FINISHED
        if self.is_exhausted or driven.record.trial(trial_id).state.is_finished():
            return
        assert repr(config) == repr(config_of(driven.record.trial(trial_id), driven.space))
        self.configs.append(config)
        driven.report(trial_id, 0.5)
        driven.search.on_trial_complete(trial_id, result(1, 0.5, done=True))

    @property
    def failures(self) -> list[str]:
        outcomes = [outcome_of(trial) for trial in self.driven.record.started()]
        return [outcome.message for outcome in outcomes if outcome and outcome.is_failure]
