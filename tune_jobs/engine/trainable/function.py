"""The job that tunes a plain function: `FunctionJob`."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import ray
from ray import tune

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.trainable.internals import has_own_resources
from tune_jobs.engine.trainable.process import OrderlyTrial, prepare_device
from tune_jobs.engine.trainable.reports import Ended, FunctionSession
from tune_jobs.engine.trainable.seeds import seed_generators
from tune_jobs.engine.trainable.users_code import run_users_code

__all__ = ["FunctionJob"]

TWO_FUNCTIONS = """objective must take the config, not Optuna's trial: the engine records a config \
before its trial starts, so that the trial can be paused, moved and resumed. Write two functions:

    def space(trial):
        trial.suggest_float("x", 0, 1)

    def objective(config):
        return config["x"] ** 2

    run_sweep(settings, space=space, objective=objective, ...)

For trial.report(value, step) write tune.report({metric: value, "epoch": step}); ASHA prunes."""


@dataclass(frozen=True)
class FunctionJob:
    """Tunes a function.

    Attributes:
        objective: Maps a config, or a config and the data, to its score; may report earlier ones.
        takes_data: Whether it is given the data.
        seed: Of every trial.

    Raises:
        SettingsError: It takes something else.
    """

    objective: Callable[..., Any]
    takes_data: bool = False
    seed: int = 0

    is_lightning: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        if reason := _why_no_objective(self.objective):
            raise SettingsError(reason)
        _check_arguments(self.objective, ("config", "data") if self.takes_data else ("config",))

    @property
    def source(self) -> Callable[..., Any]:
        """The function by which the job's own code is found."""
        return self.objective

    def make_trainable(self, metric: str, resources: Resources, data: Any) -> Any:
        """What Tune runs: a trial that calls the function once and reports what it returns."""
        job = self

        def trial(config: dict[str, Any], data: Any) -> None:
            session = FunctionSession.take_over()
            session.begin(metric)
            seed_generators(job.seed, session.epoch)
            if resources.gpus:  # without a GPU no torch is needed, nor the seconds of its import
                prepare_device(resources)
            args = (config, data) if job.takes_data else (config,)
            run_users_code(partial(_call, session, metric, job.objective, args))

        trial.__mixins__ = (OrderlyTrial,)  # type: ignore[attr-defined]
        # By reference: of data that cannot be sent, Tune would keep a part that fails `ray.init`.
        return tune.with_parameters(trial, data=ray.put(data))


def _why_no_objective(objective: Any) -> str | None:
    """Why something is no function that trials could call; None: it is one."""
    if not callable(objective) or isinstance(objective, type):
        return (
            f"objective must be a function of a config, got {objective!r}; for a class, write a "
            "function that makes one and reports with tune.report."
        )
    if inspect.iscoroutinefunction(objective):
        return "objective must be a plain function, got `async def`; call asyncio.run in it."
    if has_own_resources(objective):
        return (
            "objective has resources of its own, by tune.with_resources; give the function itself, "
            "and cpus_per_trial and gpus_per_trial."
        )
    return TWO_FUNCTIONS if _takes_optunas_trial(objective) else None


def _check_arguments(objective: Callable[..., Any], given: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(objective)
    except ValueError:  # it is none of Python's own, and has none
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        name = getattr(objective, "__name__", type(objective).__name__)
        hint = "alone" if len(given) == 1 else "and the data, as there is load_data"
        raise SettingsError(
            f"objective must take the config {hint}, got {name}{signature}."
        ) from error


def _call(
    session: FunctionSession, metric: str, objective: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    try:
        value: Any = objective(*args)
        if inspect.isgenerator(value):
            value = _report_each(value, session, metric)
    except Ended:
        return
    except Exception as error:
        if hint := _hint_at(error, metric):
            error.add_note(hint)
        raise
    session.report_returned(value)


def _hint_at(error: Exception, metric: str) -> str | None:
    """What to write instead of what other versions of Tune, or Optuna alone, would take."""
    if isinstance(error, AttributeError) and isinstance(error.obj, dict):
        asks = str(error.name).startswith(("suggest_", "should_prune"))
        return TWO_FUNCTIONS if asks else None
    names = ("ray.train.report", "`report`", "report()")
    if isinstance(error, (DeprecationWarning, TypeError)) and any(n in str(error) for n in names):
        return f"Under Tune, write tune.report({{{metric!r}: ...}}), with `from ray import tune`."
    return None


def _report_each(results: Iterator[Any], session: FunctionSession, metric: str) -> Any:
    """Report what a generator yields, as Tune does. Returns what it returns."""
    while True:
        try:
            result = next(results)
        except StopIteration as end:
            return end.value
        session.report(result if isinstance(result, dict) else {metric: result})


def _takes_optunas_trial(objective: Callable[..., Any]) -> bool:
    """Whether a function is written for `study.optimize`: it takes a trial, or suggests."""
    try:
        first = next(iter(inspect.signature(objective).parameters.values()))
    except (ValueError, StopIteration):  # none of Python's own; it takes nothing
        return False
    code = getattr(inspect.unwrap(objective), "__code__", None)
    suggests = any(name.startswith("suggest_") for name in getattr(code, "co_names", ()))
    return first.name == "trial" or suggests
