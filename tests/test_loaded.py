"""Facts about the data: recorded when a sweep starts, compared when it is resumed."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
from optuna.trial import TrialState, create_trial
from ray import tune

from tune_jobs.engine import LightningSettings, Loaded, SettingsError, fixed, run_sweep, sweep
from tune_jobs.engine.cluster.capacity import Capacity
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.store.manifest import Manifest
from tune_jobs.engine.store.record import Record


@dataclass(frozen=True)
class DataSettings(LightningSettings):
    """A job's own settings, which leave its data open."""

    data: Literal["auto", "mnist", "digits"] = fixed("auto")


class DataSet(Enum):
    AUTO = "auto"
    DIGITS = "digits"


@dataclass(frozen=True)
class EnumSettings(LightningSettings):
    data: DataSet = fixed(DataSet.AUTO)  # noqa: RUF009


class TrialsReachedError(Exception):
    """Raised where the trials would start."""


def reach_trials(opened: Any, record: Record, parts: Any) -> None:
    """A trial has started: the sweep keeps its folder."""
    record.start(f"t{record.num_trials}", create_trial(state=TrialState.RUNNING), {})
    raise TrialsReachedError


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = Capacity({"1": {"CPU": 2.0}}, {"1": "here"})
    monkeypatch.setattr(sweep, "running_ray", lambda *args: nullcontext(False))
    monkeypatch.setattr(ray, "put", lambda data: data)  # Ray's own would start Ray
    monkeypatch.setattr(sweep, "read_capacity", lambda autoscaler: capacity)
    monkeypatch.setattr(sweep, "check_shared", lambda *args: None)
    monkeypatch.setattr(sweep, "Driver", reach_trials)


def begin(
    folder: Path,
    load_data: Callable[[Any], Any],
    settings_type: type[Settings] = DataSettings,
    **changes: Any,
) -> Manifest:
    """Start or resume a sweep up to its trials; the manifest that it leaves."""
    settings = settings_type(**{"storage_path": str(folder), "name": "s", **changes})
    with pytest.raises(TrialsReachedError):
        run_sweep(
            settings,
            space={"x": tune.uniform(0, 1)},
            metric="score",
            mode="max",
            load_data=load_data,
            make_model=lambda config, data: None,
            make_data=lambda config, data: None,
            progress=None,
        )
    return Manifest.read(folder / "s")


def load_digits(settings: DataSettings) -> Loaded:
    return Loaded([1, 2], data="digits", mean=0.5)


FACTS = {"data": "digits", "mean": 0.5}


def test_loaded_facts_recorded(tmp_path: Path) -> None:
    assert begin(tmp_path, load_digits).facts == FACTS
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert content["facts"] == FACTS
    assert content["settings"]["data"] == "auto"


def test_resume_fills_open_setting(tmp_path: Path) -> None:
    """A first "auto" found the digits, so a resumed `load_data` is asked for the digits."""
    asked: list[str] = []

    def load(settings: DataSettings) -> Loaded:
        asked.append(settings.data)
        return load_digits(settings)

    begin(tmp_path, load)
    assert begin(tmp_path, load, resume=True).facts == FACTS
    assert asked == ["auto", "digits"]


def test_resume_explicit_fact_accepted(tmp_path: Path) -> None:
    begin(tmp_path, load_digits)
    assert begin(tmp_path, load_digits, resume=True, data="digits").facts == FACTS


def test_resume_open_after_explicit(tmp_path: Path) -> None:
    """A script that leaves the setting open may be resumed by hand with the recorded value."""
    begin(tmp_path, load_digits)
    begin(tmp_path, load_digits, resume=True, data="digits")
    assert begin(tmp_path, load_digits, resume=True).facts == FACTS


def test_resume_fills_open_enum(tmp_path: Path) -> None:
    asked: list[DataSet] = []

    def load(settings: EnumSettings) -> Loaded:
        asked.append(settings.data)
        return Loaded([1, 2], data="digits")

    begin(tmp_path, load, EnumSettings)
    begin(tmp_path, load, EnumSettings, resume=True)
    assert asked == [DataSet.AUTO, DataSet.DIGITS]


def test_resume_other_setting_refused(tmp_path: Path) -> None:
    """The sweep is refused before the data is loaded."""
    begin(tmp_path, load_digits)
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(SettingsError, match="its data is digits, not mnist"):
        begin(tmp_path, lambda settings: pytest.fail("loaded"), resume=True, data="mnist")
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    "load",
    [
        lambda settings: Loaded([1, 2], data="mnist", mean=0.5),
        lambda settings: Loaded([1, 2], data="digits", mean=0.25),
        lambda settings: Loaded([1, 2], data="digits"),
        lambda settings: Loaded([1, 2], data="digits", mean=0.5, size=2),
        lambda settings: [1, 2],
    ],
    ids=["other text", "other number", "one less", "one more", "none"],
)
def test_resume_other_facts_refused(load: Callable[[Any], Any], tmp_path: Path) -> None:
    begin(tmp_path, load_digits)
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    with pytest.raises(SettingsError, match="other data: load_data recorded data='digits'"):
        begin(tmp_path, load, resume=True)
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before


@pytest.mark.parametrize("fact", [None, True, 3, 0.5, "text", np.float64(0.5), np.str_("text")])
def test_loaded_scalar_facts(fact: Any, tmp_path: Path) -> None:
    def load(settings: DataSettings) -> Loaded:
        return Loaded([1, 2], fact=fact)

    begin(tmp_path, load)
    assert begin(tmp_path, load, resume=True).facts == {"fact": fact}


@pytest.mark.parametrize(
    "fact", [[1], (1,), {"a": 1}, np.int64(3), np.zeros(2), Path("a"), b"a", object()]
)
def test_loaded_fact_no_scalar_refused(fact: Any) -> None:
    message = "fact 'size' of Loaded must be None, bool, int, str or a finite float, got "
    with pytest.raises(SettingsError, match=message):
        Loaded([1, 2], size=fact)


@pytest.mark.parametrize("fact", [math.nan, math.inf, -math.inf])
def test_loaded_fact_not_finite_refused(fact: float) -> None:
    """JSON has no such number, and a NaN would differ from itself on resume."""
    with pytest.raises(SettingsError, match="fact 'mean' of Loaded must be"):
        Loaded([1, 2], mean=fact)


class Frame:
    """Like a pandas object, whose `name` may be anything."""

    def __init__(self, name: Any) -> None:
        self.name = name


@pytest.mark.parametrize("name", [None, "digits", 3, ("a", "b"), np.int64(3), object()])
def test_data_with_name_attribute(name: Any, tmp_path: Path) -> None:
    assert begin(tmp_path, lambda settings: Frame(name)).facts == {}
    assert begin(tmp_path, lambda settings: Frame("other"), resume=True).facts == {}


def test_loaded_data_unwrapped() -> None:
    """Facts may have any name, also that of the data itself."""
    loaded = Loaded([1, 2], data="digits", facts=3)
    assert loaded.data == [1, 2]
    assert loaded.facts == {"data": "digits", "facts": 3}


def test_fact_named_like_engine_setting(tmp_path: Path) -> None:
    """A split's seed is a fact of the data, and does not become the sweep's seed on resume."""
    seen: list[int] = []

    def load(settings: DataSettings) -> Loaded:
        seen.append(settings.seed)
        return Loaded([1, 2], seed=42, max_epochs=1)

    begin(tmp_path, load, seed=3)
    manifest = begin(tmp_path, load, seed=3, resume=True)
    assert seen == [3, 3]
    assert (manifest.settings["seed"], manifest.facts) == (3, {"seed": 42, "max_epochs": 1})


def test_facts_of_format_1_forgotten(tmp_path: Path) -> None:
    """The data's name was recorded unasked in format 1; a job that records nothing resumes."""
    begin(tmp_path, lambda settings: Loaded([1, 2], data="digits"))
    file = tmp_path / "s" / "sweep.json"
    content = json.loads(file.read_text())
    facts = content.pop("facts")
    content.pop("scheduler")
    file.write_text(json.dumps({**content, **facts, "format": 1}))
    manifest = begin(tmp_path, lambda settings: [1, 2], resume=True)
    assert (manifest.format, manifest.facts) == (2, {})
