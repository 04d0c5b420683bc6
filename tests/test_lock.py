"""The lock of a sweep: who holds it, who is refused, who takes it over."""

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

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.layout import LOCK_FILE
from tune_jobs.engine.store.lock import SweepLock, Timing

HOST = socket.gethostname()
GONE_PID = 2**22 + 1  # above the highest that Linux gives
WATCH_S = 0.3

in_every_way = pytest.mark.parametrize("is_local", [True, False], ids=["folder", "any filesystem"])


def lock_in(
    folder: Path,
    is_local: bool = True,
    on_lost: Callable[[], None] = lambda: None,
    notify: Callable[[str], None] = lambda text: None,
    watch_s: float = WATCH_S,
) -> SweepLock:
    if is_local:
        filesystem, path = fs.FileSystem.from_uri(f"file://{folder}/{LOCK_FILE}")
    else:
        filesystem, path = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), LOCK_FILE
    return SweepLock(filesystem, path, on_lost, notify, Timing(0.05, watch_s, 0.05))


def leave_lock(folder: Path, is_local: bool, host: str, pid: int, watch_s: float = WATCH_S) -> None:
    """What a driver's last beat left; written atomically, as a reader may be watching."""
    values = {"host": host, "pid": pid, "token": "other", "beat": time.time()}
    text = json.dumps(values)
    if is_local:
        values = {"pid": pid, "host": host, "mode": "lease", "token": "other", "duration": watch_s}
        text = "filelock/2\n" + "".join(f"{key}={value}\n" for key, value in values.items())
    (folder / "other").write_text(text)
    (folder / "other").replace(folder / LOCK_FILE)


@contextmanager
def beating(folder: Path, is_local: bool, host: str, pid: int) -> Iterator[None]:
    """A driver elsewhere that is alive and keeps writing its lock."""
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
def test_lock_held_refused(is_local: bool, tmp_path: Path) -> None:
    """The second driver is refused by name, and the first keeps its lock."""
    lost: list[bool] = []
    refused = f"one driver at a time, and .* held by the driver with pid {os.getpid()} on {HOST};"
    with lock_in(tmp_path, is_local, lambda: lost.append(True)):
        with pytest.raises(SettingsError, match=refused), lock_in(tmp_path, is_local):
            pass
        time.sleep(0.15)
        assert (tmp_path / LOCK_FILE).exists()
    assert not lost
    assert not list(tmp_path.iterdir())


def test_lock_of_killed_process(tmp_path: Path) -> None:
    """A stopped process still holds its lock; once it is killed, the lock is taken over at once."""
    program = f"""
import time
from pyarrow import fs
from tune_jobs.engine.store.lock import SweepLock, Timing
with SweepLock(fs.LocalFileSystem(), {str(tmp_path / LOCK_FILE)!r}, timing=Timing(watch_s=60)):
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
            pytest.raises(SettingsError, match=f"held by {name}; wait until it ends, or stop it"),
            lock_in(tmp_path, watch_s=60),
        ):
            pass
        driver.kill()
        driver.wait()
        notices: list[str] = []
        with lock_in(tmp_path, notify=notices.append, watch_s=60):
            assert time.monotonic() - start < 5
    assert notices == [f"Taking over from {name}, which no longer responds."]


@in_every_way
def test_lock_of_exited_process(is_local: bool, tmp_path: Path) -> None:
    """On the same host, the lock is taken over without a watch."""
    leave_lock(tmp_path, is_local, HOST, GONE_PID, watch_s=60)
    start = time.monotonic()
    with lock_in(tmp_path, is_local, watch_s=60):
        assert time.monotonic() - start < 5


@in_every_way
def test_lock_of_zombie_process(is_local: bool, tmp_path: Path) -> None:
    """A killed process that nobody has waited for counts as dead."""
    with subprocess.Popen(["true"]) as driver:
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)
        leave_lock(tmp_path, is_local, HOST, driver.pid)
        with lock_in(tmp_path, is_local):
            pass


@in_every_way
@pytest.mark.parametrize("host", ["far", f"{HOST}?pidns-f0000001"], ids=["host", "container"])
def test_lock_beating_elsewhere_refused(host: str, is_local: bool, tmp_path: Path) -> None:
    """A driver on another host, or in a container, that beats holds its lock."""
    refused = f"held by the driver with pid {GONE_PID} on {host.partition('?')[0]}; wait"
    with (
        beating(tmp_path, is_local, host, GONE_PID),
        pytest.raises(SettingsError, match=refused),
        lock_in(tmp_path, is_local),
    ):
        pass
    assert "other" in (tmp_path / LOCK_FILE).read_text()


@in_every_way
def test_lock_silent_elsewhere_taken_over(is_local: bool, tmp_path: Path) -> None:
    """Its lock is taken over when it has not changed during the whole watch."""
    leave_lock(tmp_path, is_local, "far", 7)
    notices: list[str] = []
    start = time.monotonic()
    with lock_in(tmp_path, is_local, notify=notices.append):
        assert WATCH_S < time.monotonic() - start < 5
    assert notices == ["Taking over from the driver with pid 7 on far, which no longer responds."]


def test_lock_mount_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and SMB cannot swap two names atomically; the outcome is the same."""
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
def test_lock_torn_file_taken_over(content: str, is_local: bool, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    notices: list[str] = []
    with lock_in(tmp_path, is_local, notify=notices.append, watch_s=0.1):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert notices == [
        "Taking over from a driver whose lock cannot be read, which no longer responds."
    ]


def test_lock_released_while_watched(tmp_path: Path) -> None:
    """The driver ended by itself: no notice."""
    leave_lock(tmp_path, False, "far", 7)
    notices: list[str] = []
    timer = threading.Timer(0.1, (tmp_path / LOCK_FILE).unlink)
    timer.start()
    with lock_in(tmp_path, False, notify=notices.append, watch_s=60):
        timer.join()
    assert not notices


@in_every_way
def test_lock_loss_reported_once(is_local: bool, tmp_path: Path) -> None:
    """A lock that another driver has taken over is left unchanged."""
    lost: list[bool] = []
    with lock_in(tmp_path, is_local, lambda: lost.append(True)):

        def take_over() -> bool:
            leave_lock(tmp_path, is_local, "far", 7)
            return bool(lost)

        wait_for(take_over)  # more than once: at a URL, a beat at the same instant may overwrite it
        time.sleep(0.2)
    assert lost == [True]
    assert "other" in (tmp_path / LOCK_FILE).read_text()


@in_every_way
def test_lock_folder_removed(is_local: bool, tmp_path: Path) -> None:
    """The lock is lost once, and leaving it raises nothing."""
    lost: list[bool] = []
    (tmp_path / "s").mkdir()
    with lock_in(tmp_path / "s", is_local, lambda: lost.append(True)):
        (tmp_path / "s").rename(tmp_path / "away")
        shutil.rmtree(tmp_path / "away")
        wait_for(lambda: bool(lost))
    assert lost == [True]
    assert not list(tmp_path.iterdir())


@in_every_way
def test_lock_unwritable_folder_refused(is_local: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SettingsError, match=r"cannot be written .* must be readable and writable"),
        lock_in(tmp_path / "file", is_local),
    ):
        pass


def test_lock_interrupted_entry_leaves_nothing(
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
    """One object, as S3 stores it: a write is atomic, arrives late and overwrites others."""

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


def test_lock_survives_network_failure() -> None:
    lost: list[bool] = []
    store = ObjectStore()
    with SweepLock(
        store, "b/s", lambda: lost.append(True), timing=Timing(beat_s=0.02, settle_s=0.02)
    ):
        store.num_failures = 3
        wait_for(lambda: not store.num_failures)
        store.content = b""  # what a write that failed may leave
        wait_for(lambda: bool(store.content))
    assert not lost
    assert store.content is None


def race(new_lock: Callable[[Callable[[], None]], SweepLock]) -> None:
    """Let four drivers enter at once; exactly one may win, and it must not lose its lock."""
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
def test_lock_race_in_folder(host: str | None, tmp_path: Path) -> None:
    """Of four drivers, exactly one wins."""
    if host:
        leave_lock(tmp_path, True, host, GONE_PID)
    race(lambda on_lost: lock_in(tmp_path, on_lost=on_lost))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_dead", [False, True], ids=["free", "dead"])
def test_lock_race_at_url(is_dead: bool, tmp_path: Path) -> None:
    """Of four drivers, the last one to write wins, and it alone."""
    store = ObjectStore()
    if is_dead:
        leave_lock(tmp_path, False, "far", 7)
        store.content = (tmp_path / LOCK_FILE).read_bytes()
    race(lambda on_lost: SweepLock(store, "b/s", on_lost, timing=Timing(0.02, 0.2, 0.2)))
    assert store.content is None
