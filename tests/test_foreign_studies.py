"""Warm starts from any Optuna storage, which is never created or changed."""

import json
import math
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from ray import tune

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.rungs import Rungs
from tune_jobs.engine.core.settings import Settings
from tune_jobs.engine.core.space import convert_space
from tune_jobs.engine.search.view import View
from tune_jobs.engine.store.foreign import Source, read_trials
from tune_jobs.engine.store.manifest import Manifest
from tune_jobs.engine.store.record import Record
from tune_jobs.engine.store.warm_start import others_of, read_others

GOAL = Goal("score", "max")
SPACE = convert_space({"x": tune.uniform(0, 1), "kind": tune.choice(["sgd", "adam"])})

# As Optuna's users have them.
PARAMS = {
    "x": optuna.distributions.FloatDistribution(0, 1),
    "kind": optuna.distributions.CategoricalDistribution(["sgd", "adam"]),
}


def fill(study: optuna.Study) -> None:
    """What a study of Optuna's users holds, trial by trial: x is its number in tenths."""
    states = {
        TrialState.COMPLETE: [{"value": 0.5}, {"value": 0.6, "curve": {0: 0.1, 1: 0.6}}],
        TrialState.FAIL: [{}, {"curve": {0: 0.9}}],
        TrialState.PRUNED: [{}, {"curve": {0: 0.2, 1: math.nan}}],
        TrialState.RUNNING: [{}, {"curve": {0: 0.3}}],
    }
    for state, trials in states.items():
        for number, trial in enumerate(trials, start=len(study.trials)):
            study.add_trial(
                create_trial(
                    state=state,
                    params={"x": number / 10, "kind": "sgd"},
                    distributions=PARAMS,
                    value=trial.get("value"),
                    intermediate_values=trial.get("curve"),
                )
            )
    study.enqueue_trial({"x": 0.99, "kind": "sgd"})


def make(storage: BaseStorage | str | None, name: str = "mine", **kwargs: Any) -> optuna.Study:
    kwargs.setdefault("direction", None if "directions" in kwargs else "maximize")
    study = optuna.create_study(storage=storage, study_name=name, **kwargs)
    if "directions" not in kwargs:
        fill(study)
    return study


def journal_at(file: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(file)))


@contextmanager
def sqlite_at(file: Path) -> Iterator[RDBStorage]:
    storage = RDBStorage(f"sqlite:///{file}")
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def read(source: Source, folder: Path, **kwargs: Any) -> list[dict[str, Any]]:
    known = {"goal": GOAL, "space": SPACE, "storage_path": str(folder / "results"), **kwargs}
    return read_others(source, **known)


def in_memory(folder: Path) -> Source:
    return make(InMemoryStorage())


def in_journal(folder: Path) -> Source:
    make(journal_at(folder / "study.log"))
    return folder / "study.log"


def in_journal_at_url(folder: Path) -> Source:
    make(journal_at(folder / "mine.journal"))
    return f"file://{folder}/mine.journal"


def in_sqlite(folder: Path) -> Source:
    with sqlite_at(folder / "x.db") as storage:
        make(storage)
    return str(folder / "x.db")


def in_sqlite_wal(folder: Path) -> Source:
    source = in_sqlite(folder)
    with closing(sqlite3.connect(str(source))) as database:
        database.execute("pragma journal_mode=WAL")
    return source


def in_sqlite_url(folder: Path) -> Source:
    return f"sqlite:///{in_sqlite(folder)}"


def in_sqlite_at_url(folder: Path) -> Source:
    return f"file://{in_sqlite(folder)}"


SOURCES = [
    in_memory, in_journal, in_journal_at_url, in_sqlite, in_sqlite_wal, in_sqlite_url,
    in_sqlite_at_url,
]  # fmt: skip


def contents(folder: Path) -> dict[str, Any]:
    return {
        str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("make_source", SOURCES)
def test_read_others_every_kind_of_trial(
    make_source: Callable[[Path], Source], tmp_path: Path
) -> None:
    """Of each storage, which stays as it is, in a folder that cannot be written."""
    source = make_source(tmp_path)
    before = contents(tmp_path)
    mode = tmp_path.stat().st_mode
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        packed = read(source, tmp_path)
    finally:
        tmp_path.chmod(mode)
    assert contents(tmp_path) == before
    trials = others_of(json.loads(json.dumps(packed)))
    assert [(t.params["x"], t.state.name, t.intermediate_values) for t in trials] == [
        (0.0, "COMPLETE", {}),
        (0.1, "COMPLETE", {0: 0.1, 1: 0.6}),
        (0.2, "PRUNED", {}),
        (0.3, "PRUNED", {}),
        (0.4, "PRUNED", {}),
        (0.5, "PRUNED", {0: 0.2}),
        (0.7, "PRUNED", {0: 0.3}),  # 0.6 runs and has reported nothing
    ]
    assert [trial.value for trial in trials[:2]] == [0.5, 0.6]


@pytest.mark.parametrize("epochs", [(), (1, 2, 4, 8)])
def test_view_of_foreign_trials(epochs: tuple[int, ...], tmp_path: Path) -> None:
    """A trial with a value teaches its value; a failed one, that it was bad."""
    view = View(GOAL, TPESampler(), Rungs(GOAL, epochs))
    for other in others_of(read(in_memory(tmp_path), tmp_path)):
        view.add_other(other)
    view.refresh()
    shown = [(trial.state.name, trial.value) for trial in view.study.get_trials()]
    assert shown[0] == ("COMPLETE", 0.5)
    assert shown[1] == ("COMPLETE", 0.6)
    assert shown[2:5] == [("PRUNED", None)] * 3


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_read_others_users_values(tmp_path: Path) -> None:
    """A study in memory may hold choices that only its labels can stand for here."""
    layers = [(32,), (64, 64)]
    study = optuna.create_study(direction="maximize")
    distributions = {"layers": optuna.distributions.CategoricalDistribution(layers)}
    for value in layers:
        study.add_trial(
            create_trial(params={"layers": value}, distributions=distributions, value=1.0)
        )
    space = convert_space({"layers": tune.choice(layers)})
    trials = others_of(json.loads(json.dumps(read(study, tmp_path, space=space))))
    assert [space.decode(trial.params) for trial in trials] == [{"layers": v} for v in layers]


def test_read_others_constraints(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    trial = study.ask(PARAMS)
    trial.set_constraint("memory", 2.0)
    study.tell(trial, 1.0)
    (other,) = others_of(json.loads(json.dumps(read(study, tmp_path))))
    assert other.constraints == {"memory": 2.0}


def test_read_others_infinite_value(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.tell(study.ask(PARAMS), -math.inf)
    (other,) = read(study, tmp_path)
    assert (other["state"], other["values"], other["crashed"]) == ("PRUNED", None, True)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_read_others_several_studies(kind: str, tmp_path: Path) -> None:
    if kind == "journal":
        file = tmp_path / "study#1.log"  # a path that exists is not taken apart
        for name in ("a", "b"):
            make(journal_at(file), name)
    else:
        file = tmp_path / "x.db"
        with sqlite_at(file) as storage:
            for name in ("a", "b"):
                make(storage, name)
    with pytest.raises(SettingsError, match=rf"holds several studies: a, b; .* '{file}#a'"):
        read(file, tmp_path)
    assert len(read(f"{file}#b", tmp_path)) == 7
    with pytest.raises(SettingsError, match="names the study 'c', and there are only: a, b"):
        read(f"{file}#c", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.db", "no sweep can be read at .*, and there is no file or folder none.db."),
        ("none.log#mine", "no sweep can be read at .*, and there is no file or folder none.log."),
        ("none", "no sweep can be read at .*, and there is no file or folder none."),
        ("sqlite:///none.db", "there is no file none.db.$"),
        ("sqlite:///none.db#mine", "there is no file none.db.$"),
        ("file:///none/none.db", "file:///none/none.db is no sweep: it has no sweep.json.$"),
        (".", r"\. is no sweep: it has no sweep.json.$"),
        ("sqlite://", "sqlite:// names no file, as sqlite:///x.db does.$"),
    ],
)  # fmt: skip
def test_read_others_missing_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna would create the file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=f"^warm_start: {message}") as refused:
        read(source, tmp_path)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"trial,value\n1,2\n", "cannot be read: JSONDecodeError"),
        (b"\x80\x81\n\x82\n", "cannot be read: UnicodeDecodeError"),
        (b'{"op_code": 99}\n', "cannot be read: "),
        (b"", "holds no Optuna study"),
        (b"SQLite format 3\0 and then something else", "cannot be read: DatabaseError"),
    ],
)
def test_read_others_broken_file_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "broken"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"warm_start: {file} {message}") as refused:
        read(file, tmp_path)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_read_others_torn_journal(tmp_path: Path) -> None:
    """Another process may be writing its last line."""
    source = Path(str(in_journal(tmp_path)))
    with source.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    assert len(read(source, tmp_path)) == 7


def test_read_others_other_database(tmp_path: Path) -> None:
    """A SQLite file without Optuna's tables gets none."""
    file = tmp_path / "x.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table mine(x)")
    before = contents(tmp_path)
    with pytest.raises(SettingsError, match=r"x\.db holds no Optuna study"):
        read(file, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://me:secret@host/db", "needs a Python package that is not installed .*MySQLdb"),
        ("redis://:secret@host/0", "needs a Python package that is not installed"),
        ("nowhere://me:secret@host/db", "cannot be read: NoSuchModuleError"),
    ],
)
def test_read_others_no_driver_refused(url: str, message: str, tmp_path: Path) -> None:
    """The message does not tell the password."""
    with pytest.raises(SettingsError, match=f"warm_start: .*{message}") as refused:
        read(url, tmp_path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"directions": ["maximize", "minimize"]}, "study mine has 2 objectives"),
        ({"direction": "minimize"}, "study mine is to minimize its value, and .* maximize score"),
    ],
)
def test_read_others_other_goal_refused(
    study: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        read(make(InMemoryStorage(), **study), tmp_path)


def test_read_others_empty_study_refused(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize", study_name="new")
    study.ask(PARAMS)
    with pytest.raises(SettingsError, match="study new has no trial with a value to learn from"):
        read(study, tmp_path)


def test_read_others_empty_text_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"warm_start must be the path, .* of a study, got ''"):
        read("", tmp_path)


@pytest.mark.parametrize("source", [3, ["a"], InMemoryStorage()])
def test_read_others_other_type_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"warm_start must be a Study, .* got (int|list|InMem)"):
        read(source, tmp_path)


def test_read_trials_record_of_sweep(tmp_path: Path) -> None:
    """The file of a sweep's record is that sweep: its metric counts."""
    folder = tmp_path / "results" / "s"
    folder.mkdir(parents=True)
    Manifest.of(Settings(), Goal("loss", "max"), SPACE, None).write(folder)
    Record.create(folder, "s", GOAL, Event())
    for source in (folder / "study.log", folder, "s", "s#s", f"file://{folder}"):
        with pytest.raises(SettingsError, match=r"optimizes loss \(max\), not score \(max\)"):
            read_trials(source, GOAL, str(tmp_path / "results"))


def test_read_trials_sweep_beside_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder here that is no sweep does not hide a sweep of that name."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("s")
    folder = tmp_path / "results" / "s"
    folder.mkdir(parents=True)
    Manifest.of(Settings(), GOAL, SPACE, None).write(folder)
    fill(Record.create(folder, "s", GOAL, Event()).study)
    assert len(read_trials("s", GOAL, "results")) == 9
