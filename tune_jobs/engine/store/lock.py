"""One driver a sweep: a lock file with a heartbeat, in a folder, on a shared mount or at a URL."""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn, Self
from uuid import uuid4

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout
from pyarrow import fs

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.layout import LOCK_FILE

__all__ = ["SweepLock", "Timing"]

_UNREADABLE = "a driver whose lock cannot be read"


class Timing(NamedTuple):
    """How long a lock waits for what, in seconds.

    Attributes:
        beat_s: A driver writes its lock again after this time.
        watch_s: A lock that has not changed for this time belongs to a dead driver.
        settle_s: Where two drivers may write at once, each waits this long and reads again.
    """

    beat_s: float = 2.0
    watch_s: float = 6.0
    settle_s: float = 1.0


class SweepLock:
    """Held while a driver works on a sweep; a context manager, to be entered once.

    The lock of a living driver is refused. The lock of a dead one is taken over: at once if its
    process was on this host, else when the lock has not changed for `watch_s`. A driver that cannot
    write for so long (asleep, cut off) may lose its lock; then `on_lost` is called once, from
    another thread.

    Args:
        filesystem: Where the lock file is.
        path: Its path there.
        on_lost: Called when another driver has taken the lock over.
        notify: Called with a line that names the dead driver whose lock was taken over.
        timing: How often a driver writes, and how long others watch.

    Raises:
        SettingsError: On entering: a living driver holds the lock, or the file cannot be written.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        path: str,
        on_lost: Callable[[], None] = lambda: None,
        notify: Callable[[str], None] = lambda text: None,
        timing: Timing = Timing(),  # noqa: B008 - it cannot be changed
    ) -> None:
        self._path = path
        self._notify = notify
        self._lock: _FolderLock | _ObjectLock
        if isinstance(filesystem, fs.LocalFileSystem):
            self._lock = _FolderLock(path, on_lost, timing)
        else:
            self._lock = _ObjectLock(filesystem, path, on_lost, timing)

    def __enter__(self) -> Self:
        try:
            if gone := self._lock.take():
                self._notify(f"Taking over from {gone}, which no longer responds.")
        except BaseException as error:
            self._lock.release()
            if not isinstance(error, OSError):
                raise
            raise SettingsError(
                f"the lock {self._path} cannot be written ({error}); "
                "a sweep's folder must be readable and writable."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _FolderLock:
    """A lease of filelock's, for local and mounted folders. If drivers race, exactly one wins.

    Where two names cannot be swapped atomically (NFS, SMB), filelock takes nothing over. There,
    this class removes a file that did not change during the whole watch; if two hosts do so at the
    same instant, one of them finds out at the next beat. There, too, a dead driver of this host
    whose pid now belongs to another process counts as alive until its file is deleted.
    """

    def __init__(self, path: str, on_lost: Callable[[], None], timing: Timing) -> None:
        self._path = path
        self._patience_s = timing.watch_s + timing.beat_s
        self._lease = SoftFileLease(
            path,
            lease_duration=timing.watch_s,
            heartbeat_interval=timing.beat_s,
            on_compromise=lambda _: on_lost(),
            poll_interval=timing.beat_s / 4,
            thread_local=False,  # another thread may leave it
        )

    def take(self) -> str | None:
        """Take the lock; return the name of the dead driver that held it, if one did."""
        found, holder = self._stamp(), self._holder()
        try:
            self._acquire()
        except (Timeout, LeaseSettingsMismatch):
            _refuse(self._path, self._holder())
        return str(holder or _UNREADABLE) if found else None

    def release(self) -> None:
        with suppress(OSError):
            self._lease.release()

    def _acquire(self) -> None:
        with suppress(Timeout):
            self._lease.acquire(blocking=False)
            return
        found, holder = self._stamp(), self._holder()
        if not (holder and holder.runs_here()):
            with suppress(Timeout):
                self._lease.acquire(timeout=self._patience_s)
                return
            if found and self._stamp() == found:
                self._lease.force_break()
        self._lease.acquire(blocking=False)

    def _holder(self) -> "_Driver | None":
        owner = self._lease.owner
        return _Driver(owner.hostname, owner.pid) if owner else None

    def _stamp(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            stat = os.lstat(self._path)
            return stat.st_ino, stat.st_mtime_ns
        return None


@dataclass
class _ObjectLock:
    """For pyarrow's other file systems, which cannot compare and write atomically.

    A driver writes its token, waits `settle_s` and reads again: if it finds another's token, it has
    lost. A write that takes longer, or a delayed beat, can overwrite another's lock; then two
    drivers hold the sweep until one of them finds out at the next beat.
    """

    filesystem: Any
    path: str
    on_lost: Callable[[], None]
    timing: Timing

    def __post_init__(self) -> None:
        self._me = _Driver(_this_host(), os.getpid(), uuid4().hex)
        self._leaving = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name="sweep-lock", daemon=True)

    def take(self) -> str | None:
        """Take the lock; return the name of the dead driver that held it, if one did."""
        found = self._read()
        holder = _Driver.read(found)
        is_gone = holder is not None and holder.runs_here() is False
        deadline = time.monotonic() + (0 if is_gone else self.timing.watch_s)
        while found is not None and time.monotonic() < deadline:
            time.sleep(self.timing.beat_s / 4)
            now = self._read()
            if now not in (found, None):
                _refuse(self.path, _Driver.read(now) or holder)
            found = now  # None: its driver ended
        self._write()
        time.sleep(self.timing.settle_s)
        if not self._is_mine(winner := _Driver.read(self._read())):
            _refuse(self.path, winner)
        self._heart.start()
        return None if found is None else str(holder or _UNREADABLE)

    def release(self) -> None:
        self._leaving.set()
        if self._heart.is_alive():
            self._heart.join(timeout=self.timing.watch_s)  # not forever: a network can hang
        with suppress(OSError):
            if self._is_mine(_Driver.read(self._read())):
                self.filesystem.delete_file(self.path)

    def _keep_beating(self) -> None:
        while not self._leaving.wait(self.timing.beat_s):
            with suppress(OSError):  # the next beat may come through
                content = self._read()
                holder = _Driver.read(content)
                if content is None or (holder and not self._is_mine(holder)):
                    self.on_lost()
                    return
                self._write()  # also if the last beat was cut off

    def _is_mine(self, driver: "_Driver | None") -> bool:
        return driver is not None and driver.token == self._me.token

    def _read(self) -> bytes | None:
        try:
            with self.filesystem.open_input_stream(self.path) as file:
                return bytes(file.readall())
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        content = json.dumps(self._me._replace(beat=time.time())._asdict())
        with self.filesystem.open_output_stream(self.path) as file:
            file.write(content.encode())


class _Driver(NamedTuple):
    host: str
    pid: int
    token: str = ""
    beat: float = 0.0

    @classmethod
    def read(cls, content: bytes | None) -> Self | None:
        """From the JSON at a URL; None: there is none, or it was cut off."""
        try:
            return cls(**json.loads(content or b""))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"the driver with pid {self.pid} on {self.host.partition('?')[0]}"

    def runs_here(self) -> bool | None:
        """Whether its process runs on this host; None: it is a process of another host."""
        if self.host != _this_host():
            return None
        try:
            os.kill(self.pid, 0)
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except ProcessLookupError:
            return False
        except OSError:
            return True  # another user's, or there is no /proc
        return stat.rpartition(b")")[2].split()[0] != b"Z"  # killed, but not yet waited for


def _refuse(path: str, holder: _Driver | None) -> NoReturn:
    raise SettingsError(
        f"a sweep has one driver at a time, and {path} is held by {holder or _UNREADABLE}; "
        "wait until it ends, or stop it."
    ) from None


@cache
def _this_host() -> str:
    """This host as filelock names it; containers may share a name, so a pid namespace follows."""
    with TemporaryDirectory() as folder, SoftFileLease(f"{folder}/{LOCK_FILE}") as lease:
        return str(lease.owner and lease.owner.hostname)
