"""The sweep's folder: made once, taken away when nothing was spent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import optuna
import pytest
from pyarrow import fs

from tune_jobs.engine.core.settings import SettingsError
from tune_jobs.engine.store.folder import (
    SweepFolder,
    new_folder,
    old_folder,
    storage_uri,
    working_files,
)
from tune_jobs.engine.store.study import copy_to_memory, load_study, study_storage


def test_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with new_folder(str(tmp_path / "a" / "b"), "s") as folder:
        assert folder.local == tmp_path / "a" / "b" / "s"
        assert not folder.is_remote
        (folder.local / "study.log").touch()
    assert (folder.local / "study.log").exists()


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
    (tmp_path / "s" / "mine.txt").touch()
    with (
        pytest.raises(SettingsError, match=r"name 's' is taken: .* choose another --name"),
        new_folder(str(tmp_path), "s"),
    ):
        pass
    assert (tmp_path / "s" / "mine.txt").exists()


@pytest.mark.parametrize("is_url", [False, True])
def test_folder_of_a_driver_that_died_as_it_began_may_be_used(is_url: bool, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.lock").touch()
    with new_folder(f"file://{tmp_path}" if is_url else str(tmp_path), "s") as folder:
        assert folder.path == str(tmp_path / "s")
    assert (tmp_path / "s" / "sweep.lock").exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_path_below_a_file_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    with (
        pytest.raises(SettingsError, match=r"cannot be written .* --storage-path"),
        new_folder(str(path), "s"),
    ):
        pass


@contextmanager
def new_work(url: str, lost: Event | None = None) -> Iterator[SweepFolder]:
    with new_folder(url, "s") as folder, working_files(folder, (), lost or Event()):
        yield folder


@contextmanager
def old_work(url: str) -> Iterator[SweepFolder]:
    with old_folder(url, "s") as folder, working_files(folder, ("study.log",), Event()):
        yield folder


def test_url_gets_its_files_at_the_end(tmp_path: Path) -> None:
    with new_work(f"file://{tmp_path}/far") as folder:
        (folder.local / "best.json").write_text("{}")
        assert not list((tmp_path / "far" / "s").iterdir())  # the probe is gone
    assert (tmp_path / "far" / "s" / "best.json").read_text() == "{}"
    with (
        pytest.raises(SettingsError, match="is taken"),
        new_folder(f"file://{tmp_path}/far", "s"),
    ):
        pass


@pytest.mark.parametrize("url", ["nowhere://x", "file:///proc/nope"])
def test_url_that_cannot_be_written_is_refused_at_once(url: str) -> None:
    with (
        pytest.raises(SettingsError, match=f"storage_path {url}/s cannot be written"),
        new_folder(url, "s"),
    ):
        raise AssertionError("must not come this far")


def test_url_where_nothing_was_written_is_left_as_it_was(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    with pytest.raises(SettingsError, match="no"), new_work(f"file://{far}") as folder:
        raise SettingsError("no")
    assert not list(far.iterdir())
    assert not folder.local.exists()


def test_results_that_cannot_be_copied_to_their_url_are_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("bucket gone")

    monkeypatch.setattr(fs, "copy_files", fail)
    url = f"file://{tmp_path}/far"
    with (
        pytest.raises(OSError, match=f"could not be copied to {url}/s; they are in"),
        new_work(url) as folder,
    ):
        (folder.local / "best.json").write_text("{}")
    assert (folder.local / "best.json").read_text() == "{}"


def test_study_at_a_url_is_loaded_and_outlives_its_file(tmp_path: Path) -> None:
    with new_work(f"file://{tmp_path}") as folder:
        study = optuna.create_study(storage=study_storage(folder.local), study_name="s")
        study.add_trial(optuna.trial.create_trial(value=0.5))
        copy = copy_to_memory(study)
    assert copy.best_value == 0.5
    assert load_study(f"file://{tmp_path}/s").best_value == 0.5


def die_at_a_url(url: str, content: str) -> SweepFolder:
    """What a driver leaves that is killed after its last copy: here the file has got further."""
    with new_work(url) as folder:
        (folder.local / "study.log").write_text("one\n")
    folder.local.mkdir(parents=True)
    (folder.local / "study.log").write_text(content)
    return folder


def test_what_a_killed_driver_had_not_copied_to_its_url_is_gone_on_from(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/far"
    die_at_a_url(url, "one\ntwo\n")
    with old_work(url) as folder:
        assert (folder.local / "study.log").read_text() == "one\ntwo\n"
    assert (tmp_path / "far" / "s" / "study.log").read_text() == "one\ntwo\n"
    assert not folder.local.exists()


def test_sweep_that_is_refused_is_left_as_it_is_at_its_url_and_here(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/far"
    die_at_a_url(url, "one\ndamaged\n")
    with pytest.raises(SettingsError), old_work(url) as folder:
        raise SettingsError("line 2 is damaged")
    assert (tmp_path / "far" / "s" / "study.log").read_text() == "one\n"
    assert (folder.local / "study.log").read_text() == "one\ndamaged\n"


def test_driver_that_has_lost_its_sweep_leaves_the_url_to_its_successor(tmp_path: Path) -> None:
    lost = Event()
    with new_work(f"file://{tmp_path}/far", lost) as folder:
        (folder.local / "study.log").write_text("mine\n")
        (tmp_path / "far" / "s" / "study.log").write_text("theirs\n")
        lost.set()
    assert (tmp_path / "far" / "s" / "study.log").read_text() == "theirs\n"
    assert (folder.local / "study.log").read_text() == "mine\n"


def test_what_another_machine_did_at_the_url_counts_and_what_is_here_is_kept(
    tmp_path: Path,
) -> None:
    url = f"file://{tmp_path}/far"
    die_at_a_url(url, "one\nhere\n")
    (tmp_path / "far" / "s" / "study.log").write_text("one\nthere\n")
    with old_work(url) as folder:
        assert (folder.local / "study.log").read_text() == "one\nthere\n"
        (aside,) = folder.local.glob("study.log.*")
        assert aside.read_text() == "one\nhere\n"


def test_sweep_that_is_not_there_cannot_be_gone_on_with(tmp_path: Path) -> None:
    for storage in (str(tmp_path), f"file://{tmp_path}"):
        with (
            pytest.raises(SettingsError, match=r"no sweep 's' in .* without --resume"),
            old_folder(storage, "s"),
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
