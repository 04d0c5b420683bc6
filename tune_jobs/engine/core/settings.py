"""Everything that a user can set: typed, with its help, checked before anything is spent."""

import dataclasses
import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, TypeVar

from tune_jobs.engine.core.command_line import parse
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.rungs import Halving

__all__ = [
    "EpochSettings",
    "LightningSettings",
    "OnResume",
    "Settings",
    "fixed",
    "momentary",
    "on_resume",
    "parse_settings",
]

AnySettings = TypeVar("AnySettings", bound="Settings")

# Settings that have ASHA. They give the rungs, which must not change while trials are compared.
_EPOCHS = ("max_epochs", "grace_epochs", "asha", "reduction_factor")


class OnResume(Enum):
    """What happens to a setting when a sweep is resumed."""

    KEPT = auto()  # it has its previous value unless another one is given
    FIXED = auto()  # another value is refused
    MOMENTARY = auto()  # it is not recorded; it has its default unless a value is given


def fixed(default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None) -> Any:
    """A setting that a resumed sweep must not change, or new trials could not be compared with old.

    Args:
        default: Its default; or give a factory.
        factory: Makes its default.
    """
    return _field(OnResume.FIXED, default, factory)


def momentary(
    default: Any = dataclasses.MISSING, *, factory: Callable[[], Any] | None = None
) -> Any:
    """A setting that is given anew each time, if at all. Arguments as for `fixed`."""
    return _field(OnResume.MOMENTARY, default, factory)


def on_resume(field: "dataclasses.Field[Any]") -> OnResume:
    """What happens to this setting when a sweep is resumed."""
    unmarked = OnResume.FIXED if field.name in _EPOCHS else OnResume.KEPT
    rule: OnResume = field.metadata.get("on_resume", unmarked)
    return rule


def _field(rule: OnResume, default: Any, factory: Callable[[], Any] | None) -> Any:
    metadata = {"on_resume": rule}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Settings of any sweep.

    Raises:
        SettingsError: A value breaks its rule.
    """

    num_trials: int = 20
    """Configs to try."""
    max_concurrent: int | None = None
    """Trials that run in parallel; else as many as the cluster holds."""
    cpus_per_trial: float = 1.0
    """CPUs of a trial, and the threads it computes with."""
    gpus_per_trial: float | Literal["auto"] = "auto"
    """Share of a GPU that a trial holds, 0 to 1; auto: 0.25 where there are GPUs, else 0."""
    time_budget_s: float | None = None
    """Seconds after which the sweep stops with what it has."""
    stop_at: float | None = None
    """Score that is good enough: the sweep ends when a trial reaches it."""
    seed: int = fixed(0)
    """Seed of the search, and of random, NumPy and torch in every trial."""
    storage_path: str = momentary(
        factory=lambda: os.environ.get("TUNE_JOBS_STORAGE_PATH") or "./results"
    )
    """Folder or URL (s3://, gs://, file://) of the sweeps, to which all nodes can write;
    $TUNE_JOBS_STORAGE_PATH changes the default."""
    name: str | None = momentary(None)
    """Name of the sweep and of its folder; else job and time."""
    keep_checkpoints: int = 10
    """How many finished trials, the best, keep checkpoints."""
    resume: bool = momentary(False)
    """Resume sweep --name. Options you leave out keep their values."""
    retry_failed: bool = momentary(False)
    """With --resume: run failed trials again, as new trials."""
    max_failures: int = 3
    """Retries of a trial whose process or machine died."""
    warm_start: str | None = fixed(None)
    """Sweep to learn from (folder, URL or name), or Optuna storage (journal, SQLite file, or URL
    like sqlite:///x.db; #study chooses one of several)."""
    enqueue: str | None = momentary(None)
    """JSON file with a list of configs, or parts of configs, to try first."""
    address: str | None = momentary(None)
    """Address of a Ray cluster; else this machine's, else Ray starts here."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_trials", "max_concurrent", "cpus_per_trial", "time_budget_s")
        _check_positive(self, "keep_checkpoints")
        share = self.gpus_per_trial
        if share != "auto" and not 0 <= share <= 1:
            raise SettingsError(
                f"gpus_per_trial must be between 0 and 1, got {share:g}; "
                "a trial trains on one device."
            )
        if self.stop_at is not None and not math.isfinite(self.stop_at):
            raise SettingsError(f"stop_at must be a finite score, got {self.stop_at}.")
        if self.max_failures < 0:
            raise SettingsError(f"max_failures must not be negative, got {self.max_failures}.")
        if self.retry_failed and not self.resume:
            raise SettingsError("retry_failed needs resume; add --resume.")
        if self.resume and self.name is None:
            raise SettingsError("resume needs the name of the sweep; add --name.")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed must be between 0 and 4294967295, got {self.seed}.")
        if self.name is not None and not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", self.name):
            raise SettingsError(
                "name must consist of letters, digits, '.', '_', '+' and '-', "
                f"got {self.name!r}; it names a folder."
            )
        _ = self.halving  # which checks it

    @property
    def halving(self) -> Halving | None:
        """How trials are compared before they end; None: they are not.

        They are if the settings have `max_epochs` and it is not None: that of `EpochSettings`, or
        one that a class declares for itself. What such a class does not declare of the other three
        has its default.

        Raises:
            SettingsError: A value breaks its rule, in a class whose `__post_init__` is its own.
        """
        return _halving_of(self)


@dataclass(frozen=True)
class EpochSettings(Settings):
    """Settings of a sweep whose trials report epochs, under ASHA.

    Raises:
        SettingsError: A value breaks its rule.
    """

    max_epochs: int = fixed(10)
    """Epochs of a trial (reports of a function), at most."""
    grace_epochs: int = fixed(1)
    """Epochs that every trial may have: the first rung."""
    asha: Literal["promotion", "stopping"] = fixed("promotion")
    """promotion: trials pause at rungs, the best resume; stopping: weak ones stop there. Without
    checkpoints: stopping. See docs/settings.md."""
    reduction_factor: float = fixed(2.0)
    """At each rung, the best 1 in this many trials continue; above 1."""

    @property
    def halving(self) -> Halving:
        halving = _halving_of(self)
        if halving is None:
            raise SettingsError(
                "max_epochs must be a positive whole number, got None; settings without ASHA "
                "extend Settings."
            )
        return halving


@dataclass(frozen=True)
class LightningSettings(EpochSettings):
    """Settings of a sweep that trains a LightningModule.

    Raises:
        SettingsError: A value breaks its rule.
    """


def parse_settings(
    settings_type: type[AnySettings],
    description: str,
    args: Sequence[str] | None = None,
    default: AnySettings | None = None,
) -> AnySettings:
    """Read the settings from the command line.

    Args:
        settings_type: Their type.
        description: The head of `--help`.
        args: The command line; None: the program's own.
        default: Holds the values that the command line leaves out; None: the type's defaults.

    Raises:
        SettingsError: A value breaks its rule.
        SystemExit: Code 2 for what cannot be parsed, 0 after `--help`.
    """
    return parse(settings_type, description, args, default)


def _check_positive(settings: Settings, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise SettingsError(f"{name} must be positive and finite, got {value}.")


def _halving_of(settings: Settings) -> Halving | None:
    """The rule of halving that the fields of the settings give; None: they have no `max_epochs`."""
    given = {name: getattr(settings, name) for name in _EPOCHS if hasattr(settings, name)}
    if given.get("max_epochs") is None:
        return None
    kind = given.pop("asha", "promotion")
    if kind not in ("promotion", "stopping"):
        raise SettingsError(f"asha must be 'promotion' or 'stopping', got {kind!r}.")
    halving = Halving(**given, pauses=kind == "promotion")
    _check_whole("max_epochs", halving.max_epochs)
    _check_whole("grace_epochs", halving.grace_epochs)
    _check_factor(halving.reduction_factor)
    if halving.grace_epochs > halving.max_epochs:
        raise SettingsError(
            f"grace_epochs must not exceed max_epochs, got {halving.grace_epochs} and "
            f"{halving.max_epochs}; lower --grace-epochs."
        )
    return halving


def _check_whole(name: str, value: Any) -> None:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and value > 0):
        raise SettingsError(f"{name} must be a positive whole number, got {value!r}.")


def _check_factor(value: Any) -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and 1 < value < math.inf):
        raise SettingsError(
            f"reduction_factor must be above 1 and finite, got {value!r}; "
            "2 keeps the better half at each rung."
        )
