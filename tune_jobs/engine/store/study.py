"""The Optuna study of a sweep: where it is kept, and how it is read again."""

from pathlib import Path

import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune_jobs.engine.store.folder import downloaded, is_url

__all__ = ["STUDY_FILE", "copy_to_memory", "load_study", "study_storage"]

# A journal: at 300 trials an Optuna call takes a fifth of SQLite's time, and all of it is spent in
# the driver's loop; and lines that are only ever appended are what a killed driver can leave behind
# in one piece. `optuna-dashboard study.log` opens it, also while the sweep runs.
STUDY_FILE = "study.log"


def load_study(folder: str | Path) -> optuna.Study:
    """Load the study of a finished sweep.

    Args:
        folder: The sweep's folder or URL. A study from a URL is a copy in memory.

    Raises:
        FileNotFoundError: There is no study.
    """
    if is_url(str(folder)):
        with downloaded(f"{folder}/{STUDY_FILE}") as local:
            return copy_to_memory(load_study(local))
    file = Path(folder, STUDY_FILE)
    if not file.is_file():  # Optuna would make an empty one
        raise FileNotFoundError(f"{file} is missing; is {folder} the folder of a sweep?")
    storage = study_storage(folder)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def copy_to_memory(study: optuna.Study) -> optuna.Study:
    """A copy of the study that outlives its file."""
    storage = InMemoryStorage()
    optuna.copy_study(
        from_study_name=study.study_name, from_storage=study._storage, to_storage=storage
    )
    return optuna.load_study(study_name=study.study_name, storage=storage, sampler=study.sampler)


def study_storage(folder: str | Path) -> JournalStorage:
    """Optuna's storage in a sweep's folder."""
    return JournalStorage(JournalFileBackend(str(Path(folder, STUDY_FILE))))
