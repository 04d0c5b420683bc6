"""One driver a sweep: a lock file with a heartbeat, in a folder, on a shared mount or at a URL."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, NoReturn, Protocol, Self
from uuid import uuid4

from pyarrow import fs

from tune_jobs.engine.settings import SettingsError

__all__ = ["BEAT_S", "LOCK_FILE", "SETTLE_S", "WATCH_S", "SweepLock"]

LOCK_FILE = "sweep.lock"

# A holder rewrites its lock this often.
BEAT_S = 2.0
# A lock that stays as it is for so long, three beats, has a dead holder.
WATCH_S = 6.0
# What another driver had begun to write at a URL has arrived by then.
SETTLE_S = 1.0

# Nobody keeps the kernel's lock on the file for longer than one read and one write.
_FLOCK_S = 2.0

_Mode = Literal["rb", "r+b"]


class SweepLock:
    """Held while a driver works on a sweep; a context manager, to be entered once.

    The lock of a living driver is refused, that of a dead one taken over. A driver on this machine
    is judged at once by its pid and the start of its process, where there is a /proc; any other by
    its heartbeat, which is watched for `watch_s` and compared with nothing but itself, as clocks
    differ. So is a lock that cannot be read, as a power cut leaves one behind. `kill -9` leaves
    the file, and the next driver takes over.

    Where the file system is the kernel's (a folder, a mount, file://), the file is made with
    O_EXCL and changed in place under flock(2): of drivers that race exactly one wins, none sees
    half a file, and none overwrites a lock that changed hands since it looked. A mount that cannot
    flock, or does so for each host alone (NFS with `nolock`), leaves a takeover that two hosts try
    in the same instant for the next beat to settle.

    An object store offers pyarrow no such step. There each driver writes its own token, waits
    `settle_s` and reads back: who finds another's has lost. A write that takes longer than that,
    or a beat held up in the midst, can go over another's lock; then two drivers hold the sweep
    until the next beat tells one of them.

    A holder that does not come to write for `watch_s` (a laptop asleep, a network cut off, Python
    held up by native code) may be taken over from another machine, which its next beat tells it.

    Args:
        filesystem: Where the sweep lies.
        path: The lock file's path there; its folder exists.
        on_lost: Called once, from a thread of the lock's, when the file is gone or another's.
        beat_s: Seconds between two beats.
        watch_s: Seconds for which a lock must not change to count as a dead driver's.
        settle_s: Seconds between writing and reading back; not used on the kernel's file systems.

    Raises:
        SettingsError: On entering: a living driver holds the lock, or the file cannot be written.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        path: str,
        on_lost: Callable[[], None] = lambda: None,
        *,
        beat_s: float = BEAT_S,
        watch_s: float = WATCH_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        is_local = isinstance(filesystem, fs.LocalFileSystem)
        self._file: _File = _LocalFile(path) if is_local else _RemoteFile(filesystem, path)
        self._path = path
        self._on_lost = on_lost
        self._beat_s = beat_s
        self._watch_s = watch_s
        self._settle_s = 0.0 if is_local else settle_s
        self._me = _Driver.this()
        self._leaving = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name="sweep-lock", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._take()
        except BaseException as error:
            self._remove()
            if not isinstance(error, OSError):
                raise
            raise SettingsError(
                f"the lock {self._path} cannot be written ({error}); "
                "a sweep's folder must be readable and writable."
            ) from error
        self._heart.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Removes the file if it is still ours; what fails in that is the next driver's to mend."""
        self._leaving.set()
        self._heart.join(timeout=self._watch_s)  # not for ever: a network can hang
        self._remove()

    def _take(self) -> None:
        found = self._file.read()
        if found is not None:
            found = self._outlive(found)
        if found is not None:
            try:
                self._file.replace(lambda now: now == found, self._content())
            except FileNotFoundError:
                found = None  # another was faster, and has ended already
        if found is None:
            self._file.create(self._content())
        time.sleep(self._settle_s)
        holder = _Driver.read(self._file.read())
        if holder != self._me:
            self._refuse(holder)
        if found is not None:
            print(f"taken over from {_name(_Driver.read(found))}, which is gone", flush=True)

    def _outlive(self, found: bytes) -> bytes | None:
        """The content again if it is a dead driver's; None: its driver ended and removed it.

        Raises:
            SettingsError: The driver is alive.
        """
        holder = _Driver.read(found)
        is_alive = holder.is_alive() if holder else None
        if is_alive:
            self._refuse(holder)
        if is_alive is None:
            now = self._watch(found)
            if now is None:
                return None
            if now != found:
                self._refuse(_Driver.read(now))
        return found

    def _watch(self, found: bytes) -> bytes | None:
        """What the file holds once it is no longer what was found, or when the time is over."""
        deadline = time.monotonic() + self._watch_s
        while True:
            is_over = time.monotonic() > deadline
            now = self._file.read()
            if now != found or is_over:
                return now
            time.sleep(self._beat_s / 4)

    def _refuse(self, holder: "_Driver | None") -> NoReturn:
        raise SettingsError(
            f"a sweep has one driver at a time, and {self._path} is held by {_name(holder)}; "
            "wait for it to end, or end it."
        )

    def _keep_beating(self) -> None:
        while not self._leaving.wait(self._beat_s):
            try:
                is_held = self._file.replace(self._is_not_anothers, self._content())
            except FileNotFoundError:
                is_held = False
            except OSError:
                continue  # a full disk or a network that is away: the next beat may come through
            if not is_held:
                if not self._leaving.is_set():
                    self._on_lost()
                return

    def _remove(self) -> None:
        with suppress(OSError):
            self._file.remove(lambda content: _Driver.read(content) == self._me)

    def _content(self) -> bytes:
        return json.dumps(asdict(self._me) | {"beat": time.time()}).encode()

    def _is_not_anothers(self, content: bytes) -> bool:
        """A torn file is nobody's: a beat that a full disk cut off is written again."""
        return _Driver.read(content) in (self._me, None)


@dataclass(frozen=True)
class _Driver:
    """Who holds a lock, as the file tells it."""

    host: str
    """Name of the host, for people; two may share one."""
    pid: int
    machine: str | None
    """The boot and the pid namespace in which `pid` is one process; None: not known here.

    A host's name would not do: containers that share it see different processes.
    """
    started: float | None
    """Start of the process in s since boot, as no setting of the clock changes it; None: unknown.

    Tells a process from a later one that was given the same pid.
    """
    token: str
    """Of this one lock."""

    @classmethod
    def this(cls) -> Self:
        """This process, with a new token."""
        pid = os.getpid()
        stat = _stat(pid)
        return cls(socket.gethostname(), pid, _machine(), stat and stat[1], uuid4().hex)

    @classmethod
    def read(cls, content: bytes | None) -> Self | None:
        """The driver that wrote the content; None: no file, or one that is empty or torn."""
        try:
            values = json.loads(content or b"")
            values.pop("beat")
            return cls(**values)
        except (ValueError, TypeError, LookupError, AttributeError):
            return None

    def is_alive(self) -> bool | None:
        """Whether its process runs; None: it cannot be told from here."""
        if self.machine is None or self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it runs, but as another user
        stat = _stat(self.pid)
        if stat is None:
            return None  # hidden from other users, or ended just now
        state, started = stat
        return state not in ("Z", "X") and started == self.started


def _name(driver: _Driver | None) -> str:
    if driver is None:
        return "a driver whose lock cannot be read"
    return f"the driver with pid {driver.pid} on {driver.host}"


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _stat(pid: int) -> tuple[str, float] | None:
    """The process's state and its start in seconds since boot: fields 3 and 22 of proc(5)'s stat.

    Before them comes the program's name in brackets, which may hold blanks and brackets.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19]) / os.sysconf("SC_CLK_TCK")


class _File(Protocol):
    """The lock file: whole contents only. Any step may raise OSError."""

    def read(self) -> bytes | None:
        """What it holds; None: it is not there."""

    def create(self, content: bytes) -> None:
        """Makes the file, unless there is one."""

    def replace(self, is_meant: Callable[[bytes], bool], content: bytes) -> bool:
        """Writes the content in place of one that is meant; False: it is not, and stays.

        Raises:
            FileNotFoundError: There is no file.
        """

    def remove(self, is_meant: Callable[[bytes], bool]) -> None:
        """Removes the file if its content is meant."""


class _LocalFile:
    """On a file system of the kernel's: looking and writing are one step, under flock(2).

    Written in place: a file renamed onto it would not share its flock, and could be renamed onto
    another driver's.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> bytes | None:
        try:
            with self._opened("rb", fcntl.LOCK_SH) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> None:
        try:
            open(self._path, "xb").close()
        except FileExistsError:
            return
        self.replace(lambda found: not found, content)

    def replace(self, is_meant: Callable[[bytes], bool], content: bytes) -> bool:
        with self._opened("r+b", fcntl.LOCK_EX) as file:
            if not is_meant(file.read()):
                return False
            file.seek(0)
            file.write(content)
            file.truncate()
            return True

    def remove(self, is_meant: Callable[[bytes], bool]) -> None:
        with self._opened("r+b", fcntl.LOCK_EX) as file:
            if is_meant(file.read()):
                os.unlink(self._path)

    @contextmanager
    def _opened(self, mode: _Mode, operation: int) -> Iterator[IO[bytes]]:
        with open(self._path, mode, buffering=0) as file:
            _flock(file, operation)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    raise FileNotFoundError(f"{self._path} was removed just now")
                yield file
            finally:
                with suppress(OSError):  # closing is not enough: a child may have been forked
                    fcntl.flock(file, fcntl.LOCK_UN)


def _flock(file: IO[bytes], operation: int) -> None:
    """flock(2), or nothing where the file system has none.

    Raises:
        BlockingIOError: Another process keeps it: stopped in the midst, or cut off.
    """
    deadline = time.monotonic() + _FLOCK_S
    while True:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        except OSError:
            return
        time.sleep(0.005)


class _RemoteFile:
    """On any file system of pyarrow's: looking and writing are two steps."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._filesystem = filesystem
        self._path = path

    def read(self) -> bytes | None:
        try:
            with self._filesystem.open_input_stream(self._path) as file:
                return bytes(file.readall())
        except FileNotFoundError:
            return None

    def create(self, content: bytes) -> None:
        if self.read() is None:
            self._write(content)

    def replace(self, is_meant: Callable[[bytes], bool], content: bytes) -> bool:
        found = self.read()
        if found is None:
            raise FileNotFoundError(f"{self._path} is gone")
        if not is_meant(found):
            return False
        self._write(content)
        return True

    def remove(self, is_meant: Callable[[bytes], bool]) -> None:
        found = self.read()
        if found is not None and is_meant(found):
            self._filesystem.delete_file(self._path)

    def _write(self, content: bytes) -> None:
        with self._filesystem.open_output_stream(self._path) as file:
            file.write(content)
