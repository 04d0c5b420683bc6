"""What a sweep was started with, and what it is held against."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray import tune

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.settings import LightningSettings, Settings, SettingsError
from tune_jobs.engine.search.study_search import convert_space
from tune_jobs.engine.store.manifest import Manifest, recorded_settings

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "layers": tune.choice([2, 3]), "batch_size": 32}


def make(space: Any = SPACE, metric: str = "acc", mode: str = "max", **settings: Any) -> Manifest:
    goal = Goal(metric, mode)
    return Manifest.of(LightningSettings(**settings), goal, convert_space(space), [], [])


def test_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = dataclasses.replace(make(), data="mnist")
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_same_sweep_may_go_on_with_more_trials_and_another_budget() -> None:
    now = make(num_trials=99, time_budget_s=5.0, max_concurrent=7, stop_at=0.9)
    assert make().differences(now) == []
    make().check(now)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"metric": "loss"}, "it optimises acc \\(max\\), not loss \\(max\\)"),
        ({"mode": "min"}, "it optimises acc \\(max\\), not acc \\(min\\)"),
        (
            {"space": {**SPACE, "lr": tune.loguniform(1e-3, 1e-1)}},
            "its space has lr Float\\(.*low=0.0001, .*not Float\\(.*low=0.001,",
        ),
        ({"space": {**SPACE, "layers": tune.choice([2, 4])}}, "its space has layers Categorical"),
        ({"space": {**SPACE, "batch_size": 64}}, "batch_size constant 32, not constant 64"),
        ({"space": {**SPACE, "new": tune.uniform(0, 1)}}, "its space has new absent, not Float"),
        ({"seed": 7}, "its seed is 0, not 7"),
        ({"max_epochs": 20}, "its max_epochs is 10, not 20"),
        ({"asha": "stopping"}, "its asha is promotion, not stopping"),
        ({"reduction_factor": 4.0}, "its reduction_factor is 2.0, not 4.0"),
    ],
)
def test_another_sweep_is_refused_and_the_difference_named(
    changes: dict[str, Any], difference: str
) -> None:
    with pytest.raises(SettingsError, match=difference):
        make().check(make(**changes))


def test_define_by_run_space_is_held_against_its_source() -> None:
    def one(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)

    def other(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 2)

    make(space=one).check(make(space=one))
    with pytest.raises(SettingsError, match="define-by-run"):
        make(space=one).check(make(space=other))


def test_constant_that_is_an_object_is_the_same_in_another_process() -> None:
    one, other = (make(space={**SPACE, "thing": object()}) for _ in range(2))
    assert one.differences(other) == []
    one.check(other)


def test_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    make().write(tmp_path)
    content = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(SettingsError, match=r"has format 99 and this version .* format 1"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"metric": "acc"}'])
def test_manifest_that_is_damaged_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(SettingsError, match="cannot be read"):
        Manifest.read(tmp_path)
    assert (tmp_path / "sweep.json").read_text() == content


def test_what_is_not_said_is_as_it_was(tmp_path: Path) -> None:
    make(num_trials=7, time_budget_s=60.0, name="s", enqueue="f.json").write(tmp_path)
    settings = recorded_settings(tmp_path, LightningSettings(name="s", resume=True))
    assert (settings.num_trials, settings.time_budget_s) == (7, 60.0)
    assert (settings.name, settings.resume, settings.enqueue) == ("s", True, None)


def test_sweep_that_began_when_asha_only_stopped_goes_on_so(tmp_path: Path) -> None:
    manifest = make()
    del manifest.settings["asha"]
    manifest.write(tmp_path)
    assert recorded_settings(tmp_path, LightningSettings()).asha == "stopping"


def test_setting_that_the_job_no_longer_has_is_left_out(tmp_path: Path) -> None:
    make(num_trials=7).write(tmp_path)
    assert recorded_settings(tmp_path, Settings()).num_trials == 7
