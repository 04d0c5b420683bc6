"""One driver a sweep: who holds it, who is refused, who takes over."""

import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from tune_jobs.engine import lock
from tune_jobs.engine.lock import LOCK_FILE, SweepLock
from tune_jobs.engine.settings import SettingsError

GONE_PID = 2**22 + 1  # above the highest that Linux gives

in_every_way = pytest.mark.parametrize("is_local", [True, False], ids=["folder", "any filesystem"])


def lock_in(
    folder: Path,
    is_local: bool = True,
    on_lost: Callable[[], None] = lambda: None,
    watch_s: float = 0.2,
    settle_s: float = 0.05,
) -> SweepLock:
    if is_local:
        filesystem, path = fs.FileSystem.from_uri(f"file://{folder}/{LOCK_FILE}")
    else:
        filesystem, path = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), LOCK_FILE
    return SweepLock(filesystem, path, on_lost, beat_s=0.02, watch_s=watch_s, settle_s=settle_s)


def leave_lock(folder: Path, **changes: Any) -> dict[str, Any]:
    """Writes the lock of a driver that differs from this process in what is given."""
    with lock_in(folder):
        values = read_lock(folder)
    values |= {"token": "other", **changes}
    (folder / LOCK_FILE).write_text(json.dumps(values))
    return values


def read_lock(folder: Path) -> dict[str, Any]:
    """Between two writes: while a driver of the not so local kind writes, the file is empty."""
    while True:
        try:
            values: dict[str, Any] = json.loads((folder / LOCK_FILE).read_text())
            return values
        except ValueError:
            time.sleep(0.001)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def beating(folder: Path, values: dict[str, Any]) -> Iterator[None]:
    """A driver elsewhere, whose clock is wrong, writes its beats."""
    is_over = threading.Event()

    def beat() -> None:
        num_beats = 0
        while not is_over.wait(0.02):
            num_beats += 1
            other = folder / "other"
            other.write_text(json.dumps(values | {"beat": -num_beats}))
            other.replace(folder / LOCK_FILE)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@in_every_way
def test_file_tells_the_driver_and_beats_while_held_and_is_gone_after(
    is_local: bool, tmp_path: Path
) -> None:
    with lock_in(tmp_path, is_local):
        first = read_lock(tmp_path)
        assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
        wait_for(lambda: read_lock(tmp_path)["beat"] != first["beat"])
        assert read_lock(tmp_path) | {"beat": 0} == first | {"beat": 0}
    assert not list(tmp_path.iterdir())


@in_every_way
def test_second_driver_is_refused_and_the_first_undisturbed(is_local: bool, tmp_path: Path) -> None:
    lost: list[bool] = []
    with lock_in(tmp_path, is_local, lambda: lost.append(True)):
        token = read_lock(tmp_path)["token"]
        with (
            pytest.raises(SettingsError, match=f"held by the driver with pid {os.getpid()} on "),
            lock_in(tmp_path, is_local),
        ):
            pass
        time.sleep(0.1)
        assert read_lock(tmp_path)["token"] == token
    assert not lost


def test_killed_driver_is_followed_at_once_and_a_living_one_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = f"""
import time
from pyarrow import fs
from tune_jobs.engine.lock import SweepLock
with SweepLock(fs.LocalFileSystem(), {str(tmp_path / LOCK_FILE)!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"held\n"
        name = f"the driver with pid {driver.pid} on {socket.gethostname()}"
        start = time.monotonic()
        driver.send_signal(signal.SIGSTOP)  # no beat is needed to be alive on this machine
        with (
            pytest.raises(SettingsError, match=f"held by {name}; wait for it to end, or end it"),
            lock_in(tmp_path, watch_s=60),
        ):
            pass
        driver.kill()
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # a zombie is dead as well
        with lock_in(tmp_path, watch_s=60):
            assert read_lock(tmp_path)["pid"] == os.getpid()
        assert time.monotonic() - start < 5
    assert capsys.readouterr().out == f"taken over from {name}, which is gone\n"


@pytest.mark.parametrize("changes", [{"started": 0.01}, {"pid": GONE_PID}], ids=str)
def test_pid_that_is_gone_or_another_process_now_is_a_dead_driver(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = leave_lock(tmp_path, **changes)["pid"]
    start = time.monotonic()
    with lock_in(tmp_path, watch_s=60):
        assert f"taken over from the driver with pid {pid}" in capsys.readouterr().out
    assert time.monotonic() - start < 5


@in_every_way
def test_driver_elsewhere_that_beats_is_refused_by_its_name(is_local: bool, tmp_path: Path) -> None:
    values = leave_lock(tmp_path, host="far", machine="other", pid=7)
    with (
        beating(tmp_path, values),
        pytest.raises(SettingsError, match="held by the driver with pid 7 on far; wait"),
        lock_in(tmp_path, is_local, watch_s=5),
    ):
        pass
    assert read_lock(tmp_path)["token"] == "other"


@pytest.mark.parametrize("machine", ["other", None])
def test_pid_of_a_container_with_this_hosts_name_tells_nothing(
    machine: str | None, tmp_path: Path
) -> None:
    values = leave_lock(tmp_path, machine=machine, pid=GONE_PID)
    with (
        beating(tmp_path, values),
        pytest.raises(SettingsError, match=f"pid {GONE_PID} on {socket.gethostname()}"),
        lock_in(tmp_path, watch_s=5),
    ):
        pass


@in_every_way
def test_driver_elsewhere_that_is_silent_is_followed_after_the_watch(
    is_local: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_lock(tmp_path, host="far", machine="other", pid=7)
    start = time.monotonic()
    with lock_in(tmp_path, is_local, watch_s=0.3):
        assert time.monotonic() - start > 0.3
        assert read_lock(tmp_path)["pid"] == os.getpid()
    assert capsys.readouterr().out == (
        "taken over from the driver with pid 7 on far, which is gone\n"
    )


def test_without_proc_the_beat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_machine", lambda: None)
    values = leave_lock(tmp_path)
    with (
        beating(tmp_path, values),
        pytest.raises(SettingsError, match=f"pid {os.getpid()}"),
        lock_in(tmp_path, watch_s=5),
    ):
        pass
    with lock_in(tmp_path):
        assert read_lock(tmp_path)["token"] != "other"


@in_every_way
@pytest.mark.parametrize("content", ["", '{"host": "far", "pi', "\0\0\0", "null", "[]", "{}"])
def test_torn_lock_is_a_dead_drivers(
    content: str, is_local: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with lock_in(tmp_path, is_local, watch_s=0.05):
        assert read_lock(tmp_path)["pid"] == os.getpid()
    assert "from a driver whose lock cannot be read, which is gone" in capsys.readouterr().out


def test_driver_that_ends_while_it_is_watched_is_followed_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_lock(tmp_path, machine="other")
    timer = threading.Timer(0.1, (tmp_path / LOCK_FILE).unlink)
    timer.start()
    with lock_in(tmp_path, watch_s=5):
        assert read_lock(tmp_path)["token"] != "other"
    timer.join()
    assert not capsys.readouterr().out


@in_every_way
def test_lock_that_was_taken_over_is_lost_once_and_left_alone(
    is_local: bool, tmp_path: Path
) -> None:
    lost: list[bool] = []
    with lock_in(tmp_path, is_local, lambda: lost.append(True)):
        other = json.dumps(read_lock(tmp_path) | {"token": "other"})

        def take_over() -> bool:
            (tmp_path / "other").write_text(other)
            (tmp_path / "other").replace(tmp_path / LOCK_FILE)
            return bool(lost)

        wait_for(take_over)  # more than once: a beat in the same instant may win, not at a folder
        time.sleep(0.1)
    assert lost == [True]
    assert (tmp_path / LOCK_FILE).read_text() == other


@in_every_way
def test_lock_whose_folder_is_removed_is_lost_and_left_without_an_error(
    is_local: bool, tmp_path: Path
) -> None:
    lost: list[bool] = []
    (tmp_path / "s").mkdir()
    with lock_in(tmp_path / "s", is_local, lambda: lost.append(True)):
        (tmp_path / "s").rename(tmp_path / "away")
        shutil.rmtree(tmp_path / "away")
        wait_for(lambda: bool(lost))
    assert lost == [True]
    assert not list(tmp_path.iterdir())


@in_every_way
def test_beats_go_on_after_a_disk_was_full(
    is_local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[OSError] = []
    lost: list[bool] = []

    def fail(*args: object) -> bool:
        failures.append(OSError(errno.ENOSPC, "disk full"))
        raise failures[-1]

    with lock_in(tmp_path, is_local, lambda: lost.append(True)):
        with monkeypatch.context() as patch:
            patch.setattr(lock._LocalFile if is_local else lock._RemoteFile, "replace", fail)
            wait_for(lambda: len(failures) > 2)
            (tmp_path / LOCK_FILE).write_text("")  # what a write that failed may leave
        wait_for(lambda: bool((tmp_path / LOCK_FILE).read_text()))
        assert read_lock(tmp_path)["pid"] == os.getpid()
    assert not lost
    assert not list(tmp_path.iterdir())


@in_every_way
def test_folder_that_cannot_be_written_is_told(is_local: bool, tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match=r"cannot be written .* must be readable and writable"),
        lock_in(tmp_path / "missing", is_local),
    ):
        pass


def test_file_that_a_stopped_driver_was_just_writing_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_FLOCK_S", 0.05)
    with open(tmp_path / LOCK_FILE, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="cannot be written"), lock_in(tmp_path):
            pass


def test_dead_lock_that_another_takes_and_gives_back_first_is_a_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_lock(tmp_path, pid=GONE_PID)

    def remove_first(file: object, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            monkeypatch.undo()
            (tmp_path / LOCK_FILE).unlink()

    monkeypatch.setattr(lock, "_flock", remove_first)
    with lock_in(tmp_path):
        assert read_lock(tmp_path)["token"] != "other"
    assert not capsys.readouterr().out


def test_interrupt_on_entering_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        assert read_lock(tmp_path)["pid"] == os.getpid()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt), lock_in(tmp_path, is_local=False):
            pass
    assert not list(tmp_path.iterdir())


class ObjectStore:
    """Of one object, as S3 keeps it: a write is whole, arrives late and minds no other."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def open_input_stream(self, path: str) -> Any:
        if self.content is None:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.content)

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[io.BytesIO]:
        file = io.BytesIO()
        yield file
        time.sleep(random.uniform(0, 0.02))
        self.content = file.getvalue()

    def delete_file(self, path: str) -> None:
        self.content = None


def race(new_lock: Callable[[Callable[[], None]], SweepLock]) -> None:
    """Lets four drivers enter at once; one may win, and its lock may not be lost."""
    barrier = threading.Barrier(4, timeout=30)
    outcomes: list[str] = []

    def drive() -> None:
        barrier.wait()
        try:
            with new_lock(lambda: outcomes.append("lost")):
                outcomes.append("won")
                barrier.wait()
        except SettingsError:
            outcomes.append("refused")
            barrier.wait()

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "refused", "won"]


@pytest.mark.parametrize("is_dead", [False, True], ids=["free", "dead"])
def test_of_drivers_that_race_in_a_folder_exactly_one_wins(is_dead: bool, tmp_path: Path) -> None:
    left = json.dumps(leave_lock(tmp_path, pid=GONE_PID))
    for _ in range(50):
        (tmp_path / LOCK_FILE).write_text(left)
        if not is_dead:
            (tmp_path / LOCK_FILE).unlink()
        race(lambda on_lost: lock_in(tmp_path, on_lost=on_lost, watch_s=5))
        assert not list(tmp_path.iterdir())


def test_free_folder_needs_no_flock_for_exactly_one_to_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    for _ in range(50):
        race(lambda on_lost: lock_in(tmp_path, on_lost=on_lost, watch_s=5))


@pytest.mark.parametrize("is_dead", [False, True], ids=["free", "dead"])
def test_of_drivers_that_race_for_an_object_the_last_to_write_wins(
    is_dead: bool, tmp_path: Path
) -> None:
    left = json.dumps(leave_lock(tmp_path, machine="other"))
    store = ObjectStore()

    def new_lock(on_lost: Callable[[], None]) -> SweepLock:
        return SweepLock(store, "b/s", on_lost, beat_s=0.02, watch_s=0.3, settle_s=0.2)

    for _ in range(2):
        store.content = left.encode() if is_dead else None
        race(new_lock)
        assert store.content is None
