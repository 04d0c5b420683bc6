"""The project's cluster files, brought up on the lab's hosts as a user brings them up."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab import REPO, SHARED, Host, Lab, end, quoted, wait_for

DASHBOARD = "http://127.0.0.1:8265"
ENV = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
CLONE = f"{SHARED}/clone"
SWEEPS = f"{SHARED}/sweeps"
# Unlike the nodes of a real cluster, these share one machine's memory.
SMALL_STORE = "--object-store-memory=200000000"

LIST_NODES = """
import json, ray
ray.init(address="auto", logging_level="ERROR")
print("NODES", json.dumps([
    [node["NodeManagerHostname"], node["Resources"]] for node in ray.nodes() if node["Alive"]
]))
"""


def fill_in(file: str, values: Mapping[str, str]) -> str:
    """A cluster file of this project with some of its text replaced.

    Raises:
        AssertionError: The text to replace is missing.
    """
    text = (REPO / file).read_text()
    for old, new in values.items():
        assert old in text, f"{file} does not hold {old!r}"
        text = text.replace(old, new)
    return text


class RayCluster:
    """A cluster on the lab's hosts, driven from the driver's.

    Args:
        lab: Opened; its first other host is the head.
        text: The cluster file.
    """

    def __init__(self, lab: Lab, text: str) -> None:
        self.lab, self.driver = lab, lab.driver
        self.head: Host = next(iter(lab.hosts.values()))
        self.driver.env |= {**ENV, "RAY_API_SERVER_ADDRESS": DASHBOARD}
        (lab.share / "cluster.yaml").write_text(text)
        copy_of_repo(lab.share / "clone")
        self.driver.run("ray get-auth-token --generate >/dev/null; chmod 600 ~/.ray/auth_token")
        self._tunnel: subprocess.Popen[str] | None = None
        self.early = ""  # what the first job printed

    def up(self) -> None:
        """`ray up`, and a tunnel to the dashboard."""
        self.driver.run(f"ray up -y {SHARED}/cluster.yaml", timeout_s=280)
        self.open_tunnel()

    def down(self) -> str:
        """`ray down`."""
        return self.driver.run(f"ray down -y {SHARED}/cluster.yaml", timeout_s=120)

    def open_tunnel(self) -> None:
        self.close_tunnel()
        self._tunnel = self.driver.start(
            f"exec ray dashboard {SHARED}/cluster.yaml >/tmp/tunnel.log 2>&1"
        )
        asks = f"curl -s -m 5 -o /dev/null {DASHBOARD}"
        wait_for(lambda: self.driver.succeeds(asks), 40, "the tunnel to the dashboard")

    def close_tunnel(self) -> None:
        if self._tunnel is not None:
            end(self._tunnel)
            self.driver.run("pkill -f '[8]265:localhost'; true")  # ssh keeps it open by itself

    def nodes(self) -> dict[str, dict[str, float]]:
        """The resources of each living node, by the name of its host."""
        output = self.on_head(quoted("python", "-c", LIST_NODES), check=False)
        lines = [line for line in output.splitlines() if line.startswith("NODES ")]
        return dict(json.loads(lines[0].removeprefix("NODES "))) if lines else {}

    def on_head(self, command: str, check: bool = True) -> str:
        """Run a command on the head, in the environment that the cluster file set up."""
        return self.head.run(f"source ~/.tune-jobs-env; {command}", check=check)

    def wait_for_nodes(self, *names: str, timeout_s: float = 120) -> float:
        """Wait until exactly these nodes are alive, and return the seconds it took."""
        return wait_for(
            lambda: set(self.nodes()) == set(names), timeout_s, f"nodes {', '.join(names)}"
        )

    def submit(self, command: str, on: Host | None = None) -> subprocess.Popen[str]:
        """Start a job of the clone's folder, as a user does on the laptop.

        Args:
            command: The job's.
            on: Where it is to run; None: on the head.
        """
        where = f"--entrypoint-resources '{{\"node:{on.ip}\": 0.01}}' " if on else ""
        options = f"--working-dir . {where}--"
        return self.driver.start(f"cd {CLONE} && ray job submit {options} {command}")


def copy_of_repo(to: Path) -> None:
    """The files that git tracks, as in a fresh clone, with uncommitted changes."""
    listed = ["git", "-C", REPO, "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in names:
        if (REPO / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, to / name)


def finish(job: subprocess.Popen[str], timeout_s: float = 280) -> str:
    """Wait for a job to succeed, and return what it printed.

    Raises:
        AssertionError: It failed.
    """
    try:
        output, _ = job.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the job took over {timeout_s} s:\n{end(job)}") from None
    assert job.returncode == 0, output
    return output


def steady(name: str, num_trials: int, num_epochs: int) -> str:
    """The command of a sweep with epochs of a second, none of whose trials stops early."""
    return (
        f"env STEADY_NOTES={SHARED}/{name}.txt python tests/cluster/steady.py --name {name} "
        f"--num-trials {num_trials} --max-epochs {num_epochs} --grace-epochs {num_epochs}"
    )


def notes(lab: Lab, name: str) -> list[tuple[str, str, int]]:
    """What the trials of that sweep noted as epochs began: host, trial's `x`, epoch."""
    file = lab.share / f"{name}.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(host, x, int(epoch)) for host, x, epoch in map(str.split, lines)]


def is_trained(lab: Lab, name: str, host: str, epoch: int) -> bool:
    """Whether some trial of that sweep has begun this epoch on this host."""
    return any(h == host and e >= epoch for h, _, e in notes(lab, name))
