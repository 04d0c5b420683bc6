"""Read a cluster file for `ray up`. Ray's defaults fill in the keys that the file leaves out."""

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
    "Problem",
    "names_of",
    "read_cluster_file",
]

Problem = tuple[str, str]  # where it is, and a message with the value found and how to fix it
HERE = "this machine"


def _ray_folder() -> Path:
    """The folder of the installed Ray. Does not import Ray, which takes a second."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


AUTOSCALER = _ray_folder() / "autoscaler"  # holds Ray's schema, and its defaults per provider

RAYS_DEFAULT = "Ray's default "

# `<bucket>` is a placeholder; `<file` and `<<EOF>file` are redirections.
PLACEHOLDER = re.compile(
    r"""[^\s'"=]*(?:(?<![a-zA-Z])(?:YOUR|your)[-_]|CHANGE[-_]?ME|(?<!<)<[a-zA-Z][\w-]*>"""
    r"""|\b(?:ami|sg|subnet|lt)-0+\b)[^\s'"]*"""
)

# In a shell command: text that may contain separators (the group), comments, and separators.
QUOTED = re.compile(r"""((?s:'[^']*'|"(?:\\.|[^"\\])*"|\\.)|[<>]&|&>)|(?<!\S)#.*|[;&|\n]+""")
GROUP = re.compile(r"<<|(?<!\S)[({]")
# `A=b`, but neither an option (`--port=1`) nor a version (`ray==2.60.0`).
VARIABLE = re.compile(r"""(?<![\w$./-])([A-Za-z_]\w*)=(?!=)("[^"]*"|'[^']*'|[^\s'";&|]*)""")
WRITTEN = re.compile(r">\s*([^\s;&|<>()]+)")
SOURCED = re.compile(r"""(?:\bsource|(?<![^\s'"])\.)\s+([^\s;&|<>()\\]+)""")
STARTUP_FILES = {"~/.bashrc", "~/.bash_profile", "~/.profile"}


class ClusterFileError(Exception):
    """The file is not a readable cluster file. The message says why, and how to fix it."""


@dataclass(frozen=True)
class Command:
    """A shell command.

    Attributes:
        where: Its path in the file; for one of Ray's defaults, this says so.
        text: The command.
    """

    where: str
    text: str

    @property
    def parts(self) -> list[str]:
        """The simple commands in it, without comments. A group or here-document is not split."""
        text = self.text.replace("\\\n", " ")
        parts = QUOTED.sub(lambda found: found[1] or "\0", text).split("\0")
        if GROUP.search(text):
            parts = ["\n".join(parts)]
        return [part.strip() for part in parts]

    @property
    def before_ray_start(self) -> list[str]:
        """The parts that set the environment of its `ray start`, if it has one."""
        cut = [part.partition("ray start") for part in self.parts]
        if not any(found for _, found, _ in cut):
            return []
        return [text for text, found, _ in cut if found or re.match(r"(export|source|\.)\s", text)]


@dataclass(frozen=True)
class NodeConfig:
    """The head, or one type of workers.

    Attributes:
        name: The name of its node type; "head" or "workers" if the provider has no node types.
        where: The path of the node type in the file.
        settings: The node type.
        commands: All commands that Ray runs on such a node, from setup to `ray start`, in order.
        image: The Docker image in which Ray runs them.
        run_options: Options of `docker run`.
    """

    name: str
    where: str
    settings: dict[str, Any]
    commands: tuple[Command, ...]
    image: str | None = None
    run_options: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The parameters with which the provider creates the node."""
        config: dict[str, Any] = self.settings.get("node_config", {})
        return config

    @property
    def security_groups(self) -> list[str]:
        """The ids of its security groups, those of network interfaces included."""
        interfaces = self.config.get("NetworkInterfaces") or []
        return [
            *(self.config.get("SecurityGroupIds") or []),
            *(group for interface in interfaces for group in interface.get("Groups") or []),
        ]

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that `ray start` sees. The last assignment wins.

        Ray runs each command in a new shell, which reads the startup files first. So a variable
        counts if the command itself sets it before `ray start`, if a startup file exports it, or
        if a file exports it that either of the two sources.
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
    """The content of a cluster file.

    If the file violates Ray's schema, use only the attributes: the properties may raise.

    Attributes:
        path: The file.
        provider: The type of the provider.
        written: The content of the file.
        settings: Ray's defaults for the provider, with each top-level key of the file in place of
            its default, as `ray up` merges them.
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
        """The commands that start Ray on the head."""
        return self._shared_commands("head_start_ray_commands")

    @property
    def _types(self) -> dict[str, Any]:
        types: dict[str, Any] = self.settings.get("available_node_types", {})
        return types

    def _shared_commands(self, key: str) -> list[Command]:
        """The commands of a top-level key."""
        return _commands(self.settings, key, "" if key in self.written else RAYS_DEFAULT)

    def _node(self, name: str, role: str) -> NodeConfig:
        node_type = self._types.get(name, {})
        where = f"available_node_types.{name}"
        own = node_type if role == "worker" else {}  # Ray ignores those of the head's type
        keys = ["initialization_commands", "setup_commands"]
        if "worker_setup_commands" in own:
            keys.pop()  # it replaces setup_commands too
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
        ClusterFileError: The file cannot be read, or does not hold a mapping.
    """
    try:
        with path.open() as file:
            # As Ray does before it validates the file: keys and dates become strings.
            written = json.loads(json.dumps(yaml.safe_load(file), default=str))
    except OSError as error:
        raise ClusterFileError(
            f"{path} cannot be read ({error.strerror}); check the path."
        ) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterFileError(f"{path} is not YAML that Ray can read: {reason}.") from error
    if not isinstance(written, dict):
        kind = "nothing" if written is None else f"a {type(written).__name__}"
        raise ClusterFileError(
            f"{path} must hold a mapping, got {kind}; begin it with `cluster_name: ...`."
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
    """The paths in the text that the pattern finds, with `~` for `$HOME`."""
    found = (file.strip("'\"") for file in pattern.findall(text))
    return {re.sub(r"^\$(HOME\b|\{HOME\})", "~", file) for file in found}
