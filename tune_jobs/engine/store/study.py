"""The Optuna study of a sweep: where it is kept, and how to load it."""

from pathlib import Path

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune_jobs.engine.core.layout import STUDY_FILE
from tune_jobs.engine.store.folder import downloaded, is_url

__all__ = ["copy_to_memory", "load_study", "study_storage"]


def load_study(folder: str | Path) -> optuna.Study:
    """Load the study of a sweep.

    Args:
        folder: The sweep's folder or URL. A study from a URL is a copy in memory.

    Raises:
        FileNotFoundError: There is no study.
    """
    if is_url(str(folder)):
        with downloaded(f"{folder}/{STUDY_FILE}") as local:
            storage = _existing_storage(local)
            return copy_to_memory(storage, _name_in(storage))
    storage = _existing_storage(Path(folder))
    return optuna.load_study(study_name=_name_in(storage), storage=storage)


def copy_to_memory(storage: BaseStorage, name: str) -> optuna.Study:
    """A copy of the study with this name that outlives its file."""
    copy = InMemoryStorage()
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=copy)
    return optuna.load_study(study_name=name, storage=copy)


def study_storage(folder: str | Path) -> JournalStorage:
    """Optuna's storage in a sweep's folder.

    A journal: with 300 trials, an Optuna call takes a fifth of the time it takes with SQLite, and
    all of that time is the driver's. A killed driver leaves the lines before its last one whole.
    `optuna-dashboard study.log` opens it, even while the sweep runs.
    """
    return JournalStorage(JournalFileBackend(str(Path(folder, STUDY_FILE))))


def _existing_storage(folder: Path) -> JournalStorage:
    file = folder / STUDY_FILE
    if not file.is_file():  # Optuna would make an empty one
        raise FileNotFoundError(f"{file} is missing; is {folder} the folder of a sweep?")
    return study_storage(folder)


def _name_in(storage: BaseStorage) -> str:
    (name,) = optuna.get_all_study_names(storage)
    return name
