"""The sweep's folder: made once, taken away when nothing was spent."""

from pathlib import Path

import pytest

from tune_jobs.engine.results import load_study
from tune_jobs.engine.settings import SettingsError
from tune_jobs.engine.storage import new_folder, storage_uri


def test_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with new_folder(str(tmp_path / "a" / "b"), "s") as folder:
        assert folder == tmp_path / "a" / "b" / "s"
        (folder / "study.log").touch()
    assert (folder / "study.log").exists()


@pytest.mark.parametrize("error", [SettingsError, ZeroDivisionError, KeyboardInterrupt])
def test_failure_inside_takes_away_what_was_made_and_no_more(
    error: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(error), new_folder(str(tmp_path / "there" / "new"), "s"):
        raise error
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert not list((tmp_path / "there").iterdir())


def test_folder_that_holds_something_stays(tmp_path: Path) -> None:
    with pytest.raises(SettingsError), new_folder(str(tmp_path), "s"):
        raise SettingsError(f"no, but {(tmp_path / 's' / 'study.log').touch()}")
    assert (tmp_path / "s" / "study.log").exists()


def test_name_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with (
        pytest.raises(SettingsError, match=r"name 's' is taken: .* choose another --name"),
        new_folder(str(tmp_path), "s"),
    ):
        pass
    assert (tmp_path / "s").is_dir()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_path_below_a_file_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    with (
        pytest.raises(SettingsError, match=r"cannot be written .* --storage-path"),
        new_folder(str(path), "s"),
    ):
        pass


def test_url_gets_its_files_at_the_end(tmp_path: Path) -> None:
    with new_folder(f"file://{tmp_path}/far", "s") as folder:
        (folder / "best.json").write_text("{}")
        assert not (tmp_path / "far" / "s").exists()
    assert (tmp_path / "far" / "s" / "best.json").read_text() == "{}"
    with (
        pytest.raises(SettingsError, match="is taken"),
        new_folder(f"file://{tmp_path}/far", "s"),
    ):
        pass


def test_url_that_no_file_system_knows_is_refused() -> None:
    with (
        pytest.raises(SettingsError, match="storage_path nowhere://x/s cannot be written"),
        new_folder("nowhere://x", "s"),
    ):
        pass


def test_relative_path_is_taken_from_here_and_a_url_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_uri("./results") == str(tmp_path / "results")
    assert storage_uri("s3://bucket/results") == "s3://bucket/results"


def test_study_of_a_folder_that_is_no_sweep_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_study(tmp_path)
    assert not list(tmp_path.iterdir())
