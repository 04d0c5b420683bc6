"""Checks of versions: the nodes get this machine's Python and the packages that jobs need.

They must match because jobs and checkpoints are pickled, and because Ray only connects nodes that
run the same versions of Ray and Python.
"""

import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import takewhile
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tune_jobs.doctor.cluster_file import (
    HERE,
    RAYS_DEFAULT,
    ClusterFile,
    NodeConfig,
    Problem,
    names_of,
)

__all__ = [
    "docker",
    "installed_version",
    "missing_packages",
    "pins",
    "python",
    "requirements",
    "versions_here",
]

PYTHON = re.compile(r"(?:\bpython=*|--python[=\s]+|\s-p\s+)(3\.\d+(?:\.\d+)?)")
FILE_OPTION = re.compile("-[rc]|--(requirement|constraint)s?")
PIP_INSTALL = re.compile(r"\bpip[\d.]*\s+install\s+(.*)")
REDIRECT = re.compile(r"[\d&]?[<>]")
WORD = re.compile(r"""'[^']*'|"[^"]*"|[^\s'"()]+""")


def python(cluster: ClusterFile) -> Iterator[Problem]:
    """The commands or the image name this machine's Python version."""
    here = platform.python_version()
    named = {found: where for node in cluster.nodes for found, where in _pythons(node)}
    for found, where in named.items():
        if not f"{here}.".startswith(f"{found}."):
            yield (
                where,
                f"the nodes get Python {found}, but this machine runs {here}; "
                "use the same version on both.",
            )
    if unnamed := [
        node for node in cluster.nodes if not (any(_pythons(node)) or _has_own_image(node))
    ]:
        yield (
            "setup_commands",
            f"no Python version is named for {names_of(unnamed)}, and this machine runs {here}; "
            f"name it, as in `uv venv --python {here.rpartition('.')[0]}`.",
        )


def pins(cluster: ClusterFile) -> Iterator[Problem]:
    """The nodes install the expected version of each package."""
    source, version_of = _expected(cluster)
    found = dict.fromkeys(install for node in cluster.nodes for install in _installs(node))
    for install in found:
        version = version_of(install.name)
        write = f"write {install.requirement.name}=={version or '...'}"
        if install.where.startswith(RAYS_DEFAULT):
            write = "write your own commands there, or []"
        if install.version is None and not install.follows_file:
            yield (
                install.where,
                f"{install.requirement} names no version, so each node installs the latest; "
                f"{write}.",
            )
        elif install.version and version and not _same_version(install.version, version):
            yield (
                install.where,
                f"{install.requirement} is installed, but {source} has {version}; {write}.",
            )


def missing_packages(cluster: ClusterFile) -> Iterator[Problem]:
    """The nodes install all packages of jobs. Ray's defaults for AWS only install a nightly Ray."""
    _, version_of = _expected(cluster)
    needed = _needed()
    without: dict[tuple[str, ...], list[NodeConfig]] = {}
    for node in cluster.nodes:
        if not (_has_own_image(node) or any(_names_file(args) for _, args in _pip_installs(node))):
            installed = {install.name for install in _installs(node)}
            missing = tuple(name for name in needed if name not in installed)
            without.setdefault(missing, []).append(node)
    for names, nodes in without.items():
        if names:
            pinned = " ".join(f"{name}=={version_of(name) or '...'}" for name in names)
            yield (
                "setup_commands",
                f"no command installs {', '.join(names)} on {names_of(nodes)}; install {pinned}.",
            )


def docker(cluster: ClusterFile) -> Iterator[Problem]:
    """No node uses Ray's discontinued image."""
    for image in sorted({node.image for node in cluster.nodes if node.image}):
        if "rayproject/ray-ml" in image:
            yield (
                "docker",
                f"{image} is discontinued; use rayproject/ray and install torch yourself.",
            )


def versions_here(cluster: ClusterFile) -> Iterator[Problem]:
    """This machine has the expected version of each package."""
    source, version_of = _expected(cluster)
    for name in _needed():
        here, version = installed_version(name), version_of(name)
        if here and version and not _same_version(here, version):
            yield (
                HERE,
                f"{name} {here} is installed here, but {source} has {version}; "
                f"run `pip install {name}=={version}`.",
            )


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(package: str, extras: Iterable[str] = ()) -> list[str]:
    """The names of the packages that an installed package requires, with these extras."""
    return [canonicalize_name(needed.name) for needed in _requirements(package, extras)]


@cache
def _parse(line: str) -> Requirement:
    """Parse a requirement. Cached: Ray has hundreds, and several checks parse them all."""
    return Requirement(line)


def _requirements(package: str, extras: Iterable[str] = ()) -> list[Requirement]:
    return [
        needed
        for needed in map(_parse, metadata.requires(package) or [])
        if needed.marker is None
        or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def _needed() -> list[str]:
    """The packages that a node must install: those of jobs, except those that Ray requires."""
    ours = _requirements("tune-jobs")
    extras = {extra for needed in ours if needed.name == "ray" for extra in needed.extras}
    of_ray = requirements("ray", extras)
    return [name for name in requirements("tune-jobs") if name not in of_ray]


def _expected(cluster: ClusterFile) -> tuple[str, Callable[[str], str | None]]:
    """The source of the versions that all nodes should have, and a function that looks one up.

    The source is constraints.txt, beside the cluster file or here, or else this machine.
    """
    for folder in (cluster.path.parent, Path.cwd()):
        file = folder / "constraints.txt"
        if file.is_file():
            lines = re.findall(r"^([\w.-]+)==([\w.+]+)(?=[\s;]|$)", file.read_text(), re.MULTILINE)
            pinned: dict[str, str] = {canonicalize_name(name): pin for name, pin in lines}
            return file.name, pinned.get
    return HERE, installed_version


def _same_version(version: str, other: str) -> bool:
    """Whether they are the same, apart from the build (`+cu130`)."""
    return Version(version).public == Version(other).public


# What a node installs


@dataclass(frozen=True)
class Install:
    """A package that a command or an image installs.

    Attributes:
        where: The path of the command, or the image.
        requirement: The package as named there.
        follows_file: Whether `-r` or `-c` names a file, which may set the version.
    """

    where: str
    requirement: Requirement
    follows_file: bool = False

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str | None:
        """The version that it names with `==`."""
        exact = re.search(r"==([^=*,]+)(,|$)", str(self.requirement.specifier))
        return exact[1] if exact else None


def _pythons(node: NodeConfig) -> Iterator[tuple[str, str]]:
    """The versions of Python that the commands and the image name, each with its place."""
    for command in node.commands:
        for version in PYTHON.findall(command.text):
            yield version, command.where
    if tag := re.search(r"-py(\d)(\d+)", _ray_tag(node) or ""):
        yield ".".join(tag.groups()), f"the image {node.image}"


def _installs(node: NodeConfig) -> Iterator[Install]:
    """The packages that the commands and the image name, without those in requirements files."""
    for where, args in _pip_installs(node):
        for before, arg in zip(["", *args], args, strict=False):
            requirement = None if FILE_OPTION.fullmatch(before) else _requirement(arg)
            if requirement is not None:
                yield Install(where, requirement, _names_file(args))
    tag = _ray_tag(node)
    if tag is not None:
        version = re.match(r"\d+(\.\d+)+", tag)
        ray = Requirement(f"ray=={version[0]}" if version else "ray")
        yield Install(f"the image {node.image}", ray)


def _ray_tag(node: NodeConfig) -> str | None:
    """The tag of its image, if Ray publishes the image."""
    name, _, tag = (node.image or "").partition(":")
    return tag if name == "rayproject/ray" else None


def _has_own_image(node: NodeConfig) -> bool:
    """Whether its image is the user's, which may hold packages that no command installs."""
    return node.image is not None and _ray_tag(node) is None


def _names_file(args: list[str]) -> bool:
    return any(FILE_OPTION.match(arg) for arg in args)


def _requirement(arg: str) -> Requirement | None:
    """The package that an argument names; None for an option, a path or a Python version."""
    try:
        return Requirement(arg) if re.search("[a-zA-Z]", arg) else None
    except InvalidRequirement:
        return None


def _pip_installs(node: NodeConfig) -> Iterator[tuple[str, list[str]]]:
    """The arguments of each `pip install`, with the path of its command."""
    for command in node.commands:
        for part in command.parts:
            for found in PIP_INSTALL.findall(part):
                words = (word.strip("'\"") for word in WORD.findall(found))
                yield command.where, list(takewhile(lambda word: not REDIRECT.match(word), words))
