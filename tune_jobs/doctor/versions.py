"""Do the nodes get one Python, one Ray and the packages that jobs need, all as on this machine?

Jobs and checkpoints are pickled, and Ray compares its own and Python's version between nodes.
"""

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    Trouble,
    names_of,
)

__all__ = [
    "INSTALL_CLUSTER",
    "docker",
    "installed_version",
    "missing_packages",
    "pins",
    "python",
    "requirements",
    "versions_here",
]

INSTALL_CLUSTER = 'pip install -c constraints.txt -e ".[cluster]"'

PYTHON = re.compile(r"(?:\bpython=*|--python[=\s]+|\s-p\s+)(3\.\d+(?:\.\d+)?)")
FILE_OPTION = re.compile("-[rc]|--(requirement|constraint)s?")
PIP_INSTALL = re.compile(r"\bpip[\d.]*\s+install\s+(.*)")
REDIRECT = re.compile(r"[\d&]?[<>]")
WORD = re.compile(r"""'[^']*'|"[^"]*"|[^\s'"()]+""")


def python(cluster: ClusterFile) -> Iterator[Trouble]:
    here = platform.python_version()
    named = {found: where for node in cluster.nodes for found, where in _pythons(node)}
    for found, where in named.items():
        if not f"{here}.".startswith(f"{found}."):
            yield (
                where,
                f"the nodes get Python {found}, this machine runs {here}; "
                "make them the same version.",
            )
    if unnamed := [
        node for node in cluster.nodes if not (any(_pythons(node)) or _has_own_image(node))
    ]:
        yield (
            "setup_commands",
            f"no Python is named for {names_of(unnamed)}, and this machine runs {here}; name it, "
            f"as in `uv venv --python {here.rpartition('.')[0]}`.",
        )


def pins(cluster: ClusterFile) -> Iterator[Trouble]:
    source, version_of = _wanted(cluster)
    found = dict.fromkeys(install for node in cluster.nodes for install in _installs(node))
    for install in found:
        version = version_of(install.name)
        write = f"write {install.requirement.name}=={version or '...'}"
        if install.where.startswith(RAYS_DEFAULT):
            write = "write commands of your own there, or []"
        if install.version is None and not install.follows_file:
            yield (
                install.where,
                f"{install.requirement} names no version, so each node gets the latest of its day; "
                f"{write}.",
            )
        elif install.version and version and not _same(install.version, version):
            yield (
                install.where,
                f"{install.requirement} is installed, {source} has {version}; {write}.",
            )


def missing_packages(cluster: ClusterFile) -> Iterator[Trouble]:
    """Ray's own default for aws installs a nightly Ray, and nothing of ours."""
    _, version_of = _wanted(cluster)
    without: dict[tuple[str, ...], list[NodeConfig]] = {}
    for node in cluster.nodes:
        if not (_has_own_image(node) or any(_names_file(args) for _, args in _pip_installs(node))):
            brought = {install.name for install in _installs(node)}
            missing = tuple(name for name in _needed() if name not in brought)
            without.setdefault(missing, []).append(node)
    for names, nodes in without.items():
        if names:
            wanting = " ".join(f"{name}=={version_of(name) or '...'}" for name in names)
            yield (
                "setup_commands",
                f"no command installs {', '.join(names)} on {names_of(nodes)}; install {wanting}.",
            )


def docker(cluster: ClusterFile) -> Iterator[Trouble]:
    for image in sorted({node.image for node in cluster.nodes if node.image}):
        if "rayproject/ray-ml" in image:
            yield (
                "docker",
                f"{image} is no longer made; take rayproject/ray and install torch yourself.",
            )


def versions_here(cluster: ClusterFile) -> Iterator[Trouble]:
    source, version_of = _wanted(cluster)
    for name in _needed():
        here, version = installed_version(name), version_of(name)
        if here and version and not _same(here, version):
            yield (
                HERE,
                f"{name} {here} is installed here, {source} has {version}; "
                f"`pip install {name}=={version}`.",
            )


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(package: str, extra: str = "") -> list[str]:
    """What an installed package needs."""
    return [
        canonicalize_name(needed.name)
        for needed in map(Requirement, metadata.requires(package) or [])
        if needed.marker is None or needed.marker.evaluate({"extra": extra})
    ]


def _needed() -> list[str]:
    """What a node must be given: Ray brings its own requirements along."""
    of_ray = requirements("ray")
    return [name for name in requirements("tune-jobs") if name not in of_ray]


def _wanted(cluster: ClusterFile) -> tuple[str, Callable[[str], str | None]]:
    """Where the versions that all nodes should have are from, and what gives one by name."""
    for folder in (cluster.path.parent, Path.cwd()):
        file = folder / "constraints.txt"
        if file.is_file():
            lines = re.findall(r"^([\w.-]+)==([\w.+]+)(?=[\s;]|$)", file.read_text(), re.MULTILINE)
            pinned: dict[str, str] = {canonicalize_name(name): pin for name, pin in lines}
            return file.name, pinned.get
    return HERE, installed_version


def _same(version: str, other: str) -> bool:
    """Whether they are, but for what is built for one GPU or another (`+cu130`)."""
    return Version(version).public == Version(other).public


# What a node gets


@dataclass(frozen=True)
class Install:
    """A package that a command or an image brings; `-r` or `-c` may hold it to a version."""

    where: str
    requirement: Requirement
    follows_file: bool = False

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str | None:
        """The one that it names with `==`."""
        exact = re.search(r"==([^=*,]+)(,|$)", str(self.requirement.specifier))
        return exact[1] if exact else None


def _pythons(node: NodeConfig) -> Iterator[tuple[str, str]]:
    """Versions of Python that the commands and the image name, each with where."""
    for command in node.commands:
        for version in PYTHON.findall(command.text):
            yield version, command.where
    if tag := re.search(r"-py(\d)(\d+)", _ray_tag(node) or ""):
        yield ".".join(tag.groups()), f"the image {node.image}"


def _installs(node: NodeConfig) -> Iterator[Install]:
    """Packages that are named; those of requirements files are not among them."""
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
    """The tag of its image, if that is one of Ray's."""
    name, _, tag = (node.image or "").partition(":")
    return tag if name == "rayproject/ray" else None


def _has_own_image(node: NodeConfig) -> bool:
    """Whether its image is not one of Ray's, and may hold what no command installs."""
    return node.image is not None and _ray_tag(node) is None


def _names_file(args: list[str]) -> bool:
    return any(FILE_OPTION.match(arg) for arg in args)


def _requirement(arg: str) -> Requirement | None:
    """None for options, paths, and a Python's number."""
    try:
        return Requirement(arg) if re.search("[a-zA-Z]", arg) else None
    except InvalidRequirement:
        return None


def _pip_installs(node: NodeConfig) -> Iterator[tuple[str, list[str]]]:
    """The arguments of each `pip install`, with where it is."""
    for command in node.commands:
        for part in command.parts:
            for found in PIP_INSTALL.findall(part):
                words = (word.strip("'\"") for word in WORD.findall(found))
                yield command.where, list(takewhile(lambda word: not REDIRECT.match(word), words))
