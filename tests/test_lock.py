"""One driver a sweep: who holds it, who is refused, who takes over."""

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

from tune_jobs.engine.core.settings import SettingsError
from tune_jobs.engine.store.lock import LOCK_FILE, SweepLock

HOST = socket.gethostname()
GONE_PID = 2**22 + 1  # above the highest that Linux gives
WATCH_S = 0.3

in_every_way = pytest.mark.parametrize("is_local", [True, False], ids=["folder", "any filesystem"])


def lock_in(
    folder: Path,
    is_local: bool = True,
    on_lost: Callable[[], None] = lambda: None,
    watch_s: float = WATCH_S,
) -> SweepLock:
    if is_local:
        filesystem, path = fs.FileSystem.from_uri(f"file://{folder}/{LOCK_FILE}")
    else:
        filesystem, path = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), LOCK_FILE
    return SweepLock(filesystem, path, on_lost, beat_s=0.05, watch_s=watch_s, settle_s=0.05)


def leave_lock(folder: Path, is_local: bool, host: str, pid: int, watch_s: float = WATCH_S) -> None:
    """What a driver's last beat left; written whole, as a reader may be watching."""
    values = {"host": host, "pid": pid, "token": "other", "beat": time.time()}
    text = json.dumps(values)
    if is_local:
        values = {"pid": pid, "host": host, "mode": "lease", "token": "other", "duration": watch_s}
        text = "filelock/2\n" + "".join(f"{key}={value}\n" for key, value in values.items())
    (folder / "other").write_text(text)
    (folder / "other").replace(folder / LOCK_FILE)


@contextmanager
def beating(folder: Path, is_local: bool, host: str, pid: int) -> Iterator[None]:
    """A driver elsewhere that is alive."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(0.02):
            if is_local:
                os.utime(folder / LOCK_FILE)
            else:
                leave_lock(folder, is_local, host, pid)

    leave_lock(folder, is_local, host, pid)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@in_every_way
def test_second_driver_is_refused_and_the_first_undisturbed(is_local: bool, tmp_path: Path) -> None:
    lost: list[bool] = []
    refused = f"one driver at a time, and .* held by the driver with pid {os.getpid()} on {HOST};"
    with lock_in(tmp_path, is_local, lambda: lost.append(True)):
        with pytest.raises(SettingsError, match=refused), lock_in(tmp_path, is_local):
            pass
        time.sleep(0.15)
        assert (tmp_path / LOCK_FILE).exists()
    assert not lost
    assert not list(tmp_path.iterdir())


def test_killed_driver_is_followed_at_once_and_a_living_one_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = f"""
import time
from pyarrow import fs
from tune_jobs.engine.store.lock import SweepLock
with SweepLock(fs.LocalFileSystem(), {str(tmp_path / LOCK_FILE)!r}, watch_s=60):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"held\n"
        name = f"the driver with pid {driver.pid} on {HOST}"
        start = time.monotonic()
        driver.send_signal(signal.SIGSTOP)  # no beat is needed to be alive on this host
        with (
            pytest.raises(SettingsError, match=f"held by {name}; wait for it to end, or end it"),
            lock_in(tmp_path, watch_s=60),
        ):
            pass
        driver.kill()
        driver.wait()
        with lock_in(tmp_path, watch_s=60):
            assert time.monotonic() - start < 5
    assert capsys.readouterr().out == f"taken over from {name}, which is gone\n"


@in_every_way
def test_driver_of_this_host_that_is_gone_is_followed_at_once(
    is_local: bool, tmp_path: Path
) -> None:
    leave_lock(tmp_path, is_local, HOST, GONE_PID, watch_s=60)
    start = time.monotonic()
    with lock_in(tmp_path, is_local, watch_s=60):
        assert time.monotonic() - start < 5


@in_every_way
def test_killed_driver_that_nobody_waited_for_is_dead(is_local: bool, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as driver:
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)
        leave_lock(tmp_path, is_local, HOST, driver.pid)
        with lock_in(tmp_path, is_local):
            pass


@in_every_way
@pytest.mark.parametrize("host", ["far", f"{HOST}?pidns-f0000001"], ids=["host", "container"])
def test_driver_elsewhere_that_beats_is_refused_by_its_name(
    host: str, is_local: bool, tmp_path: Path
) -> None:
    refused = f"held by the driver with pid {GONE_PID} on {host.partition('?')[0]}; wait"
    with (
        beating(tmp_path, is_local, host, GONE_PID),
        pytest.raises(SettingsError, match=refused),
        lock_in(tmp_path, is_local),
    ):
        pass
    assert "other" in (tmp_path / LOCK_FILE).read_text()


@in_every_way
def test_driver_elsewhere_that_is_silent_is_followed_after_the_watch(
    is_local: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_lock(tmp_path, is_local, "far", 7)
    start = time.monotonic()
    with lock_in(tmp_path, is_local):
        assert WATCH_S < time.monotonic() - start < 5
    said = capsys.readouterr().out
    assert said == "taken over from the driver with pid 7 on far, which is gone\n"


def test_mount_that_cannot_exchange_names_is_no_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *names: False)
    refused = "held by the driver with pid 7 on far"
    with (
        beating(tmp_path, True, "far", 7),
        pytest.raises(SettingsError, match=refused),
        lock_in(tmp_path),
    ):
        pass
    leave_lock(tmp_path, True, "far", 7)
    with lock_in(tmp_path):
        assert f"pid={os.getpid()}" in (tmp_path / LOCK_FILE).read_text()


@in_every_way
@pytest.mark.parametrize("content", ["", '{"host": "far", "pi'])
def test_torn_lock_is_a_dead_drivers(
    content: str, is_local: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with lock_in(tmp_path, is_local, watch_s=0.1):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert "from a driver whose lock cannot be read, which is gone" in capsys.readouterr().out


def test_driver_that_ends_while_it_is_watched_is_followed_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_lock(tmp_path, False, "far", 7)
    timer = threading.Timer(0.1, (tmp_path / LOCK_FILE).unlink)
    timer.start()
    with lock_in(tmp_path, False, watch_s=60):
        timer.join()
    assert not capsys.readouterr().out


@in_every_way
def test_lock_that_was_taken_over_is_lost_once_and_left_alone(
    is_local: bool, tmp_path: Path
) -> None:
    lost: list[bool] = []
    with lock_in(tmp_path, is_local, lambda: lost.append(True)):

        def take_over() -> bool:
            leave_lock(tmp_path, is_local, "far", 7)
            return bool(lost)

        wait_for(take_over)  # more than once: at a URL a beat in the same instant may win
        time.sleep(0.2)
    assert lost == [True]
    assert "other" in (tmp_path / LOCK_FILE).read_text()


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
def test_folder_that_cannot_be_written_is_told(is_local: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SettingsError, match=r"cannot be written .* must be readable and writable"),
        lock_in(tmp_path / "file", is_local),
    ):
        pass


def test_interrupt_on_entering_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        assert (tmp_path / LOCK_FILE).exists()
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
        self.num_failures = 0

    def open_input_stream(self, path: str) -> Any:
        if self.num_failures:
            self.num_failures -= 1
            raise OSError("connection reset")
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


def test_beats_go_on_after_a_network_was_away() -> None:
    lost: list[bool] = []
    store = ObjectStore()
    with SweepLock(store, "b/s", lambda: lost.append(True), beat_s=0.02, settle_s=0.02):
        store.num_failures = 3
        wait_for(lambda: not store.num_failures)
        store.content = b""  # what a write that failed may leave
        wait_for(lambda: bool(store.content))
    assert not lost
    assert store.content is None


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


@pytest.mark.parametrize("host", [None, HOST, "far"])
def test_of_drivers_that_race_in_a_folder_exactly_one_wins(
    host: str | None, tmp_path: Path
) -> None:
    if host:
        leave_lock(tmp_path, True, host, GONE_PID)
    race(lambda on_lost: lock_in(tmp_path, on_lost=on_lost))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_dead", [False, True], ids=["free", "dead"])
def test_of_drivers_that_race_for_an_object_the_last_to_write_wins(
    is_dead: bool, tmp_path: Path
) -> None:
    store = ObjectStore()
    if is_dead:
        leave_lock(tmp_path, False, "far", 7)
        store.content = (tmp_path / LOCK_FILE).read_bytes()
    race(lambda on_lost: SweepLock(store, "b/s", on_lost, beat_s=0.02, watch_s=0.2, settle_s=0.2))
    assert store.content is None
