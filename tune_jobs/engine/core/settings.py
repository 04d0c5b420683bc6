"""Everything that a user may set: typed, with its help, checked before anything is spent."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import tyro

__all__ = ["LightningSettings", "Settings", "SettingsError", "parse_settings"]

AnySettings = TypeVar("AnySettings", bound="Settings")


class SettingsError(Exception):
    """What was asked for cannot be done; the message gives the rule, the values and the way out.

    No ValueError: tyro would put it into a box, broken into lines.
    """


@dataclass(frozen=True)
class Settings:
    """Settings of any sweep.

    Raises:
        SettingsError: A value breaks its rule.
    """

    num_trials: int = 20
    """Configs to try."""
    max_concurrent: int | None = None
    """Trials side by side; none: as many as the cluster holds."""
    cpus_per_trial: float = 1.0
    """CPUs a trial takes, and the threads it computes with."""
    gpus_per_trial: float | Literal["auto"] = "auto"
    """Share of a GPU that a trial takes, 0 to 1; auto: 0.25 where there are GPUs, else 0."""
    time_budget_s: float | None = None
    """Seconds after which the sweep ends with what it has; none: no limit."""
    stop_at: float | None = None
    """A score that is good enough: the sweep ends when a trial reaches it."""
    seed: int = 0
    """Seed of the search and of every trial."""
    storage_path: str = field(
        default_factory=lambda: os.environ.get("TUNE_JOBS_STORAGE_PATH") or "./results"
    )
    """Folder or URL (s3://, gs://, file://) that holds the sweeps; all nodes can write to it.
    Its default is $TUNE_JOBS_STORAGE_PATH, else ./results."""
    name: str | None = None
    """Name of the sweep and of its folder; none: job and time."""
    keep_checkpoints: int = 10
    """Finished trials that keep their checkpoints, the best ones."""
    resume: bool = False
    """Go on with the sweep of this name; what is not said is as it was."""
    retry_failed: bool = False
    """With resume: run failed trials again, as new ones."""
    max_failures: int = 3
    """Deaths of its process or machine that a trial survives, from its last checkpoint on."""
    warm_start: str | None = None
    """Folder or URL of another sweep whose finished trials the search learns from."""
    enqueue: str | None = None
    """JSON file with a list of configs, or parts of them, to try first."""
    address: str | None = None
    """Address of a Ray cluster; none: the one this machine belongs to, else Ray starts here."""

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
            raise SettingsError("retry_failed goes with resume; add --resume.")
        if self.resume and self.name is None:
            raise SettingsError("resume needs the name of the sweep; add --name.")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed must be between 0 and 4294967295, got {self.seed}.")
        if self.name is not None and not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", self.name):
            raise SettingsError(
                "name must be a folder's name of letters, digits, '.', '_', '+' and '-', "
                f"got {self.name!r}."
            )


@dataclass(frozen=True)
class LightningSettings(Settings):
    """Settings of a sweep whose trials train a LightningModule under ASHA."""

    max_epochs: int = 10
    """Epochs a trial trains at most."""
    grace_epochs: int = 1
    """Epochs that every trial may train: the first rung.
    Each further rung has reduction-factor times as many."""
    # `--help` keeps these line breaks; there are 56 columns in a terminal that has 80.
    asha: Literal["promotion", "stopping"] = "promotion"
    """promotion: every trial pauses at each rung, with its
    checkpoint. A free slot goes on with the best paused
    trial that is among the best 1 in reduction-factor of
    its rung, the highest rung first, else it starts a new
    one. A trial that looks poor at first may still be
    promoted later.
    stopping: a trial that reaches a rung goes on at once if
    it is among the best 1 in reduction-factor of those that
    were there before it, else it ends for good. Nothing is
    paused. The first trials go on because they are first,
    whatever they are worth.
    With either, TPE learns from late epochs alone: about 40
    configs are drawn at random before it begins, about 80
    beyond ten epochs.
    Epochs of all trials until one was among the best 1 % of
    MNIST's space, with 1, 4, 16 and 64 slots, medians of
    simulated sweeps (python -m benchmarks.simulate):
    | slots             |     1 |     4 |    16 |    64 |
    | promotion         |   546 |   608 |   724 | 1,639 |
    | stopping          |   603 |   662 |   806 | 1,668 |
    | Ray, random       |   680 |   725 |   942 | 1,665 |
    | Ray, OptunaSearch | 1,437 |   983 | 1,553 | 2,654 |
    | Optuna, halving   | 1,038 | >3000 | 1,692 | >3000 |
    | Optuna, Hyperband |   754 |   818 | 1,293 | 2,804 |
    | Syne Tune, ASHA   |   828 |   862 | 1,009 | 1,544 |
    | Syne Tune, BOHB   |   738 |   942 |   912 | 1,486 |"""
    reduction_factor: float = 2.0
    """ASHA lets the best 1 in this many trials go on at each rung; above 1."""
    data: Literal["auto", "mnist", "digits"] = "auto"
    """Data set; auto: MNIST from data-dir or the network, else scikit-learn's digits."""
    data_dir: str = field(default_factory=lambda: os.environ.get("TUNE_JOBS_DATA_DIR", "data"))
    """Folder with torchvision's MNIST/raw; its default is $TUNE_JOBS_DATA_DIR, else ./data."""

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
        default: What holds where the command line says nothing; None: the type's defaults.

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
