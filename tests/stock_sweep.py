"""A sweep with one of Tune's own schedulers, which tests drive as Tune does: `StockSweep`."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

from fake_tune import FakeTrial, settings_of
from optuna.trial import TrialState, create_trial
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import STUDY_FILE
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.search.stock import StockScheduler
from tune_jobs.engine.store.record import Record

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
MAXIMIZE = Goal("score", "max")
NOTHING_PENDING = SimpleNamespace(get_live_trials=lambda: [])  # in place of Tune's controller


def make_asha(**kwargs: Any) -> Any:
    return ASHAScheduler(**{"time_attr": "epoch", "reduction_factor": 3, "max_t": 100, **kwargs})


def make_median(**kwargs: Any) -> Any:
    defaults = {"time_attr": "epoch", "grace_period": 2, "min_samples_required": 2}
    return MedianStoppingRule(**{**defaults, **kwargs})


MAKERS: dict[str, Callable[..., Any]] = {
    "asha": make_asha,
    "median": make_median,
    "fifo": lambda **kwargs: FIFOScheduler(),
}


def state_of(scheduler: Any) -> Any:
    """What ASHA or the median rule knows of the trials, by their ids."""
    if isinstance(scheduler, AsyncHyperBandScheduler):
        return dict(scheduler._brackets[0]._rungs)
    known = getattr(scheduler, "_results", {})
    return {
        trial.trial_id: [(result["epoch"], result["score"]) for result in results]
        for trial, results in known.items()
    }


class StockSweep:
    """A sweep with one of Tune's schedulers, driven as Tune and the queue drive it.

    A record that is there is resumed, with its trials in the queue's order.

    Args:
        folder: The folder of the record.
        stock: Tune's scheduler.
        max_epochs, stop_at: As for `StockScheduler`.
    """

    def __init__(
        self,
        folder: Path,
        stock: Any,
        max_epochs: int | None = None,
        stop_at: float | None = None,
    ) -> None:
        if (folder / STUDY_FILE).exists():
            self.record = Record.open(folder, Event())
        else:
            self.record = Record.create(folder, "sweep", MAXIMIZE, Event())
        self.stock = stock
        settings = settings_of(Halving(max_epochs) if max_epochs else None, stop_at)
        self.scheduler = StockScheduler(MAXIMIZE, self.record, settings, stock)
        self.scheduler.restore(self.record.started())
        self.trials: dict[str, FakeTrial] = {}
        for trial in sorted(self.record.started(), key=lambda t: not t.state.is_finished()):
            status = Trial.TERMINATED if trial.state.is_finished() else Trial.PENDING
            self._add(trial.user_attrs["trial_id"], status)

    def start(self, *names: str) -> None:
        for name in names:
            self.record.start(name, create_trial(state=TrialState.RUNNING), {})
            self._add(name, Trial.PENDING)

    def report(self, name: str, epoch: int, score: float) -> str:
        """Report an epoch; a trial that is to stop is stopped."""
        result = {"epoch": epoch, "training_iteration": epoch, "score": score}
        decision = self.scheduler.on_trial_result(NOTHING_PENDING, self.trials[name], result)
        if decision == STOP:
            self._complete(name, result)
        return decision

    def finish(self, name: str, epoch: int, score: float) -> None:
        """Report an epoch, after which the trial ends by itself."""
        assert self.report(name, epoch, score) == CONTINUE
        self._complete(name, {"epoch": epoch, "training_iteration": epoch, "score": score})

    def fail(self, name: str, folder: Path) -> None:
        file = folder / f"{name}.pkl"
        file.write_bytes(cloudpickle.dumps(KeyError("lr")))
        trial = self.trials[name]
        trial.pickled_error_file = str(file)
        self.scheduler.on_trial_error(None, trial)
        self._end(name, Trial.ERROR)

    def _add(self, name: str, status: str) -> None:
        self.trials[name] = FakeTrial(name, status)
        self.scheduler.on_trial_add(NOTHING_PENDING, self.trials[name])
        if status == Trial.PENDING:
            self.trials[name].status = Trial.RUNNING

    def _complete(self, name: str, result: dict[str, Any]) -> None:
        self.scheduler.on_trial_complete(NOTHING_PENDING, self.trials[name], result)
        self._end(name, Trial.TERMINATED)

    def _end(self, name: str, status: str) -> None:
        outcome = self.record.decided(name) or Outcome.of(Kind.BY_ITSELF)
        self.record.end(name, outcome, 0.0 if outcome.is_complete else None)
        self.trials[name].status = status


def scored(epoch: int, score: float = 0.5) -> dict[str, Any]:
    return {"epoch": epoch, "score": score}
