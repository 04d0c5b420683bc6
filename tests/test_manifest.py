"""What a sweep was started with, and what may differ when it is resumed."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Optional

import numpy as np
import optuna
import pytest
from ray import tune

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.settings import LightningSettings, Settings, fixed, momentary
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.store.manifest import Manifest, recorded_settings
from tune_jobs.engine.store.opening import Request, open_sweep

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "layers": tune.choice([2, 3]), "batch_size": 32}
GOAL = Goal("acc", "max")


def make(
    space: Any = SPACE,
    metric: str = "acc",
    mode: str = "max",
    scheduler: str | None = None,
    **settings: Any,
) -> Manifest:
    goal = Goal(metric, mode)
    return Manifest.of(LightningSettings(**settings), goal, convert_space(space), scheduler)


def check(before: Manifest, now: Manifest) -> None:
    before.check(now, LightningSettings())


def test_manifest_reads_what_it_wrote(tmp_path: Path) -> None:
    manifest = dataclasses.replace(make(scheduler="FIFOScheduler"), facts={"data": "mnist"})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_manifest_accepts_extension() -> None:
    """More trials, another budget and another number in parallel make no other sweep."""
    check(make(), make(num_trials=99, time_budget_s=5.0, max_concurrent=7, stop_at=0.9))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"metric": "loss"}, "it optimizes acc \\(max\\), not loss \\(max\\)"),
        ({"mode": "min"}, "it optimizes acc \\(max\\), not acc \\(min\\)"),
        (
            {"space": {**SPACE, "lr": tune.loguniform(1e-3, 1e-1)}},
            "its space has lr Float\\(.*low=0.0001, .*not Float\\(.*low=0.001,",
        ),
        ({"space": {**SPACE, "layers": tune.choice([2, 4])}}, "its space has layers Categorical"),
        ({"space": {**SPACE, "batch_size": 64}}, "batch_size constant 32, not constant 64"),
        ({"space": {**SPACE, "new": tune.uniform(0, 1)}}, "its space has new absent, not Float"),
        ({"scheduler": "FIFOScheduler"}, "its scheduler is the engine's own, not FIFO"),
        ({"seed": 7}, "its seed is 0, not 7"),
        ({"max_epochs": 20}, "its max_epochs is 10, not 20"),
        ({"asha": "stopping"}, "its asha is promotion, not stopping"),
        ({"reduction_factor": 4.0}, "its reduction_factor is 2.0, not 4.0"),
    ],
)
def test_manifest_other_sweep_refused(changes: dict[str, Any], difference: str) -> None:
    with pytest.raises(SettingsError, match=difference):
        check(make(), make(**changes))


def test_manifest_function_source_not_compared() -> None:
    """What it asks for is, by `check_asked`; the source is there for people to read."""

    def one(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    def other(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 2)

    assert "suggest_float('x', 0, 1)" in make(space=one).space["(define-by-run)"]
    check(make(space=one), make(space=other))


def test_manifest_function_is_no_dict() -> None:
    def space(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    with pytest.raises(SettingsError, match="its space is a dict, not a define-by-run function"):
        check(make(), make(space=space))
    with pytest.raises(SettingsError, match="its space is a define-by-run function, not a dict"):
        check(make(space=space), make())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"c": np.array([0.2, 0.8])}, {"c": np.array([0.3, 0.7])}),
        ({"c": {1: {"d": (1, Path)}}}, {"c": {1: {"d": (1, Enum)}}}),
        ({"x": tune.qloguniform(1, 8, 1)}, {"x": tune.qloguniform(1, 8, 0.5)}),
        ({"x": tune.choice([1, 2])}, {"x": tune.grid_search([1, 2])}),
        ({"x": tune.choice([(1,), (2,)])}, {"x": tune.choice([(1,), (3,)])}),
    ],
)
def test_manifest_other_values_refused(one: dict[str, Any], other: dict[str, Any]) -> None:
    before = make(space={**SPACE, **one})
    check(before, make(space={**SPACE, **one}))
    with pytest.raises(SettingsError, match="its space has"):
        check(before, make(space={**SPACE, **other}))


def test_manifest_constants_as_before() -> None:
    """A sweep of an earlier version is resumed: constants taken apart, arrays by their type."""
    nested = {"m": {"sizes": {"a": [1, 2], "b": {}}, "w": np.arange(2)}, "t": (1, 2)}
    now = make(space={"x": tune.uniform(0, 1), **nested})
    before = dataclasses.replace(
        now,
        space={
            "x": "Float(step=None, low=0.0, high=1.0, log=False)",
            "m/sizes/a": "constant [1, 2]",
            "m/w": 'constant "ndarray"',
            "t": "constant [1, 2]",
        },
        constants={},
    )
    check(before, now)


@pytest.mark.parametrize("constant", [{(1, 2): 3}, [{(1, 2): [3]}], {None: 1}, {1, 2}, Path])
def test_manifest_holds_any_constant(constant: Any, tmp_path: Path) -> None:
    manifest = make(space={**SPACE, "c": constant})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_manifest_object_constant() -> None:
    """A constant that is an object is described alike in another process."""
    one, other = (make(space={**SPACE, "thing": object()}) for _ in range(2))
    assert one == other
    check(one, other)


def test_manifest_newer_format_refused(tmp_path: Path) -> None:
    make().write(tmp_path)
    content = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(SettingsError, match=r"has format 99, and this version .* formats 1 to 2;"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"format": 1}', '{"format": 2}', '{"metric": "acc"}'],
)
def test_manifest_damaged_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(SettingsError, match="cannot be read"):
        Manifest.read(tmp_path)
    assert (tmp_path / "sweep.json").read_text() == content


def write_format_1(folder: Path, loaded: str | None, **settings: Any) -> None:
    """A manifest of the format before a job's own settings class named its data."""
    content = {
        "format": 1,
        "metric": "acc",
        "mode": "max",
        "space": make().space,
        "settings": settings,
        "data": loaded,
        "configs": [{"lr": 0.01}],
        "others": [],
    }
    (folder / "sweep.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("loaded", "facts"), [("digits", {"data": "digits"}), (None, {})])
def test_format_1_facts(loaded: str | None, facts: dict[str, str], tmp_path: Path) -> None:
    write_format_1(tmp_path, loaded, seed=3, max_epochs=9, asha="promotion", data="auto")
    manifest = Manifest.read(tmp_path)
    assert manifest.facts == facts
    assert (manifest.metric, manifest.mode, manifest.space) == ("acc", "max", make().space)
    assert (manifest.scheduler, manifest.configs) == (None, [{"lr": 0.01}])
    check(manifest, make(seed=3, max_epochs=9))
    with pytest.raises(SettingsError, match="its seed is 3, not 4"):
        check(manifest, make(seed=4, max_epochs=9))


def test_format_1_without_asha(tmp_path: Path) -> None:
    """A sweep that was started when ASHA only stopped trials is resumed with that kind."""
    write_format_1(tmp_path, None, reduction_factor=2.0)
    assert recorded_settings(tmp_path, LightningSettings()).asha == "stopping"
    check(Manifest.read(tmp_path), make(asha="stopping"))
    with pytest.raises(SettingsError, match="its asha is stopping, not promotion"):
        check(Manifest.read(tmp_path), make(asha="promotion"))


def test_format_1_without_epochs(tmp_path: Path) -> None:
    """Plain Settings have no ASHA, and get none."""
    write_format_1(tmp_path, None, num_trials=7)
    assert Manifest.read(tmp_path).settings == {"num_trials": 7}
    assert recorded_settings(tmp_path, Settings()).num_trials == 7


def test_recorded_settings_skip_momentary(tmp_path: Path) -> None:
    """What is left out keeps its previous value, except momentary settings."""
    make(num_trials=7, time_budget_s=60.0, name="s", enqueue="f.json").write(tmp_path)
    settings = recorded_settings(tmp_path, LightningSettings(name="s", resume=True))
    assert (settings.num_trials, settings.time_budget_s) == (7, 60.0)
    assert (settings.name, settings.resume, settings.enqueue) == ("s", True, None)


def test_recorded_settings_skip_removed(tmp_path: Path) -> None:
    """A setting that the job no longer has is left out."""
    make(num_trials=7).write(tmp_path)
    assert recorded_settings(tmp_path, Settings()).num_trials == 7


class Kind(Enum):
    SMALL = "small"
    LARGE = 2


@dataclass(frozen=True)
class OwnSettings(LightningSettings):
    """A job's own settings, one of each type that can be recorded."""

    folder: Path = Path("data")
    folder_or_none: Path | None = None
    size: tuple[int, int] = (28, 28)
    names: tuple[str, ...] = ()
    kind: Kind = Kind.SMALL
    depth: Optional[int] = None  # noqa: UP045 - a user may write it
    layers: list[list[int]] = field(default_factory=list)
    by_epoch: dict[int, float] = field(default_factory=dict)
    classes: frozenset[str] = frozenset()
    margin: float = fixed(0.5)
    shape: tuple[int, ...] = fixed((1, 2))
    note: str = momentary("none")
    thing: Any = momentary(factory=object)  # noqa: RUF009


OWN = {
    "folder": Path("/elsewhere"),
    "folder_or_none": Path("there"),
    "size": (8, 9),
    "names": ("a", "b"),
    "kind": Kind.LARGE,
    "depth": 3,
    "layers": [[1, 2], [], [3]],
    "by_epoch": {1: 0.5, 10: 0.25},
    "classes": frozenset({"x"}),
    "margin": 0.25,
    "shape": (3,),
}


def record(folder: Path, settings: Settings) -> Manifest:
    manifest = Manifest.of(settings, GOAL, convert_space(SPACE), None)
    manifest.write(folder)
    return Manifest.read(folder)


def test_own_settings_round_trip(tmp_path: Path) -> None:
    """Every value comes back with its own type, not with that of JSON."""
    manifest = record(tmp_path, OwnSettings(**OWN, note="now", max_epochs=7))
    assert not {"note", "thing"} & manifest.settings.keys()
    resumed = recorded_settings(tmp_path, OwnSettings(note="later"))
    assert {name: getattr(resumed, name) for name in OWN} == OWN
    assert type(resumed.folder) is type(Path())
    assert (resumed.max_epochs, resumed.note) == (7, "later")


def test_own_settings_defaults_round_trip(tmp_path: Path) -> None:
    record(tmp_path, OwnSettings())
    thing = object()
    given = OwnSettings(thing=thing)
    assert recorded_settings(tmp_path, given) == given


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"margin": 0.75}, "its margin is 0.5, not 0.75"),
        ({"shape": (1, 3)}, r"its shape is \[1, 2\], not \[1, 3\]"),
    ],
)
def test_own_fixed_setting_refused(
    changes: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    manifest = record(tmp_path, OwnSettings())
    settings = OwnSettings(**changes)
    now = Manifest.of(settings, GOAL, convert_space(SPACE), None)
    with pytest.raises(SettingsError, match=difference):
        manifest.check(now, settings)


@pytest.mark.parametrize("changes", [{"size": (1, 1)}, {"kind": Kind.LARGE}, {"note": "other"}])
def test_own_kept_setting_changes(changes: dict[str, Any], tmp_path: Path) -> None:
    manifest = record(tmp_path, OwnSettings())
    settings = OwnSettings(**changes)
    manifest.check(Manifest.of(settings, GOAL, convert_space(SPACE), None), settings)


def test_own_new_fixed_setting(tmp_path: Path) -> None:
    """A fixed setting that the job did not have yet may have any value."""
    manifest = record(tmp_path, LightningSettings())
    settings = OwnSettings(margin=0.75)
    manifest.check(Manifest.of(settings, GOAL, convert_space(SPACE), None), settings)


@dataclass(frozen=True)
class IntegerKind(LightningSettings):
    kind: int = 0


def test_own_setting_changed_type(tmp_path: Path) -> None:
    """The job's setting has another type than when the sweep was started."""
    record(tmp_path, OwnSettings())
    with pytest.raises(SettingsError, match="kind"):
        recorded_settings(tmp_path, IntegerKind())


class Thing:
    pass


def settings_with(annotation: Any, value: Any) -> Settings:
    """Settings with a setting `odd` of this type."""
    odd = ("odd", annotation, field(default_factory=lambda: value))
    kind = dataclasses.make_dataclass("OddSettings", [odd], bases=(Settings,), frozen=True)
    settings: Settings = kind(name="s")
    return settings


UNRECORDABLE = [
    pytest.param(Thing, Thing(), id="object"),
    pytest.param(Callable[[], int], len, id="function"),
    pytest.param(np.ndarray, np.zeros(2), id="array"),
    pytest.param(Any, (1, 2), id="tuple as Any"),
    pytest.param(float, math.nan, id="not a number"),
    pytest.param(int, "three", id="other type"),
]


@pytest.mark.parametrize(("annotation", "value"), UNRECORDABLE)
def test_unrecordable_setting_refused(annotation: Any, value: Any, tmp_path: Path) -> None:
    """A setting that would not come back is refused before anything is created."""
    settings = dataclasses.replace(settings_with(annotation, value), storage_path=str(tmp_path))
    request = Request(settings, GOAL, convert_space(SPACE))
    message = "of OddSettings cannot be recorded for --resume: "
    with pytest.raises(SettingsError, match=message), open_sweep(request, "s"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("annotation", "value"), UNRECORDABLE)
def test_unrecordable_setting_message(annotation: Any, value: Any) -> None:
    """One sentence that names the setting, without the text of the library behind it."""
    with pytest.raises(SettingsError, match=r"\bodd\b") as info:
        Manifest.of(settings_with(annotation, value), GOAL, convert_space(SPACE), None)
    message = str(info.value)
    assert "\n" not in message
    assert "pydantic" not in message
    assert ". " not in message


@pytest.mark.parametrize(
    "settings",
    [
        Settings(gpus_per_trial=0),
        Settings(gpus_per_trial=1, cpus_per_trial=2, stop_at=1, time_budget_s=5),
        Settings(stop_at=np.float64(0.5)),
    ],
)
def test_whole_number_recorded_silently(settings: Settings, tmp_path: Path) -> None:
    """A whole number where a setting is annotated as float; a warning would fail the test."""
    record(tmp_path, settings)
    assert recorded_settings(tmp_path, Settings()) == settings
