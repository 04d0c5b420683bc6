"""For the tests of the doctor: good cluster files, a good machine, and ways to break them.

The good files are the shipped ones, with their placeholders replaced.
"""

import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from tune_jobs.doctor.checks import Finding, examine

REPO = Path(__file__).parents[1]
AWS, ONPREM = SHIPPED = ["cluster.yaml", "cluster-onprem.yaml"]
HEAD_NODE = "available_node_types.head"
WORKER_NODE = "available_node_types.gpu_spot"
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE
    )
}

Config = dict[str, Any]
Break = Callable[[Config], object]
# The file, the change that breaks it, and the only finding: check, where, words of the message.
CASE = ("name", "broken", "check", "where", "words")
Case = tuple[str, Break, str, str, list[str]]


def good_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a machine without problems. Its home becomes the working directory."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.chdir(home)
    for file in (".ray/auth_token", ".ssh/id_ed25519", "bin/ssh", "bin/rsync"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch(mode=0o700)
    Path("constraints.txt").write_bytes((REPO / "constraints.txt").read_bytes())
    monkeypatch.setattr("platform.python_version", lambda: "3.11.7")
    install(monkeypatch, PINS)


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Pretend that exactly these packages are installed."""

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


def good(name: str) -> Config:
    """A shipped cluster file with its placeholders replaced."""
    text = (REPO / name).read_text()
    text = text.replace("ami-YOUR-IMAGE", "ami-0123456789abcdef0")
    text = text.replace("sg-YOUR-GROUP", "sg-0123456789abcdef0")
    config: Config = json.loads(json.dumps(yaml.safe_load(text.replace("YOUR-", "the-"))))
    return config  # JSON has no anchors, so no two node types share a value


def findings_of(config: Any) -> list[Finding]:
    """What the doctor finds in a file with this content."""
    file = Path("cluster.yaml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return examine(file)


def findings_after(name: str, change: Break) -> list[Finding]:
    """What the doctor finds in a good file after a change."""
    config = good(name)
    change(config)
    return findings_of(config)


def assert_only_finding(name: str, broken: Break, check: str, where: str, words: list[str]) -> None:
    """Assert that a change to a good file causes one finding, with these words in its message."""
    (finding,) = findings_after(name, broken)
    found = (finding.check, re.sub(r"(_commands)\.\d+", r"\1.N", finding.where))
    assert found == (check, where), finding
    assert [word for word in words if word not in finding.message] == [], finding
    assert finding.message.endswith((".", "?")), finding


def swap(old: str, new: str) -> Break:
    """Replace a text in the file, which must contain it."""

    def broken(config: Config) -> None:
        text = json.dumps(config)
        assert json.dumps(old)[1:-1] in text
        config |= json.loads(text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))

    return broken


def put(path: str, value: object) -> Break:
    """Set the value at a dotted path."""

    def broken(config: Config) -> None:
        parent, key = _parent_of(config, path)
        parent[key] = value

    return broken


def drop(path: str) -> Break:
    """Remove the key at a dotted path."""

    def broken(config: Config) -> None:
        parent, key = _parent_of(config, path)
        del parent[key]

    return broken


def remove(file: str) -> Break:
    """Remove a file from the machine."""
    return lambda config: Path(file).unlink()


def add_setup(command: str) -> Break:
    """Append a command to setup_commands."""
    return lambda config: config["setup_commands"].append(command)


def docker_image(image: str) -> Break:
    """Run the nodes' commands in a Docker image."""
    return put("docker", {"image": image, "container_name": "ray"})


def _parent_of(config: Config, path: str) -> tuple[Any, str]:
    *parts, key = path.split(".")
    parent: Any = config
    for part in parts:
        parent = parent[int(part) if isinstance(parent, list) else part]
    return parent, key
