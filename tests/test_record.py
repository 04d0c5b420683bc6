"""The record: what was entered is there after any death."""

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

from tune_jobs.engine.core.goal import Goal
from tune_jobs.engine.core.outcome import Blame, Failure, Reason
from tune_jobs.engine.core.settings import SettingsError
from tune_jobs.engine.store.record import (
    Record,
    RecordError,
    failure_in,
    is_failed,
    reason_of,
    results_of,
)

GOAL = Goal("score", "max")


def make_record(folder: Path) -> Record:
    return Record.create(folder, "s", GOAL, Event())


def ask(x: float = 0.5) -> FrozenTrial:
    distributions = {"x": FloatDistribution(0, 1)}
    return create_trial(state=TrialState.RUNNING, params={"x": x}, distributions=distributions)


def result(epoch: int, score: float) -> dict[str, Any]:
    return {"epoch": epoch, "score": score, "trial_id": "t", "done": False, "config/x": 0.5}


def test_trial_is_there_again_as_it_stood(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    assert record.start("a", ask()) == 0
    record.report("a", 0.5, result(1, 0.5), None)
    record.report("a", 0.4, result(2, 0.4), Reason.ASHA)
    again = Record.open(tmp_path, Event())
    (trial,) = again.trials()
    assert trial.state == TrialState.RUNNING
    assert trial.params == {"x": 0.5}
    assert trial.intermediate_values == {1: 0.5, 2: 0.4}
    assert reason_of(trial) == "asha"
    assert results_of(trial)[1] == {"epoch": 1, "score": 0.5}
    assert again.start("b", ask()) == 1
    assert again.num_trials == 2


def test_end_is_there_again_with_what_it_died_of(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())
    failure = Failure("KeyError", Blame.TRIAL, "KeyError: lr", "Traceback")
    record.end("a", TrialState.PRUNED, failure.reason, None, failure)
    (trial,) = Record.open(tmp_path, Event()).trials()
    assert (trial.state, reason_of(trial)) == (TrialState.PRUNED, "KeyError")
    assert is_failed(trial)
    assert failure_in(trial) == failure


def test_epoch_that_is_trained_again_replaces_what_was_there(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())
    for epoch, score in ((1, 0.1), (2, 0.2), (2, 0.25), (3, 0.3)):
        record.report("a", score, result(epoch, score), None)
    trial = record.trial("a")
    assert trial.intermediate_values == {1: 0.1, 2: 0.25, 3: 0.3}
    assert [r["score"] for r in results_of(trial).values()] == [0.1, 0.25, 0.3]


def test_result_that_is_not_finite_is_recorded_as_json_takes_it(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())
    record.report("a", math.nan, result(1, math.nan), Reason.NAN)
    assert "NaN" not in record.file.read_text()
    (trial,) = Record.open(tmp_path, Event()).trials()
    assert trial.intermediate_values == {}
    assert results_of(trial)[1]["score"] == "nan"


def test_curve_is_brought_to_the_results_where_the_driver_died_between(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())
    record.report("a", 0.5, result(1, 0.5), None)
    *before, last = record.file.read_bytes().splitlines(keepends=True)
    assert b"intermediate_value" in last
    record.file.write_bytes(b"".join(before))
    again = Record.open(tmp_path, Event())
    assert again.trials()[0].intermediate_values == {}
    again.mend_curves("score")
    assert again.trials()[0].intermediate_values == {1: 0.5}


@pytest.mark.parametrize("num_bytes", [1, 7, 40])
def test_line_that_was_not_written_to_its_end_is_taken_away(num_bytes: int, tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())
    whole = record.file.read_bytes()
    record.report("a", 0.5, result(1, 0.5), None)
    torn = record.file.read_bytes()[: len(whole) + num_bytes]
    record.file.write_bytes(torn)
    again = Record.open(tmp_path, Event())
    assert record.file.read_bytes() == whole
    again.report("a", 0.6, result(1, 0.6), None)
    assert Record.open(tmp_path, Event()).trials()[0].intermediate_values == {1: 0.6}


def test_stock_storage_writes_on_behind_a_torn_line_and_can_be_read_no_more(
    tmp_path: Path,
) -> None:
    record = make_record(tmp_path)
    with record.file.open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    backend = optuna.storages.journal.JournalFileBackend(str(record.file))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    with pytest.raises(AttributeError):  # it cannot find the trial that it has just written
        study.add_trial(create_trial(value=1.0))


def test_lock_of_optunas_that_a_dead_driver_held_is_taken_away(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    lock = tmp_path / "study.log.lock"
    os.symlink(record.file, lock)
    Record.open(tmp_path, Event()).start("a", ask())  # else Optuna would wait for half a minute
    assert not lock.is_symlink()


def test_record_that_was_never_begun_is_begun(tmp_path: Path) -> None:
    (tmp_path / "study.log").write_bytes(b'{"op_code":0,"wor')
    os.symlink(tmp_path / "study.log", tmp_path / "study.log.lock")
    make_record(tmp_path).start("a", ask())
    assert len(Record.open(tmp_path, Event()).trials()) == 1


def test_damaged_record_is_refused_and_left_alone(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())
    first, *others = record.file.read_bytes().splitlines(keepends=True)
    damaged = first[:20] + b"\0\0" + first[22:] + b"".join(others) + b'{"torn'
    record.file.write_bytes(damaged)
    with pytest.raises(SettingsError, match=r"line 1 is damaged; nothing has been changed"):
        Record.open(tmp_path, Event())
    assert record.file.read_bytes() == damaged


def test_record_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be used: No such file"):
        Record.open(tmp_path, Event())
    (tmp_path / "study.log").touch()
    with pytest.raises(SettingsError, match="it is empty"):
        Record.open(tmp_path, Event())


def test_disk_that_is_full_is_told_and_the_record_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record(tmp_path)
    record.start("a", ask())

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RecordError, match="cannot be written: No space left on device"):
            record.report("a", 0.5, result(1, 0.5), None)
    assert record.trouble is not None
    Record.open(tmp_path, Event()).report("a", 0.5, result(1, 0.5), None)


def test_nothing_is_entered_once_another_driver_has_taken_over(tmp_path: Path) -> None:
    lost = Event()
    record = Record.create(tmp_path, "s", GOAL, lost)
    record.start("a", ask())
    content = record.file.read_bytes()
    lost.set()
    with pytest.raises(RecordError, match="another driver's"):
        record.report("a", 0.5, result(1, 0.5), None)
    assert record.file.read_bytes() == content


def test_configs_in_the_queue_are_started_first_in_their_order(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    record.enqueue({"x": 0.1})
    record.enqueue({"x": 0.2})
    assert record.num_trials == 2
    again = Record.open(tmp_path, Event())
    for number, x in ((0, 0.1), (1, 0.2)):
        waiting = again.next_waiting()
        assert waiting is not None
        assert waiting.system_attrs["fixed_params"] == {"x": x}
        assert again.start(str(number), ask(x)) == number
    assert again.next_waiting() is None
    assert again.start("2", ask()) == 2
    assert [trial.params["x"] for trial in again.trials()] == [0.1, 0.2, 0.5]
    assert all(trial.state == TrialState.RUNNING for trial in again.trials())


def test_config_in_the_queue_waits_on_where_the_driver_died_while_it_was_started(
    tmp_path: Path,
) -> None:
    record = make_record(tmp_path)
    record.enqueue({"x": 0.1})
    record.start("a", ask(0.1))
    *before, last = record.file.read_bytes().splitlines(keepends=True)
    assert json.loads(last)["state"] == TrialState.RUNNING
    record.file.write_bytes(b"".join(before))
    again = Record.open(tmp_path, Event())
    assert again.next_waiting() is not None
    assert again.start("b", ask(0.1)) == 0
    (trial,) = again.trials()
    assert (trial.params, trial.user_attrs["trial_id"]) == ({"x": 0.1}, "b")


def test_trial_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    """Optuna's own `ask` enters a trial and then each of its parameters: killed between, it has a
    trial that nobody can run."""
    record = make_record(tmp_path)
    lines = record.file.read_text().count("\n")
    record.start("a", ask())
    assert record.file.read_text().count("\n") == lines + 1
    record.study.ask({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    assert record.file.read_text().count("\n") > lines + 2


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


def test_dashboard_opens_the_record_while_the_sweep_runs(tmp_path: Path) -> None:
    record = make_record(tmp_path)
    for trial_id in ("a", "b"):
        record.start(trial_id, ask())
        record.report(trial_id, 0.5, result(1, 0.5), None)
    record.report("a", math.nan, result(2, math.nan), Reason.NAN)
    record.end("a", TrialState.PRUNED, Reason.NAN, 0.5)
    command = [sys.executable, "-W", "ignore", "-c", DASHBOARD, str(record.file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["0"] == ["Pruned", [{"step": 1, "value": 0.5}]]
    assert shown["1"][0] == "Running"
