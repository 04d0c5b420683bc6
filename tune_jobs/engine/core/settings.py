"""Everything that a user can set: typed, with its help, checked before anything is spent."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, TypeVar

import tyro

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.rungs import Halving

__all__ = [
    "LightningSettings",
    "OnResume",
    "Settings",
    "fixed",
    "momentary",
    "on_resume",
    "parse_settings",
]

AnySettings = TypeVar("AnySettings", bound="Settings")


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
    rule: OnResume = field.metadata.get("on_resume", OnResume.KEPT)
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
    """Trials that run in parallel; none: as many as the cluster holds."""
    cpus_per_trial: float = 1.0
    """CPUs of a trial, and the threads it computes with."""
    gpus_per_trial: float | Literal["auto"] = "auto"
    """Share of a GPU that a trial holds, 0 to 1; auto: 0.25 where there are GPUs, else 0."""
    time_budget_s: float | None = None
    """Seconds after which the sweep stops with what it has; none: no limit."""
    stop_at: float | None = None
    """A score that is good enough: the sweep ends when a trial reaches it."""
    seed: int = fixed(0)
    """Seed of the search and of every trial."""
    storage_path: str = momentary(
        factory=lambda: os.environ.get("TUNE_JOBS_STORAGE_PATH") or "./results"
    )
    """Folder or URL (s3://, gs://, file://) that holds the sweeps; all nodes can write to it.
    Its default is $TUNE_JOBS_STORAGE_PATH, else ./results."""
    name: str | None = momentary(None)
    """Name of the sweep and of its folder; none: job and time."""
    keep_checkpoints: int = 10
    """Finished trials that keep their checkpoints: the best ones."""
    resume: bool = momentary(False)
    """Resume the sweep of this name. Options you leave out keep their previous values."""
    retry_failed: bool = momentary(False)
    """With resume: run failed trials again, as new trials."""
    max_failures: int = 3
    """How often a trial resumes from its checkpoint after its process or machine died."""
    warm_start: str | None = fixed(None)
    """Folder, URL or name of another sweep: the search learns from its trials."""
    enqueue: str | None = momentary(None)
    """JSON file with a list of configs, or parts of configs, to try first."""
    address: str | None = momentary(None)
    """Address of a Ray cluster; none: the cluster this machine belongs to, else Ray starts here."""

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

    @property
    def halving(self) -> Halving | None:
        """How trials are compared before they end; None: they are not."""
        return None


@dataclass(frozen=True)
class LightningSettings(Settings):
    """Settings of a sweep whose trials train epochs under ASHA."""

    max_epochs: int = fixed(10)
    """Epochs that a trial trains at most."""
    grace_epochs: int = fixed(1)
    """Epochs that every trial may train: the first rung.
    Each further rung has reduction-factor times as many."""
    # `--help` keeps these line breaks; there are 56 columns in a terminal that has 80.
    asha: Literal["promotion", "stopping"] = fixed("promotion")
    """promotion: every trial pauses at each rung with its
    checkpoint. A free slot resumes the best paused trial
    among the best 1 in reduction-factor of its rung, the
    highest rung first. If there is none, it starts a new
    trial. A trial that looks poor at first may still be
    promoted later.
    stopping: a trial that reaches a rung continues at once
    if it is among the best 1 in reduction-factor of those
    that were there before it, else it stops for good.
    Nothing pauses. docs/benchmarks.md compares the two."""
    reduction_factor: float = fixed(2.0)
    """At each rung, the best 1 in this many trials continue; above 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "max_epochs", "grace_epochs")
        if self.asha not in ("promotion", "stopping"):
            raise SettingsError(f"asha must be 'promotion' or 'stopping', got {self.asha!r}.")
        if self.grace_epochs > self.max_epochs:
            raise SettingsError(
                f"grace_epochs must not exceed max_epochs, got {self.grace_epochs} and "
                f"{self.max_epochs}; lower --grace-epochs."
            )
        if not self.reduction_factor > 1 or math.isinf(self.reduction_factor):
            raise SettingsError(
                f"reduction_factor must be above 1 and finite, got {self.reduction_factor:g}; "
                "2 keeps the better half at each rung."
            )

    @property
    def halving(self) -> Halving:
        return Halving(
            self.max_epochs, self.grace_epochs, self.reduction_factor, self.asha == "promotion"
        )


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
    settings: AnySettings = tyro.cli(
        settings_type,
        description=description,
        args=args,
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return settings


def _check_positive(settings: Settings, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise SettingsError(f"{name} must be positive and finite, got {value}.")
