"""Several hosts on one machine: each has its own network, processes, files and sshd.

A host is a set of Linux namespaces: what it writes is laid over this machine's files and lasts
until the lab closes, also through a power cut. The driver's host holds the bridge between the
others. Nothing of it reaches beyond the namespaces.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).parents[2]
SHARED = "/mnt/shared"  # on every host
DRIVER = "driver"
# Else a host's init would outlive a test run that is killed, and so would all that it started.
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
TOOLS = ["ip", "nsenter", "unshare", "setpriv", "mount", "umount", "hostname", "pkill", "ss"]
TOOLS += ["ssh", "sshd", "ssh-keygen", "rsync", "curl", "git"]
NO_PACKAGE = [REPO / "tune_jobs", REPO / "models"]


def why_not() -> str | None:
    """Why this machine cannot hold a lab; None: it can."""
    if os.geteuid() != 0:
        return "several hosts on one machine need root, for namespaces"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not found; run tests/cluster/setup.sh"
    layers = "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work"
    build = (
        "mount -t tmpfs x /mnt && mkdir /mnt/upper /mnt/work /mnt/root && "
        f"mount -t overlay overlay -o {layers} /mnt/root && "
        "ip link add br0 type bridge && ip link add v0 type veth peer name v1"
    )
    spaces = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork"]
    done = subprocess.run([*spaces, "sh", "-c", build], capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


@dataclass
class Host:
    """One of the lab's hosts.

    Attributes:
        name: Its host name.
        ip: Its address.
        lab: Where it is.
        hidden: Folders of this machine that are empty on it.
    """

    name: str
    ip: str
    lab: "Lab"
    hidden: Sequence[Path] = ()
    env: dict[str, str] = field(default_factory=dict)
    _unshare: subprocess.Popen[bytes] | None = None
    _pid: int = 0

    @property
    def netns(self) -> str:
        return f"{self.lab.prefix}-{self.name}"

    @property
    def disk(self) -> Path:
        return self.lab.folder / self.name

    @property
    def is_on(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is None

    def power_on(self) -> None:
        if not os.path.ismount(self.disk):
            self.disk.mkdir()
            run("mount", "-t", "tmpfs", "-o", "size=6g", "tmpfs", self.disk)
        init = Path(__file__).with_name("host_init.sh")
        args = [self.name, self.disk, self.lab.share, self.lab.keys, sys.prefix, *self.hidden]
        spaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                [*DIES_WITH_US, "ip", "netns", "exec", self.netns, *spaces, init, *map(str, args)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_for(self._listens, 20, f"ssh of {self.name}; see {self.log}")
        self.heal()

    @property
    def log(self) -> Path:
        return self.lab.folder / f"{self.name}.log"

    def power_off(self) -> None:
        """End everything at once: no process can write or send anything more."""
        self.cut()  # else the kernel would close the connections in order
        self.shut_down()

    def shut_down(self) -> None:
        """End everything that runs, and close its connections."""
        if self._unshare is not None:
            self._unshare.kill()  # and with it goes the host's first process, and all others
            self._unshare.wait()
            self._unshare = None

    def replace(self) -> None:
        """Put another machine in place of this one, which is off, with the same address."""
        run("umount", self.disk)
        self.disk.rmdir()

    def cut(self) -> None:
        """Cut the network."""
        self._switch("down")

    def heal(self) -> None:
        """Restore the network."""
        self._switch("up")

    def start(self, command: str, **env: str) -> subprocess.Popen[str]:
        """Start a shell command on this host, as root at home; the caller reads its output."""
        values = {
            "HOME": os.environ["HOME"],
            "USER": "root",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
        }
        values["PATH"] = f"{Path(sys.prefix, 'bin')}:/usr/sbin:/usr/bin:/sbin:/bin"
        pairs = [f"{name}={value}" for name, value in {**values, **self.env, **env}.items()]
        spaces = ["nsenter", "-t", str(self._pid), "-n", "-m", "-u", "-i", "-p", "-r", "-w"]
        process = subprocess.Popen(
            [*DIES_WITH_US, *spaces, "env", "-i", *pairs, "bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.lab.started.append(process)
        return process

    def succeeds(self, command: str) -> bool:
        process = self.start(f"timeout 20 {command}")
        process.communicate()
        return process.returncode == 0

    def run(self, command: str, timeout_s: float = 120, check: bool = True, **env: str) -> str:
        """Run a shell command on this host and return what it printed.

        Raises:
            AssertionError: It failed, or took longer.
        """
        process = self.start(command, **env)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            output = end(process)
            raise AssertionError(f"{command} took over {timeout_s} s:\n{output}") from None
        assert not (check and process.returncode), f"{command} failed:\n{output}"
        return output

    def _switch(self, state: str) -> None:
        if self is not self.lab.driver:  # which holds the switch
            cable = f"v-{self.name}"
            run("ip", "-n", self.lab.driver.netns, "link", "set", cable, state)

    def _listens(self) -> bool:
        assert self._unshare is not None
        assert self._unshare.poll() is None, self.log.read_text()
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self._pid = int((children.read_text().split() or ["0"])[0])
        return self._pid > 0 and "Server listening" in self.log.read_text()


class Lab:
    """A driver's host, from which `ray up` runs, and others, to which it can log in.

    Args:
        folder: An empty one.
        hosts: The names of the other hosts, and their addresses, all of one /24.
        with_code: The hosts on which this project is installed, besides the driver's. On the others
            the code is there only if something brings it.
    """

    def __init__(self, folder: Path, hosts: Mapping[str, str], with_code: Sequence[str]) -> None:
        self.folder, self.share, self.keys = folder, folder / "share", folder / "keys"
        self.prefix = f"lab{os.getpid()}"
        self.started: list[subprocess.Popen[str]] = []
        self.network = next(iter(hosts.values())).rpartition(".")[0]
        self.driver = Host(DRIVER, f"{self.network}.1", self)
        self.hosts = {
            name: Host(name, ip, self, () if name in with_code else NO_PACKAGE)
            for name, ip in hosts.items()
        }

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @contextmanager
    def opened(self) -> Iterator["Lab"]:
        """Switch all hosts on, and remove every trace of them at the end."""
        with ExitStack() as stack:
            self.share.mkdir()
            self._make_keys()
            for host in (self.driver, *self.hosts.values()):
                stack.callback(self._remove, host)
                run("ip", "netns", "add", host.netns)
                self._connect(host)
                host.power_on()
            self._give_driver_its_key()
            stack.callback(self._end_started)
            yield self

    def _make_keys(self) -> None:
        self.keys.mkdir()
        names = {host.ip: host.name for host in (self.driver, *self.hosts.values())}
        lines = [f"{ip} {name}" for ip, name in {"127.0.0.1": "localhost", **names}.items()]
        (self.keys / "hosts").write_text("\n".join(lines) + "\n")
        for name in ("id", *names.values()):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.keys / name)

    def _connect(self, host: Host) -> None:
        run("ip", "-n", host.netns, "link", "set", "lo", "up")
        if host is self.driver:
            run("ip", "-n", host.netns, "link", "add", "br0", "type", "bridge")
            device = "br0"
        else:
            bridge, cable = self.driver.netns, f"v-{host.name}"
            pair = ["type", "veth", "peer", "name", "eth0", "netns", host.netns]
            run("ip", "-n", bridge, "link", "add", cable, *pair)
            run("ip", "-n", bridge, "link", "set", cable, "master", "br0", "up")
            device = "eth0"
        run("ip", "-n", host.netns, "addr", "add", f"{host.ip}/24", "dev", device)
        run("ip", "-n", host.netns, "link", "set", device, "up")
        if host is not self.driver:  # Ray finds a host's address by asking for a route
            run("ip", "-n", host.netns, "route", "add", "default", "via", self.driver.ip)

    def _give_driver_its_key(self) -> None:
        (self.share / "id").write_bytes((self.keys / "id").read_bytes())
        self.driver.run(f"install -m 600 {SHARED}/id ~/.ssh/lab.pem && rm {SHARED}/id")

    def _end_started(self) -> None:
        for process in self.started:
            end(process)

    def _remove(self, host: Host) -> None:
        host.shut_down()
        subprocess.run(["ip", "netns", "del", host.netns], capture_output=True)
        subprocess.run(["umount", self.folder / host.name], capture_output=True)


def end(process: subprocess.Popen[str]) -> str:
    """End what a host has started, with its children, and return what it printed."""
    assert process.stdout is not None
    if process.stdout.closed:
        return ""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def wait_for(is_so: Callable[[], object], timeout_s: float, what: str) -> float:
    """Wait until a condition holds, and return the seconds it took."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < timeout_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.2)
    return time.monotonic() - start


def quoted(*args: object) -> str:
    return shlex.join(str(arg) for arg in args)
