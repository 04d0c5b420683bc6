"""A cluster file for `ray up`: what it says, with Ray's own defaults where it says nothing."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "AUTOSCALER",
    "HERE",
    "PLACEHOLDER",
    "RAYS_DEFAULT",
    "ClusterFile",
    "ClusterFileError",
    "Command",
    "NodeConfig",
    "Trouble",
    "names_of",
    "read_cluster_file",
]

Trouble = tuple[str, str]  # where it is, and a sentence with the value found and the way out
HERE = "this machine"


def _ray_folder() -> Path:
    """The folder of the installed Ray, without the second that its import takes."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


AUTOSCALER = _ray_folder() / "autoscaler"  # Ray's schema, and its defaults by provider

RAYS_DEFAULT = "Ray's default "

# `<bucket>` is one, `<file` and `<<EOF>file` redirect.
PLACEHOLDER = re.compile(
    r"""[^\s'"=]*(?:(?<![a-zA-Z])(?:YOUR|your)[-_]|CHANGE[-_]?ME|(?<!<)<[a-zA-Z][\w-]*>"""
    r"""|\b(?:ami|sg|subnet|lt)-0+\b)[^\s'"]*"""
)

# Of a shell command: what keeps its separators (the group), comments, and separators.
QUOTED = re.compile(r"""((?s:'[^']*'|"(?:\\.|[^"\\])*"|\\.)|[<>]&|&>)|(?<!\S)#.*|[;&|\n]+""")
GROUP = re.compile(r"<<|(?<!\S)[({]")
# `A=b`, but no option (`--port=1`) and no version (`ray==2.60.0`).
VARIABLE = re.compile(r"""(?<![\w$./-])([A-Za-z_]\w*)=(?!=)("[^"]*"|'[^']*'|[^\s'";&|]*)""")
WRITTEN = re.compile(r">\s*([^\s;&|<>()]+)")
SOURCED = re.compile(r"""(?:\bsource|(?<![^\s'"])\.)\s+([^\s;&|<>()\\]+)""")
STARTUP_FILES = {"~/.bashrc", "~/.bash_profile", "~/.profile"}


class ClusterFileError(Exception):
    """The file cannot be read as a cluster file; the message says why."""


@dataclass(frozen=True)
class Command:
    """A shell command of the file, or of Ray's where the file has none, and its path."""

    where: str
    text: str

    @property
    def parts(self) -> list[str]:
        """The commands that it is made of, without comments; a group or here-document is one."""
        text = self.text.replace("\\\n", " ")
        parts = QUOTED.sub(lambda found: found[1] or "\0", text).split("\0")
        if GROUP.search(text):
            parts = ["\n".join(parts)]
        return [part.strip() for part in parts]

    @property
    def before_ray_start(self) -> list[str]:
        """What gives the `ray start` in it an environment; nothing if there is none."""
        cut = [part.partition("ray start") for part in self.parts]
        if not any(found for _, found, _ in cut):
            return []
        return [text for text, found, _ in cut if found or re.match(r"(export|source|\.)\s", text)]


@dataclass(frozen=True)
class NodeConfig:
    """The head, or one type of workers.

    Attributes:
        name: The name of its node type; "head" or "workers" where the provider has no types.
        where: The node type's path in the file.
        settings: The node type.
        commands: All that is run on such a node, from its setup to Ray's start.
        image: The Docker image in which they are run.
        run_options: Options for Docker.
    """

    name: str
    where: str
    settings: dict[str, Any]
    commands: tuple[Command, ...]
    image: str | None = None
    run_options: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """What the provider is told of the node."""
        config: dict[str, Any] = self.settings.get("node_config", {})
        return config

    @property
    def security_groups(self) -> list[str]:
        interfaces = self.config.get("NetworkInterfaces") or []
        return [
            *(self.config.get("SecurityGroupIds") or []),
            *(group for interface in interfaces for group in interface.get("Groups") or []),
        ]

    @property
    def variables(self) -> dict[str, str]:
        """What is set where Ray starts; the last one counts.

        Each command is run by a shell of its own, after its startup files. So a variable is set
        before `ray start`, or exported by a startup file, or by a file that one of both sources.
        """
        at_start = [text for command in self.commands for text in command.before_ray_start]
        written = [
            (file, part)
            for command in self.commands
            for part in command.parts
            for file in _files(WRITTEN, part)
        ]
        read = [*at_start, *(part for file, part in written if file in STARTUP_FILES)]
        files_read = STARTUP_FILES.union(*(_files(SOURCED, text) for text in read))
        exported = [part for file, part in written if file in files_read and "export" in part]
        return {
            name: value.strip("'\"")
            for text in (*self.run_options, *exported, *at_start)
            for name, value in VARIABLE.findall(text.replace('\\"', '"'))
        }


@dataclass(frozen=True)
class ClusterFile:
    """What a cluster file says.

    The nodes and their commands may not be read of a file that breaks Ray's schema.

    Attributes:
        path: The file.
        provider: The provider's type.
        written: What is in the file.
        settings: The same over Ray's defaults for the provider, as `ray up` takes it: by top keys.
    """

    path: Path
    provider: str
    written: dict[str, Any]
    settings: dict[str, Any]

    @cached_property
    def head(self) -> NodeConfig:
        return self._node(self.settings.get("head_node_type", "head"), "head")

    @cached_property
    def workers(self) -> list[NodeConfig]:
        names = [name for name in self._types if name != self.head.name]
        return [self._node(name, "worker") for name in (names if self._types else ["workers"])]

    @property
    def nodes(self) -> list[NodeConfig]:
        return [self.head, *self.workers]

    @property
    def start_of_head(self) -> list[Command]:
        return self._shared_commands("head_start_ray_commands")

    @property
    def _types(self) -> dict[str, Any]:
        types: dict[str, Any] = self.settings.get("available_node_types", {})
        return types

    def _shared_commands(self, key: str) -> list[Command]:
        return _commands(self.settings, key, "" if key in self.written else RAYS_DEFAULT)

    def _node(self, name: str, role: str) -> NodeConfig:
        node_type = self._types.get(name, {})
        where = f"available_node_types.{name}"
        own = node_type if role == "worker" else {}  # Ray reads those of a head's type nowhere
        keys = ["initialization_commands", "setup_commands"]
        if "worker_setup_commands" in own:
            keys.pop()  # it takes the place of both
        commands = [
            command
            for key in (*keys, f"{role}_setup_commands", f"{role}_start_ray_commands")
            for command in (
                _commands(own, key, f"{where}.") if key in own else self._shared_commands(key)
            )
        ]
        docker = self.settings.get("docker", {})
        options = [*docker.get("run_options", []), *docker.get(f"{role}_run_options", [])]
        image = own.get("docker", {}).get("worker_image") or docker.get(f"{role}_image")
        image = image or docker.get("image")
        return NodeConfig(name, where, node_type, tuple(commands), image, tuple(options))


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a cluster file.

    Raises:
        ClusterFileError: It cannot be read, or holds no mapping.
    """
    try:
        with path.open() as file:
            # As Ray does before it validates the file: keys become strings, so do dates.
            written = json.loads(json.dumps(yaml.safe_load(file), default=str))
    except OSError as error:
        raise ClusterFileError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterFileError(f"{path} is not YAML that Ray could read: {reason}.") from error
    if not isinstance(written, dict):
        kind = "nothing" if written is None else f"a {type(written).__name__}"
        raise ClusterFileError(
            f"{path} holds {kind}, no mapping; a cluster file begins with `cluster_name: ...`."
        )
    section = written.get("provider")
    provider = str(section.get("type", "")) if isinstance(section, dict) else ""
    file_of_defaults = AUTOSCALER.joinpath(provider, "defaults.yaml")
    defaults = yaml.safe_load(file_of_defaults.read_text()) if file_of_defaults.is_file() else {}
    return ClusterFile(path, provider, written, defaults | written)


def names_of(nodes: Iterable[NodeConfig]) -> str:
    return " and ".join(node.name for node in nodes)


def _commands(source: dict[str, Any], key: str, prefix: str) -> list[Command]:
    return [Command(f"{prefix}{key}.{i}", str(text)) for i, text in enumerate(source.get(key, []))]


def _files(pattern: re.Pattern[str], text: str) -> set[str]:
    found = (file.strip("'\"") for file in pattern.findall(text))
    return {re.sub(r"^\$(HOME\b|\{HOME\})", "~", file) for file in found}
