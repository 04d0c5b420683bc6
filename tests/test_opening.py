"""A sweep opened: new, resumed, or refused with nothing changed."""

import dataclasses
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ray import tune

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Kind, Outcome
from tune_jobs.engine.core.settings import LightningSettings, fixed
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.store.manifest import Manifest, recorded_settings
from tune_jobs.engine.store.opening import Request, open_sweep
from tune_jobs.engine.store.record import Record

SPACE = convert_space({"x": tune.uniform(0, 1)})
GOAL = Goal("score", "max")
DIGITS = {"data": "digits"}


@dataclass(frozen=True)
class DataSettings(LightningSettings):
    """A job's own settings, which leave its data open."""

    data: Literal["auto", "mnist", "digits"] = fixed("auto")


def settings_of(tmp_path: Path, **changes: Any) -> DataSettings:
    return DataSettings(**{"storage_path": str(tmp_path), "name": "s", **changes})


def ask_for(tmp_path: Path, **changes: Any) -> Request:
    return Request(settings_of(tmp_path, **changes), GOAL, SPACE)


def begin(tmp_path: Path, facts: dict[str, Any] = DIGITS, **changes: Any) -> Record:
    with open_sweep(ask_for(tmp_path, **changes), "s") as sweep:
        return sweep.begin(facts)


def add_running_trial(record: Record, trial_id: str = "t") -> None:
    asked = create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
    )
    record.start(trial_id, asked, {"x": 0.5})
    result = {"epoch": 1, "score": 0.5, "checkpoint_dir_name": "checkpoint_000000"}
    record.report(trial_id, 0.5, result, None)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def test_new_sweep_writes_its_files(tmp_path: Path) -> None:
    begin(tmp_path)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["study.log", "sweep.json"]
    assert Manifest.read(tmp_path / "s").facts == DIGITS


def test_new_sweep_refused_leaves_nothing(tmp_path: Path) -> None:
    request = ask_for(tmp_path, warm_start="none")
    with pytest.raises(SettingsError), open_sweep(request, "s"):
        pass
    assert not (tmp_path / "s").exists()


def test_resume_settles_open_data(tmp_path: Path) -> None:
    """Where the settings leave the data open, the recorded fact is filled in."""
    begin(tmp_path, DIGITS)
    with open_sweep(ask_for(tmp_path, resume=True), "s") as sweep:
        assert isinstance(sweep.settings, DataSettings)
        assert sweep.settings.data == "digits"
        with pytest.raises(
            SettingsError, match="recorded data='digits' before, and data='mnist' now"
        ):
            sweep.begin({"data": "mnist"})


def test_second_driver_refused(tmp_path: Path) -> None:
    """The message has the pid of the first driver."""
    begin(tmp_path)
    resumed = ask_for(tmp_path, resume=True)
    with (
        open_sweep(resumed, "s"),
        pytest.raises(SettingsError, match=f"held by the driver with pid {os.getpid()} on "),
        open_sweep(resumed, "s"),
    ):
        pass


@pytest.mark.parametrize("left", [["sweep.json"], ["sweep.json", "study.log"]])
def test_resume_driver_died_before_record(left: list[str], tmp_path: Path) -> None:
    """The sweep starts with the recorded request; nothing else was recorded."""
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([{"x": 0.1}]))
    with open_sweep(ask_for(tmp_path, num_trials=7, enqueue=str(file)), "s"):
        pass
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["sweep.json"]
    if "study.log" in left:
        (tmp_path / "s" / "study.log").write_text('{"op_code":0,"wor')
    assert recorded_settings(tmp_path / "s", DataSettings()).num_trials == 7
    record = begin(tmp_path, resume=True, num_trials=7)
    assert record.num_trials == 1
    assert Manifest.read(tmp_path / "s").facts == DIGITS


def test_resume_records_extension(tmp_path: Path) -> None:
    begin(tmp_path, num_trials=3)
    begin(tmp_path, resume=True, num_trials=9, time_budget_s=5.0)
    settings = recorded_settings(tmp_path / "s", DataSettings())
    assert (settings.num_trials, settings.time_budget_s) == (9, 5.0)


@pytest.mark.parametrize("file", ["study.log", "trials.csv", "mine.txt", "trial_0000/result.json"])
def test_resume_foreign_folder_refused(file: str, tmp_path: Path) -> None:
    """A folder without sweep.json is no sweep, or one of an older version; it stays unchanged."""
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
def test_resume_damaged_file_refused(file: str, message: str, tmp_path: Path) -> None:
    add_running_trial(begin(tmp_path))
    path = tmp_path / "s" / file
    path.write_bytes(b"\0\0\0" + path.read_bytes()[3:] + b"torn")
    before = contents(tmp_path / "s")
    with pytest.raises(SettingsError, match=message):
        begin(tmp_path, resume=True)
    assert contents(tmp_path / "s") == before


def test_resume_deleted_record_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "s" / "trial_0000").mkdir()
    (tmp_path / "s" / "study.log").unlink()
    with pytest.raises(SettingsError, match="No such file"):
        begin(tmp_path, resume=True)


def test_resume_damaged_checkpoint_refused(tmp_path: Path) -> None:
    """The trial is named, and the sweep can be resumed once the checkpoint is deleted."""
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
    with pytest.raises(SettingsError, match=f"trial 1 cannot be resumed: .* delete {checkpoint}"):
        begin(tmp_path, resume=True)
    assert contents(tmp_path / "s") == before
    (checkpoint / "checkpoint.ckpt").unlink()
    checkpoint.rmdir()
    assert begin(tmp_path, resume=True).num_trials == 3


def test_resume_enqueues_configs_once(tmp_path: Path) -> None:
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([{"x": 0.1}, {"x": 0.2}]))
    record = begin(tmp_path, enqueue=str(file))
    assert record.num_trials == 2
    assert begin(tmp_path, enqueue=str(file), resume=True, retry_failed=True).num_trials == 2


def ask_beside(tmp_path: Path, resume: bool = False, **given: Any) -> Request:
    """What is asked for with arguments of `run_sweep` beside the settings."""
    settings = settings_of(tmp_path, resume=resume, **given.pop("settings", {}))
    return Request(settings, GOAL, SPACE, **given)


def test_enqueue_beside_file(tmp_path: Path) -> None:
    """The file's come first; each config once in the life of the sweep."""
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([{"x": 0.1}, {"x": 0.2}]))
    settings = {"enqueue": str(file)}
    with open_sweep(ask_beside(tmp_path, enqueue=[{"x": 0.3}], settings=settings), "s") as sweep:
        assert queued(sweep.begin(DIGITS)) == [0.1, 0.2, 0.3]
    more = [{"x": 0.3}, {"x": 0.1}, {"x": 0.4}]
    for _ in range(2):
        with open_sweep(ask_beside(tmp_path, resume=True, enqueue=more), "s") as sweep:
            assert queued(sweep.begin(DIGITS)) == [0.1, 0.2, 0.3, 0.4]
            assert [config["x"] for config in sweep.manifest.configs] == [0.1, 0.2, 0.3, 0.4]


def queued(record: Record) -> list[float]:
    return [trial.system_attrs["fixed_params"]["x"] for trial in record.trials()]


def test_enqueue_refused_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match=r"enqueue\[1\] has 'y'; the space has x"),
        open_sweep(ask_beside(tmp_path, enqueue=[{"x": 0.3}, {"y": 0.3}]), "s"),
    ):
        pass
    assert not (tmp_path / "s").exists()


def other_study(name: str | None = "other") -> optuna.Study:
    study = optuna.create_study(direction="maximize", study_name=name)
    study.add_trial(
        create_trial(params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)}, value=0.5)
    )
    return study


def test_warm_start_given_twice_refused(tmp_path: Path) -> None:
    request = ask_beside(tmp_path, warm_start=other_study(), settings={"warm_start": "a"})
    with (
        pytest.raises(SettingsError, match="given twice: a in the settings, and study other to"),
        open_sweep(request, "s"),
    ):
        pass
    assert not (tmp_path / "s").exists()


def test_warm_start_empty_text_refused(tmp_path: Path) -> None:
    for given in ({"warm_start": ""}, {"settings": {"warm_start": ""}}):
        with (
            pytest.raises(SettingsError, match="warm_start must be the path, URL or name of a"),
            open_sweep(ask_beside(tmp_path, **given), "s"),
        ):
            pass


def test_enqueue_none_is_empty(tmp_path: Path) -> None:
    with open_sweep(ask_beside(tmp_path, enqueue=None), "s") as sweep:
        assert queued(sweep.begin(DIGITS)) == []
    with open_sweep(ask_beside(tmp_path, resume=True, enqueue=None), "s") as sweep:
        assert queued(sweep.begin(DIGITS)) == []


def test_resume_keeps_given_warm_start(tmp_path: Path) -> None:
    """It is read when the sweep starts; another one is refused afterwards."""
    with open_sweep(ask_beside(tmp_path, warm_start=other_study()), "s") as sweep:
        sweep.begin(DIGITS)
    assert recorded_settings(tmp_path / "s", DataSettings()).warm_start is None
    empty = optuna.create_study(direction="maximize", study_name="other")
    for _ in range(2):
        with open_sweep(ask_beside(tmp_path, resume=True, warm_start=empty), "s") as sweep:
            sweep.begin(DIGITS)
            assert len(sweep.manifest.others) == 1
    before = contents(tmp_path / "s")
    unnamed = other_study(None)
    for given, named in (
        (other_study("b"), "study b"), (unnamed, unnamed.study_name), (Path("b.db"), "b.db"),
    ):  # fmt: skip
        with (
            pytest.raises(SettingsError, match=f"its warm_start is study other, not .*{named}"),
            open_sweep(ask_beside(tmp_path, resume=True, warm_start=given), "s"),
        ):
            pass
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("name", ["other", None])
def test_resume_without_given_warm_start(name: str | None, tmp_path: Path) -> None:
    """Or with a study that Optuna has named: it has another name in each process."""
    with open_sweep(ask_beside(tmp_path, warm_start=other_study(name)), "s") as sweep:
        sweep.begin(DIGITS)
    for given in (None, other_study(name)) * 2:
        with open_sweep(ask_beside(tmp_path, resume=True, warm_start=given), "s") as sweep:
            sweep.begin(DIGITS)
            assert len(sweep.manifest.others) == 1


def test_resume_without_warm_start_setting(tmp_path: Path) -> None:
    path = str(tmp_path / "a.db")
    optuna.copy_study(
        from_study_name="other", from_storage=other_study()._storage,
        to_storage=f"sqlite:///{path}",
    )  # fmt: skip
    with open_sweep(ask_beside(tmp_path, settings={"warm_start": path}), "s") as sweep:
        sweep.begin(DIGITS)
    for given in ({}, {"warm_start": path}):
        with open_sweep(ask_beside(tmp_path, resume=True, settings=given), "s") as sweep:
            sweep.begin(DIGITS)
            assert len(sweep.manifest.others) == 1
    with (
        pytest.raises(SettingsError, match=r"its warm_start is .*, not study b"),
        open_sweep(ask_beside(tmp_path, resume=True, warm_start=other_study("b")), "s"),
    ):
        pass


def test_resume_warm_start_moved(tmp_path: Path) -> None:
    """The same study may be given in the settings first and to `run_sweep` later."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "a.log"))
    )
    optuna.copy_study(
        from_study_name="other", from_storage=other_study()._storage, to_storage=storage
    )
    path = str(tmp_path / "a.log")
    with open_sweep(ask_beside(tmp_path, settings={"warm_start": path}), "s") as sweep:
        sweep.begin(DIGITS)
    for _ in range(2):
        with open_sweep(ask_beside(tmp_path, resume=True, warm_start=Path(path)), "s") as sweep:
            sweep.begin(DIGITS)


def test_manifest_hides_password(tmp_path: Path) -> None:
    """It is not needed again: the other study is read once."""
    settings = settings_of(tmp_path, warm_start="mysql://me:secret@host/db#a")
    manifest = Manifest.of(settings, GOAL, SPACE, None)
    assert manifest.settings["warm_start"] == "mysql://me:***@host/db#a"
    changed = dataclasses.replace(settings, warm_start="mysql://me:newer@host/db#a")
    manifest.check(Manifest.of(changed, GOAL, SPACE, None), changed)


def test_resume_keeps_warm_start_trials(tmp_path: Path) -> None:
    """The other sweep is read once, when the sweep starts."""
    other = begin(tmp_path)
    add_running_trial(other)
    other.end("t", Outcome.of(Kind.LAST_EPOCH), 0.5)
    settings = dataclasses.replace(settings_of(tmp_path), name="t", warm_start="s")
    with open_sweep(Request(settings, GOAL, SPACE), "t") as sweep:
        assert len(sweep.manifest.others) == 1
        sweep.begin(DIGITS)
    (tmp_path / "s" / "sweep.json").unlink()
    resumed = dataclasses.replace(settings, resume=True)
    with open_sweep(Request(resumed, GOAL, SPACE), "t") as sweep:
        sweep.begin(DIGITS)
        assert len(sweep.manifest.others) == 1
