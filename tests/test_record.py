"""The record: what was entered is still there after the driver dies."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_jobs.engine.core.errors import RecordError, SettingsError
from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome, outcome_of
from tune_jobs.engine.store.entries import SWEEP, decision_of, promoted_from, results_of
from tune_jobs.engine.store.record import Record

GOAL = Goal("score", "max")


def make_record(folder: Path) -> Record:
    return Record.create(folder, "s", GOAL, Event())


def ask(x: float = 0.5) -> FrozenTrial:
    distributions = {"x": FloatDistribution(0, 1)}
    return create_trial(state=TrialState.RUNNING, params={"x": x}, distributions=distributions)


def start(record: Record, trial_id: str, x: float = 0.5) -> int:
    return record.start(trial_id, ask(x), {"x": x})


def result(epoch: int, score: float) -> dict[str, Any]:
    return {"epoch": epoch, "score": score, "trial_id": "t", "done": False, "config/x": 0.5}


def test_record_reopens_running_trial(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    assert start(record, "a") == 0
    record.report("a", 0.5, result(1, 0.5), None)
    record.report("a", 0.4, result(2, 0.4), Kind.ASHA)
    again = Record.open(tmp_path, Event())
    (trial,) = again.trials()
    assert trial.state == TrialState.RUNNING
    assert trial.params == {"x": 0.5}
    assert trial.intermediate_values == {1: 0.5, 2: 0.4}
    decision = decision_of(trial)
    assert decision is not None
    assert decision.kind == "asha"
    assert results_of(trial)[1] == {"epoch": 1, "score": 0.5}
    assert start(again, "b") == 1
    assert again.num_trials == 2


def test_record_reopens_failed_trial(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    start(record, "a")
    failure = Outcome("KeyError", Cause.TRIAL, "KeyError: lr", "Traceback")
    record.end("a", failure, None)
    (trial,) = Record.open(tmp_path, Event()).trials()
    outcome = outcome_of(trial)
    assert outcome is not None
    assert (trial.state, outcome.kind) == (TrialState.FAIL, "KeyError")
    assert outcome.is_failure
    assert outcome == failure
    assert trial.user_attrs["reason"] == "KeyError"
    assert trial.user_attrs["error"] == "KeyError: lr"


def test_record_reopens_decision(tmp_path: Path) -> None:
    """A decision that was entered before the driver died holds, though the trial has not ended."""
    record = make_record(tmp_path)
    start(record, "a")
    start(record, "b")
    record.decide("a", Outcome.of(Kind.TIME_BUDGET))
    again = Record.open(tmp_path, Event())
    assert again.decided("a") == Outcome.of(Kind.TIME_BUDGET)
    assert again.decided("b") is None
    assert [trial.state for trial in again.trials()] == [TrialState.RUNNING] * 2


def test_record_reopens_promotion(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    start(record, "a")
    start(record, "b")
    record.promote("a", 1)
    record.promote("a", 3)
    again = Record.open(tmp_path, Event())
    assert [promoted_from(trial) for trial in again.trials()] == [3, None]


def test_record_replaces_retrained_epoch(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    start(record, "a")
    for epoch, score in ((1, 0.1), (2, 0.2), (2, 0.25), (3, 0.3)):
        record.report("a", score, result(epoch, score), None)
    trial = record.trial("a")
    assert trial.intermediate_values == {1: 0.1, 2: 0.25, 3: 0.3}
    assert [r["score"] for r in results_of(trial).values()] == [0.1, 0.25, 0.3]


def test_record_writes_nan_as_text(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    start(record, "a")
    record.report("a", math.nan, result(1, math.nan), Kind.NAN)
    assert "NaN" not in record.file.read_text()
    (trial,) = Record.open(tmp_path, Event()).trials()
    assert trial.intermediate_values == {}
    assert results_of(trial)[1]["score"] == "nan"


def test_record_repairs_curve(tmp_path: Path) -> None:
    """The driver died after it wrote the result and before it wrote the intermediate value."""
    record = make_record(tmp_path)
    start(record, "a")
    record.report("a", 0.5, result(1, 0.5), None)
    *before, last = record.file.read_bytes().splitlines(keepends=True)
    assert b"intermediate_value" in last
    record.file.write_bytes(b"".join(before))
    again = Record.open(tmp_path, Event())
    assert again.trials()[0].intermediate_values == {}
    again.repair_curves("score")
    assert again.trials()[0].intermediate_values == {1: 0.5}


@pytest.mark.parametrize("num_bytes", [1, 7, 40])
def test_record_truncates_torn_line(num_bytes: int, tmp_path: Path) -> None:
    record = make_record(tmp_path)
    start(record, "a")
    whole = record.file.read_bytes()
    record.report("a", 0.5, result(1, 0.5), None)
    torn = record.file.read_bytes()[: len(whole) + num_bytes]
    record.file.write_bytes(torn)
    again = Record.open(tmp_path, Event())
    assert record.file.read_bytes() == whole
    again.report("a", 0.6, result(1, 0.6), None)
    assert Record.open(tmp_path, Event()).trials()[0].intermediate_values == {1: 0.6}


def test_stock_journal_torn_line(tmp_path: Path) -> None:
    """Optuna's own storage appends behind a torn line, and cannot read its own entry again."""
    record = make_record(tmp_path)
    with record.file.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    backend = optuna.storages.journal.JournalFileBackend(str(record.file))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    with pytest.raises(AttributeError):
        study.add_trial(create_trial(value=1.0))


def test_record_removes_stale_lock(tmp_path: Path) -> None:
    """Optuna's lock of a driver that was killed; Optuna waits half a minute for it."""
    record = make_record(tmp_path)
    lock = tmp_path / "study.log.lock"
    os.symlink(record.file, lock)
    start(Record.open(tmp_path, Event()), "a")
    assert not lock.is_symlink()


def test_record_torn_first_line(tmp_path: Path) -> None:
    """The driver died before it had written one line: the record is created again."""
    (tmp_path / "study.log").write_bytes(b'{"op_code":0,"wor')
    os.symlink(tmp_path / "study.log", tmp_path / "study.log.lock")
    start(make_record(tmp_path), "a")
    assert len(Record.open(tmp_path, Event()).trials()) == 1


def test_record_damaged_line_refused(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    start(record, "a")
    first, *others = record.file.read_bytes().splitlines(keepends=True)
    damaged = first[:20] + b"\0\0" + first[22:] + b"".join(others) + b'{"torn'
    record.file.write_bytes(damaged)
    with pytest.raises(SettingsError, match=r"line 1 is damaged; nothing was changed"):
        Record.open(tmp_path, Event())
    assert record.file.read_bytes() == damaged


def test_record_missing_or_empty_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be used: No such file"):
        Record.open(tmp_path, Event())
    (tmp_path / "study.log").touch()
    with pytest.raises(SettingsError, match="it is empty"):
        Record.open(tmp_path, Event())


def test_record_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the cause, and the record can be reopened and written afterwards."""
    record = make_record(tmp_path)
    start(record, "a")

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RecordError, match="cannot be written: No space left on device"):
            record.report("a", 0.5, result(1, 0.5), None)
    assert record.trouble is not None
    Record.open(tmp_path, Event()).report("a", 0.5, result(1, 0.5), None)


def test_record_lost_lock(tmp_path: Path) -> None:
    """Nothing is entered once another driver has taken over the sweep."""
    lost = Event()
    record = Record.create(tmp_path, "s", GOAL, lost)
    start(record, "a")
    content = record.file.read_bytes()
    lost.set()
    with pytest.raises(RecordError, match="belongs to another driver now"):
        record.report("a", 0.5, result(1, 0.5), None)
    assert record.file.read_bytes() == content


def test_record_queue_order(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.enqueue({"x": 0.1})
    record.enqueue({"x": 0.2})
    assert record.num_trials == 2
    again = Record.open(tmp_path, Event())
    for number, x in ((0, 0.1), (1, 0.2)):
        waiting = again.next_waiting()
        assert waiting is not None
        assert waiting.system_attrs["fixed_params"] == {"x": x}
        assert start(again, str(number), x) == number
    assert again.next_waiting() is None
    assert start(again, "2") == 2
    assert [trial.params["x"] for trial in again.trials()] == [0.1, 0.2, 0.5]
    assert all(trial.state == TrialState.RUNNING for trial in again.trials())


def test_record_queue_interrupted_start(tmp_path: Path) -> None:
    """The driver died while it entered a waiting trial: the config still waits."""
    record = make_record(tmp_path)
    record.enqueue({"x": 0.1})
    start(record, "a", 0.1)
    *before, last = record.file.read_bytes().splitlines(keepends=True)
    assert json.loads(last)["state"] == TrialState.RUNNING
    record.file.write_bytes(b"".join(before))
    again = Record.open(tmp_path, Event())
    assert again.next_waiting() is not None
    assert start(again, "b", 0.1) == 0
    (trial,) = again.trials()
    assert (trial.params, trial.user_attrs["trial_id"]) == ({"x": 0.1}, "b")


def test_record_starts_trial_atomically(tmp_path: Path) -> None:
    """A trial is one line.

    Optuna's own `ask` writes a trial and then each of its parameters: if the driver dies between,
    the trial cannot be run.
    """
    record = make_record(tmp_path)
    lines = record.file.read_text().count("\n")
    start(record, "a")
    assert record.file.read_text().count("\n") == lines + 1
    record.study.ask({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    assert record.file.read_text().count("\n") > lines + 2


def test_record_copied_trial_foreign(tmp_path: Path) -> None:
    """Of another sweep, of a sweep of an earlier version, or of this one: it is no own trial."""
    names = ("own", "other", "old")
    for name in names:
        (tmp_path / name).mkdir()
    record, other, old = (make_record(tmp_path / name) for name in names)
    for made in (record, other, old):
        start(made, "a")
        made.end("a", Outcome.of(Kind.BY_ITSELF), 0.5)
    (trial,) = old.trials()
    del trial.system_attrs[SWEEP]
    record.study.add_trials([*record.trials(), *other.trials(), trial])
    record.study.add_trial(create_trial(state=TrialState.WAITING))
    again = Record.open(tmp_path / "own", Event())
    assert [t.number for t in again.started()] == [0]
    assert [t.number for t in again.foreign()] == [1, 2, 3]
    assert again.num_trials == 2
    assert start(again, "b") == 4
    assert [t.number for t in again.started()] == [0, 4]


def test_record_without_id_own(tmp_path: Path) -> None:
    """A record of an earlier version names no sweep, and neither do its trials."""
    record = make_record(tmp_path)
    lines = record.file.read_text().splitlines(keepends=True)
    record.file.write_text("".join(line for line in lines if SWEEP not in line))
    old = Record.open(tmp_path, Event())
    start(old, "a")
    old.study.add_trials(old.trials())
    again = Record.open(tmp_path, Event())
    assert [t.number for t in again.started()] == [0]
    assert [t.number for t in again.foreign()] == [1]


DASHBOARD = """
import json, sys, threading, urllib.request
from wsgiref.simple_server import make_server
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna_dashboard import wsgi
server = make_server("127.0.0.1", 0, wsgi(JournalStorage(JournalFileBackend(sys.argv[1]))))
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/api/studies"
(study,) = json.load(urllib.request.urlopen(url))["study_summaries"]
shown = json.load(urllib.request.urlopen(f"{url}/{study['study_id']}"))
print(json.dumps({t["number"]: [t["state"], t["intermediate_values"]] for t in shown["trials"]}))
"""


def test_dashboard_opens_live_record(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    for trial_id in ("a", "b"):
        start(record, trial_id)
        record.report(trial_id, 0.5, result(1, 0.5), None)
    record.report("a", math.nan, result(2, math.nan), Kind.NAN)
    record.end("a", Outcome.of(Kind.NAN), 0.5)
    command = [sys.executable, "-W", "ignore", "-c", DASHBOARD, str(record.file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["0"] == ["Pruned", [{"step": 1, "value": 0.5}]]
    assert shown["1"][0] == "Running"
