"""The sweep's folder: created once, removed if the sweep did not start; its copy at a URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import optuna
import pytest
from pyarrow import fs

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.store.folder import (
    SweepFolder,
    new_folder,
    old_folder,
    storage_uri,
    working_files,
)
from tune_jobs.engine.store.study import copy_to_memory, load_study, study_storage


def test_new_folder_creates_parents(tmp_path: Path) -> None:
    with new_folder(str(tmp_path / "a" / "b"), "s") as folder:
        assert folder.local == tmp_path / "a" / "b" / "s"
        assert not folder.is_remote
        (folder.local / "study.log").touch()
    assert (folder.local / "study.log").exists()


@pytest.mark.parametrize("error", [SettingsError, ZeroDivisionError, KeyboardInterrupt])
def test_new_folder_error_removes_created(error: type[BaseException], tmp_path: Path) -> None:
    """Folders that existed before stay."""
    (tmp_path / "there").mkdir()
    with pytest.raises(error), new_folder(str(tmp_path / "there" / "new"), "s"):
        raise error
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert not list((tmp_path / "there").iterdir())


def test_new_folder_error_keeps_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError), new_folder(str(tmp_path), "s"):
        raise SettingsError(f"no, but {(tmp_path / 's' / 'study.log').touch()}")
    assert (tmp_path / "s" / "study.log").exists()


def test_new_folder_existing_name_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").touch()
    with (
        pytest.raises(SettingsError, match=r"sweep 's' already exists: .* choose another --name"),
        new_folder(str(tmp_path), "s"),
    ):
        pass
    assert (tmp_path / "s" / "mine.txt").exists()


@pytest.mark.parametrize("is_url", [False, True])
def test_new_folder_reuses_leftovers(is_url: bool, tmp_path: Path) -> None:
    """A driver that died as it began leaves its lock; its folder counts as free."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.lock").touch()
    with new_folder(f"file://{tmp_path}" if is_url else str(tmp_path), "s") as folder:
        assert folder.path == str(tmp_path / "s")
    assert (tmp_path / "s" / "sweep.lock").exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_new_folder_below_file_refused(below: str, tmp_path: Path) -> None:
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


def test_url_files_uploaded(tmp_path: Path) -> None:
    """The files are at the URL when the sweep ends; then its name is taken."""
    with new_work(f"file://{tmp_path}/far") as folder:
        (folder.local / "best.json").write_text("{}")
        assert not list((tmp_path / "far" / "s").iterdir())  # the probe was deleted
    assert (tmp_path / "far" / "s" / "best.json").read_text() == "{}"
    with (
        pytest.raises(SettingsError, match="already exists"),
        new_folder(f"file://{tmp_path}/far", "s"),
    ):
        pass


@pytest.mark.parametrize("url", ["nowhere://x", "file:///proc/nope"])
def test_url_unwritable_refused(url: str) -> None:
    with (
        pytest.raises(SettingsError, match=f"storage_path {url}/s cannot be written"),
        new_folder(url, "s"),
    ):
        raise AssertionError("must not come this far")


def test_url_refused_sweep_leaves_nothing(tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    with pytest.raises(SettingsError, match="no"), new_work(f"file://{far}") as folder:
        raise SettingsError("no")
    assert not list(far.iterdir())
    assert not folder.local.exists()


def test_url_failed_upload_keeps_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the local folder, where the results stay."""

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


def test_url_study_loads(tmp_path: Path) -> None:
    """The study is a copy in memory, which outlives its file."""
    with new_work(f"file://{tmp_path}") as folder:
        storage = study_storage(folder.local)
        study = optuna.create_study(storage=storage, study_name="s")
        study.add_trial(optuna.trial.create_trial(value=0.5))
        copy = copy_to_memory(storage, "s")
    assert copy.best_value == 0.5
    assert load_study(f"file://{tmp_path}/s").best_value == 0.5


def die_at_url(url: str, content: str) -> SweepFolder:
    """What a driver leaves that is killed after its last upload: the local file goes further."""
    with new_work(url) as folder:
        (folder.local / "study.log").write_text("one\n")
    folder.local.mkdir(parents=True)
    (folder.local / "study.log").write_text(content)
    return folder


def test_url_resume_uses_local_copy(tmp_path: Path) -> None:
    """A driver was killed after its last upload: its local file goes further, and counts."""
    url = f"file://{tmp_path}/far"
    die_at_url(url, "one\ntwo\n")
    with old_work(url) as folder:
        assert (folder.local / "study.log").read_text() == "one\ntwo\n"
    assert (tmp_path / "far" / "s" / "study.log").read_text() == "one\ntwo\n"
    assert not folder.local.exists()


def test_url_refused_resume_changes_nothing(tmp_path: Path) -> None:
    """Both copies stay unchanged, at the URL and here."""
    url = f"file://{tmp_path}/far"
    die_at_url(url, "one\ndamaged\n")
    with pytest.raises(SettingsError), old_work(url) as folder:
        raise SettingsError("line 2 is damaged")
    assert (tmp_path / "far" / "s" / "study.log").read_text() == "one\n"
    assert (folder.local / "study.log").read_text() == "one\ndamaged\n"


def test_url_lost_lock_uploads_nothing(tmp_path: Path) -> None:
    """A driver that has lost its lock must not overwrite its successor's files."""
    lost = Event()
    with new_work(f"file://{tmp_path}/far", lost) as folder:
        (folder.local / "study.log").write_text("mine\n")
        (tmp_path / "far" / "s" / "study.log").write_text("theirs\n")
        lost.set()
    assert (tmp_path / "far" / "s" / "study.log").read_text() == "theirs\n"
    assert (folder.local / "study.log").read_text() == "mine\n"


def test_url_resume_prefers_other_machine(tmp_path: Path) -> None:
    """Another machine resumed the sweep: its file counts, and the local one is kept aside."""
    url = f"file://{tmp_path}/far"
    die_at_url(url, "one\nhere\n")
    (tmp_path / "far" / "s" / "study.log").write_text("one\nthere\n")
    with old_work(url) as folder:
        assert (folder.local / "study.log").read_text() == "one\nthere\n"
        (aside,) = folder.local.glob("study.log.*")
        assert aside.read_text() == "one\nhere\n"


def test_old_folder_missing_refused(tmp_path: Path) -> None:
    for storage in (str(tmp_path), f"file://{tmp_path}"):
        with (
            pytest.raises(SettingsError, match=r"no sweep 's' in .* without --resume"),
            old_folder(storage, "s"),
        ):
            pass


def test_storage_uri_resolves_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path becomes absolute; a URL stays unchanged."""
    monkeypatch.chdir(tmp_path)
    assert storage_uri("./results") == str(tmp_path / "results")
    assert storage_uri("s3://bucket/results") == "s3://bucket/results"


def test_load_study_missing_refused(tmp_path: Path) -> None:
    """Optuna would create an empty study in a folder that is no sweep."""
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_study(tmp_path)
    assert not list(tmp_path.iterdir())
