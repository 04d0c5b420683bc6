"""Settings with epochs: which classes have ASHA, and their rules."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from ray import tune

from tune_jobs.engine import EpochSettings, LightningSettings, Settings, SettingsError, fixed
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.rungs import Halving
from tune_jobs.engine.core.settings import OnResume, on_resume, parse_settings
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.store.manifest import Manifest, recorded_settings
from tune_jobs.engine.trainable.jobs import make_job


@dataclass(frozen=True)
class Own(Settings):
    """A job's own settings that merely declare how long a trial trains."""

    max_epochs: int = 20


@dataclass(frozen=True)
class OwnFixed(Settings):
    max_epochs: int = fixed(20)
    grace_epochs: int = fixed(2)


@dataclass(frozen=True)
class OwnForm(Settings):
    max_epochs: int = fixed(20)
    asha: Literal["promotion", "stopping"] = fixed("stopping")
    reduction_factor: float = fixed(3)


@dataclass(frozen=True)
class Constant(Settings):
    max_epochs: ClassVar[int] = 20


@dataclass(frozen=True)
class Perhaps(Settings):
    max_epochs: int | None = None


@dataclass(frozen=True)
class Unchecked(Own):
    """Its `__post_init__` checks nothing of the engine's."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class OtherWords(Settings):
    """Has fields of these names, and no epochs."""

    asha: bool = True
    grace_epochs: int = 0


@pytest.mark.parametrize(
    ("settings", "halving"),
    [
        (EpochSettings(), Halving(10, 1, 2.0, pauses=True)),
        (LightningSettings(max_epochs=5, asha="stopping"), Halving(5, 1, 2.0, pauses=False)),
        (Own(), Halving(20)),
        (Own(max_epochs=3), Halving(3)),
        (OwnFixed(), Halving(20, 2)),
        (OwnForm(), Halving(20, 1, 3, pauses=False)),
        (Constant(), Halving(20)),
        (Unchecked(max_epochs=7), Halving(7)),
        (Perhaps(max_epochs=4), Halving(4)),
        (Own(max_epochs=np.int64(6)), Halving(6)),
        (Perhaps(), None),
        (Settings(), None),
        (OtherWords(), None),
    ],
)
def test_halving_of_settings(settings: Settings, halving: Halving | None) -> None:
    """A class that declares max_epochs has ASHA, with the defaults for what it does not declare."""
    assert settings.halving == halving


@pytest.mark.parametrize("kind", [EpochSettings, LightningSettings, Own, Perhaps, OwnForm])
@pytest.mark.parametrize("value", [0, -1, 2.5, "ten", True, math.nan, math.inf, (1,)])
def test_max_epochs_broken_rule_refused(kind: type[Any], value: Any) -> None:
    with pytest.raises(SettingsError) as info:
        kind(max_epochs=value)
    assert str(info.value) == f"max_epochs must be a positive whole number, got {value!r}."


def test_unchecked_max_epochs_refused_when_used() -> None:
    settings = Unchecked(max_epochs=0)
    with pytest.raises(SettingsError, match="max_epochs must be a positive whole number, got 0"):
        _ = settings.halving


@pytest.mark.parametrize("kind", [EpochSettings, LightningSettings])
def test_max_epochs_none_refused(kind: type[Any]) -> None:
    """A class that promises epochs has them; others may have None, and no ASHA."""
    with pytest.raises(SettingsError, match=r"number, got None; .* extend Settings"):
        kind(max_epochs=None)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Own, {"max_epochs": 0}, "max_epochs must be"),
        (OwnFixed, {"grace_epochs": "one"}, "grace_epochs must be .* got 'one'"),
        (OwnFixed, {"grace_epochs": None}, "grace_epochs must be .* got None"),
        (OwnFixed, {"max_epochs": 1}, "grace_epochs must not exceed max_epochs, got 2 and 1"),
        (OwnForm, {"reduction_factor": 1}, "reduction_factor must be above 1 and finite, got 1;"),
        (OwnForm, {"reduction_factor": "two"}, "reduction_factor must be .* got 'two'"),
        (OwnForm, {"reduction_factor": None}, "reduction_factor must be .* got None"),
        (OwnForm, {"asha": "median"}, "asha must be 'promotion' or 'stopping', got 'median'"),
        (OwnForm, {"asha": True}, "asha must be 'promotion' or 'stopping', got True"),
    ],
)
def test_own_epochs_broken_rule_refused(
    kind: type[Any], values: dict[str, Any], message: str
) -> None:
    """A job's own class is checked by the same rules, in the same words."""
    with pytest.raises(SettingsError, match=message):
        kind(**values)


def test_parse_own_max_epochs() -> None:
    settings = parse_settings(Own, "a job", ["--max-epochs", "7"])
    assert (settings, settings.halving) == (Own(max_epochs=7), Halving(7))
    assert parse_settings(Perhaps, "a job", ["--max-epochs", "None"]).halving is None


@pytest.mark.parametrize("kind", [EpochSettings, LightningSettings, Own, OwnFixed, Perhaps])
def test_max_epochs_fixed_on_resume(kind: type[Any]) -> None:
    """Also where the class does not say so: rungs must not move while trials are compared."""
    assert on_resume(kind.__dataclass_fields__["max_epochs"]) == OnResume.FIXED


def manifest_of(settings: Settings) -> Manifest:
    return Manifest.of(settings, Goal("acc", "max"), convert_space({"x": tune.uniform(0, 1)}), None)


@pytest.mark.parametrize("settings", [Own(), OwnFixed(), Perhaps(max_epochs=4)])
def test_resume_with_other_max_epochs_refused(settings: Any, tmp_path: Path) -> None:
    manifest_of(settings).write(tmp_path)
    assert recorded_settings(tmp_path, type(settings)()) == settings
    other = replace(settings, max_epochs=9)
    with pytest.raises(SettingsError, match=r"its max_epochs is \d+, not 9"):
        Manifest.read(tmp_path).check(manifest_of(other), other)


@pytest.mark.parametrize("settings", [Own(), OwnForm(), EpochSettings(), LightningSettings()])
def test_lightning_job_takes_any_epochs(settings: Settings) -> None:
    job = make_job(settings, None, None, lambda config, data: None, lambda config, data: None, None)
    assert job.is_lightning
    assert job.halving == settings.halving


@pytest.mark.parametrize("settings", [Settings(), Perhaps(), OtherWords()])
def test_lightning_job_without_epochs_refused(settings: Settings) -> None:
    name = type(settings).__name__
    with pytest.raises(SettingsError, match=f"needs settings with max_epochs, .* got {name}"):
        make_job(settings, None, None, lambda config, data: None, lambda config, data: None, None)
