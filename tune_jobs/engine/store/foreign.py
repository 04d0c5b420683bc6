"""The trials of another study, wherever it is: `read_trials`."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial
from pyarrow import fs

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.layout import MANIFEST_FILE, STUDY_FILE
from tune_jobs.engine.store.folder import downloaded, is_url, storage_uri, without_password
from tune_jobs.engine.store.manifest import Manifest

__all__ = ["Source", "name_of", "read_trials"]

# A sweep or any other study: by its path, URL or name, or itself.
Source: TypeAlias = str | Path | optuna.Study

SQLITE_HEAD = b"SQLite format 3\0"


class _Place(NamedTuple):
    """Where a study is.

    Attributes:
        where: A folder, a file or a URL.
        study: Its name there; None: it is the only one.
    """

    where: str
    study: str | None


def name_of(source: Source) -> str:
    """The source as text, without a password.

    Raises:
        SettingsError: It is none.
    """
    if isinstance(source, optuna.Study):
        return f"study {source.study_name}"
    if not isinstance(source, (str, Path)):
        raise SettingsError(
            "warm_start must be a Study, or the path, URL or name of one, got "
            f"{type(source).__name__}; for a storage give its URL, or optuna.load_study(...)."
        )
    if not str(source):
        raise SettingsError("warm_start must be the path, URL or name of a study, got ''.")
    return without_password(str(source))


def read_trials(source: Source, goal: Goal, storage_path: str) -> list[FrozenTrial]:
    """Read the trials of another study. Where it is stored, nothing is created or changed.

    Args:
        source: A sweep (its folder, URL, or name in `storage_path`), an Optuna journal, a SQLite
            file, or the URL of an Optuna storage; `...#name` chooses one of several studies there.
            Or a study itself.
        goal: What this sweep optimizes.
        storage_path: Where it is.

    Raises:
        SettingsError: There is no such study, it cannot be read, or its values cannot be compared
            with this sweep's scores.
    """
    name = name_of(source)
    try:
        if isinstance(source, optuna.Study):
            return _trials_of(source, name, goal)
        place = _find(str(source), storage_path)
        with _open(place.where, goal) as storage:
            study = optuna.load_study(study_name=_choose(storage, place, name), storage=storage)
            return _trials_of(study, name, goal)
    except SettingsError:
        raise
    except ImportError as error:
        raise SettingsError(
            f"warm_start: {name} needs a Python package that is not installed ({_line(error)}); "
            "install it with pip."
        ) from error
    except Exception as error:  # each storage has its own
        raise SettingsError(f"warm_start: {name} cannot be read: {_line(error)}.") from error


def _find(text: str, storage_path: str) -> _Place:
    """The place that a text means; the path of something that exists is never taken apart."""
    path = Path(text).expanduser()
    if not path.exists():
        base, mark, study = text.rpartition("#")
        if mark:
            return _find(base, storage_path)._replace(study=study)
    if is_url(text):
        return _Place(text, None)
    named = f"{storage_uri(storage_path)}/{text}"
    is_sweep_there = is_url(named) or Path(named, MANIFEST_FILE).exists()
    if path.is_file() or (path.is_dir() and not is_sweep_there):
        return _Place(str(path), None)
    if Path(path, MANIFEST_FILE).exists():
        return _Place(str(path), None)
    if not is_sweep_there:
        raise SettingsError(
            f"warm_start: no sweep can be read at {named}, and there is no file or folder {text}."
        )
    return _Place(named, None)


def _open(where: str, goal: Goal) -> AbstractContextManager[BaseStorage]:
    """Optuna's storage of a place, for reading."""
    if is_url(where):
        return _opened_database(where) if _is_database(where) else _opened_remote(where, goal)
    file = Path(where, STUDY_FILE) if Path(where).is_dir() else Path(where)
    is_record = file.name == STUDY_FILE and Path(file.parent, MANIFEST_FILE).exists()
    if Path(where).is_dir() or is_record:
        _check_sweep(str(file.parent), goal)
    return _opened_file(file)


def _check_sweep(folder: str, goal: Goal) -> None:
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError as error:
        raise SettingsError(
            f"warm_start: {folder} is no sweep: it has no {MANIFEST_FILE}."
        ) from error
    except (OSError, SettingsError) as error:
        raise SettingsError(f"warm_start: no sweep can be read at {folder}: {error}") from error
    if (manifest.metric, manifest.mode) != (goal.metric, goal.mode):
        raise SettingsError(
            f"warm_start: {folder} optimizes {manifest.metric} ({manifest.mode}), "
            f"not {goal.metric} ({goal.mode}); its scores cannot be compared."
        )


@contextmanager
def _opened_remote(url: str, goal: Goal) -> Iterator[BaseStorage]:
    """A file at a URL, or a sweep."""
    filesystem, path = fs.FileSystem.from_uri(url)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        _check_sweep(url, goal)
        url = f"{url.rstrip('/')}/{STUDY_FILE}"
    with downloaded(url) as folder, _opened_file(folder / Path(url).name) as storage:
        yield storage


@contextmanager
def _opened_file(file: Path) -> Iterator[BaseStorage]:
    """A SQLite file or a journal.

    Optuna creates a file that is missing, and tables in one that has none; SQLite leaves files
    beside one that it has read.
    """
    if not file.exists():
        raise SettingsError(f"warm_start: there is no file {file}.")
    with file.open("rb") as stream:
        head = stream.read(len(SQLITE_HEAD))
    if head != SQLITE_HEAD:
        yield JournalStorage(JournalFileBackend(str(file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in file.parent.glob(f"{file.name}*"):
            if part.name.removeprefix(file.name) in ("", "-wal", "-journal"):
                shutil.copy(part, folder)
        with _disposed(RDBStorage(f"sqlite:///{folder}/{file.name}")) as storage:
            yield storage


def _is_database(url: str) -> bool:
    """Whether a URL is for Optuna, not for Ray and pyarrow."""
    try:
        fs.FileSystem.from_uri(url)
    except (ValueError, TypeError):
        return True
    except OSError:  # a host that is not there
        return False
    return False


@contextmanager
def _opened_database(url: str) -> Iterator[BaseStorage]:
    if url.startswith(("redis://", "rediss://")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            backend = JournalRedisBackend(url)
        yield JournalStorage(backend)
        return
    import sqlalchemy  # here: it takes half a second

    engine = sqlalchemy.create_engine(url)
    try:
        if engine.url.get_backend_name() == "sqlite":
            with _opened_file(_file_of(engine.url.database)) as storage:
                yield storage
            return
        if not sqlalchemy.inspect(engine).has_table("studies"):
            raise SettingsError(f"warm_start: {without_password(url)} holds no Optuna study.")
    finally:
        engine.dispose()
    with _disposed(RDBStorage(url, skip_table_creation=True)) as storage:
        yield storage


def _file_of(database: str | None) -> Path:
    """The file of a SQLite URL, which may have the form `file:x.db?mode=ro`."""
    if not database:
        raise SettingsError("warm_start: sqlite:// names no file, as sqlite:///x.db does.")
    return Path(database.removeprefix("file:").partition("?")[0])


@contextmanager
def _disposed(storage: RDBStorage) -> Iterator[RDBStorage]:
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _choose(storage: BaseStorage, place: _Place, name: str) -> str:
    """The name of the study in a storage."""
    known = sorted(optuna.get_all_study_names(storage))
    if place.study in known:
        return str(place.study)
    listed = ", ".join(known)
    if not known:
        raise SettingsError(f"warm_start: {name} holds no Optuna study.")
    if place.study is not None:
        raise SettingsError(
            f"warm_start: {name} names the study {place.study!r}, and there are only: {listed}."
        )
    if len(known) > 1:
        raise SettingsError(
            f"warm_start: {name} holds several studies: {listed}; choose one, such as "
            f"'{name}#{known[0]}'."
        )
    return known[0]


def _trials_of(study: optuna.Study, name: str, goal: Goal) -> list[FrozenTrial]:
    if len(study.directions) > 1:
        raise SettingsError(
            f"warm_start: {name} has {len(study.directions)} objectives, and a sweep learns from "
            "studies that have one."
        )
    direction = study.direction.name.lower()
    if direction != goal.direction:
        raise SettingsError(
            f"warm_start: {name} is to {direction} its value, and this sweep is to "
            f"{goal.direction} {goal.metric} ({goal.mode}); its scores cannot be compared."
        )
    return study.get_trials(deepcopy=False)


def _line(error: Exception) -> str:
    """The error in one line."""
    text = without_password(str(error)).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
