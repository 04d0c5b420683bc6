"""A sweep opened: new, as it was left, or refused with nothing changed."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ray import tune

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.settings import LightningSettings, SettingsError
from tune_jobs.engine.search.study_search import convert_space
from tune_jobs.engine.store.manifest import Manifest, recorded_settings
from tune_jobs.engine.store.opening import open_sweep
from tune_jobs.engine.store.record import Record

SPACE = convert_space({"x": tune.uniform(0, 1)})
GOAL = Goal("score", "max")


def settings_of(tmp_path: Path, **changes: Any) -> LightningSettings:
    return LightningSettings(**{"storage_path": str(tmp_path), "name": "s", **changes})


def begin(tmp_path: Path, data: str | None = "digits", **changes: Any) -> Record:
    with open_sweep(settings_of(tmp_path, **changes), "s", GOAL, SPACE) as sweep:
        return sweep.begin(data)


def add_running_trial(record: Record, trial_id: str = "t") -> None:
    asked = create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
    )
    record.start(trial_id, asked)
    result = {"epoch": 1, "score": 0.5, "checkpoint_dir_name": "checkpoint_000000"}
    record.report(trial_id, 0.5, result, None)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_new_sweep_writes_what_it_was_started_with_and_its_record(tmp_path: Path) -> None:
    begin(tmp_path)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["study.log", "sweep.json"]
    assert Manifest.read(tmp_path / "s").data == "digits"


def test_sweep_that_is_refused_before_it_begins_leaves_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, warm_start="none")
    with pytest.raises(SettingsError), open_sweep(settings, "s", GOAL, SPACE):
        pass
    assert not (tmp_path / "s").exists()


def test_data_set_is_the_recorded_one_where_the_settings_leave_it_open(tmp_path: Path) -> None:
    begin(tmp_path, data="digits")
    with open_sweep(settings_of(tmp_path, resume=True), "s", GOAL, SPACE) as sweep:
        assert isinstance(sweep.settings, LightningSettings)
        assert sweep.settings.data == "digits"
        with pytest.raises(SettingsError, match="its data is digits, not mnist"):
            sweep.begin("mnist")


def test_second_driver_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    begin(tmp_path)
    resumed = settings_of(tmp_path, resume=True)
    with (
        open_sweep(resumed, "s", GOAL, SPACE),
        pytest.raises(SettingsError, match=f"held by the driver with pid {os.getpid()} on "),
        open_sweep(resumed, "s", GOAL, SPACE),
    ):
        pass


@pytest.mark.parametrize("left", [["sweep.json"], ["sweep.json", "study.log"]])
def test_sweep_whose_driver_died_before_it_had_begun_is_begun_as_it_was_asked_for(
    left: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([{"x": 0.1}]))
    settings = settings_of(tmp_path, num_trials=7, enqueue=str(file))
    with open_sweep(settings, "s", GOAL, SPACE):
        pass  # killed: nothing has been recorded but what was asked
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["sweep.json"]
    if "study.log" in left:
        (tmp_path / "s" / "study.log").write_text('{"op_code":0,"wor')
    assert recorded_settings(tmp_path / "s", LightningSettings()).num_trials == 7
    record = begin(tmp_path, resume=True, num_trials=7)
    assert record.num_trials == 1
    assert Manifest.read(tmp_path / "s").data == "digits"


def test_extension_is_known_to_the_next_driver(tmp_path: Path) -> None:
    begin(tmp_path, num_trials=3)
    begin(tmp_path, resume=True, num_trials=9, time_budget_s=5.0)
    settings = recorded_settings(tmp_path / "s", LightningSettings())
    assert (settings.num_trials, settings.time_budget_s) == (9, 5.0)


@pytest.mark.parametrize("file", ["study.log", "trials.csv", "mine.txt", "trial_0000/result.json"])
def test_folder_that_is_no_sweep_or_of_another_version_is_refused_and_left_alone(
    file: str, tmp_path: Path
) -> None:
    path = tmp_path / "s" / file
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    before = contents(tmp_path / "s")
    with pytest.raises(SettingsError, match=r"has no sweep.json: it is no sweep"):
        begin(tmp_path, resume=True)
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("file", "message"), [("study.log", "line 1 is damaged"), ("sweep.json", "cannot be read")]
)
def test_damaged_sweep_is_refused_and_left_alone(file: str, message: str, tmp_path: Path) -> None:
    add_running_trial(begin(tmp_path))
    path = tmp_path / "s" / file
    path.write_bytes(b"\0\0\0" + path.read_bytes()[3:] + b"torn")
    before = contents(tmp_path / "s")
    with pytest.raises(SettingsError, match=message):
        begin(tmp_path, resume=True)
    assert contents(tmp_path / "s") == before


def test_record_that_is_gone_is_refused_where_there_are_trials(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "s" / "trial_0000").mkdir()
    (tmp_path / "s" / "study.log").unlink()
    with pytest.raises(SettingsError, match="No such file"):
        begin(tmp_path, resume=True)


def test_trial_whose_checkpoint_is_damaged_is_named_and_goes_on_once_it_is_deleted(
    tmp_path: Path,
) -> None:
    record = begin(tmp_path)
    for number in range(3):
        add_running_trial(record, f"t{number}")
        checkpoint = tmp_path / "s" / f"trial_000{number}" / "checkpoint_000000"
        checkpoint.mkdir(parents=True)
        with zipfile.ZipFile(checkpoint / "checkpoint.ckpt", "w") as file:
            file.writestr("weights", b"")
    checkpoint = tmp_path / "s" / "trial_0001" / "checkpoint_000000"
    (checkpoint / "checkpoint.ckpt").write_bytes(b"PK cut off")
    before = contents(tmp_path / "s")
    with pytest.raises(SettingsError, match=f"trial 1 cannot go on: .* delete {checkpoint}"):
        begin(tmp_path, resume=True)
    assert contents(tmp_path / "s") == before
    (checkpoint / "checkpoint.ckpt").unlink()
    checkpoint.rmdir()
    assert begin(tmp_path, resume=True).num_trials == 3


def test_configs_and_retries_are_put_into_the_queue(tmp_path: Path) -> None:
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([{"x": 0.1}, {"x": 0.2}]))
    record = begin(tmp_path, enqueue=str(file))
    assert record.num_trials == 2
    assert begin(tmp_path, enqueue=str(file), resume=True, retry_failed=True).num_trials == 2


def test_what_was_learnt_from_is_not_read_again(tmp_path: Path) -> None:
    other = begin(tmp_path)
    add_running_trial(other)
    other.end("t", TrialState.COMPLETE, "last epoch", 0.5)
    settings = dataclasses.replace(settings_of(tmp_path), name="t", warm_start="s")
    with open_sweep(settings, "t", GOAL, SPACE) as sweep:
        assert len(sweep.manifest.others) == 1
        sweep.begin("digits")
    (tmp_path / "s" / "sweep.json").unlink()
    resumed = dataclasses.replace(settings, resume=True)
    with open_sweep(resumed, "t", GOAL, SPACE) as sweep:
        sweep.begin("digits")
        assert len(sweep.manifest.others) == 1
