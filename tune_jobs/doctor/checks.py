"""Run every check on a cluster file. The checks without a module of their own are here too.

To add a check:

1. Write a function that takes a `ClusterFile` and yields a `Problem` for each fault: where it is,
   and a message with the value found and how to fix it. Its docstring states the rule. Put it into
   `schema.py` (what Ray or EC2 rejects), `versions.py` (Python and packages), `aws.py`, or here.
2. Add it to a list at the end of this file, with the name that its findings show.
3. Add a case to `BROKEN` in the tests of that module, `tests/test_doctor*.py`.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from tune_jobs.doctor import INSTALL_CLUSTER, aws, schema, versions
from tune_jobs.doctor.cluster_file import (
    HERE,
    PLACEHOLDER,
    ClusterFile,
    ClusterFileError,
    Problem,
    names_of,
    read_cluster_file,
)

__all__ = ["Finding", "examine"]

TOKEN = "~/.ray/auth_token"

# Limits on what a mount holds: Ray reads all of it on every update.
MAX_MOUNT_FILES = 100
MAX_MOUNT_BYTES = 10 * 2**20

# A path on a node's own disk: relative, or in a folder that is rarely a mount.
NODE_LOCAL = re.compile(r"(file://)?(?!\w+://)((~|\$HOME|\$\{HOME\}|/home|/root|/tmp)(/|$)|[^/$~])")


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        check: The name of the check that found it.
        where: A path in the cluster file, or "this machine".
        message: The value found and how to fix it.
    """

    check: str
    where: str
    message: str


def examine(file: Path, ask_aws: bool = False) -> list[Finding]:
    """Find problems in a cluster file and on this machine. Changes nothing.

    Args:
        file: The cluster file.
        ask_aws: Also check in AWS what the file names.

    Returns:
        The problems. If the file cannot be read, this is the only one.
    """
    try:
        cluster = read_cluster_file(file)
    except ClusterFileError as error:
        return [Finding("file", str(file), str(error))]
    checks = CHECKS_OF_ANY_FILE
    if not any(schema.schema(cluster)):
        checks += CHECKS_OF_VALID_FILE
        if ask_aws:
            checks += CHECKS_OF_ACCOUNT
    return [
        Finding(name, where, message) for name, check in checks for where, message in check(cluster)
    ]


# What the file says


def dashboard(cluster: ClusterFile) -> Iterator[Problem]:
    """The dashboard listens on localhost: its clients can run any code (CVE-2023-48022)."""
    for command in cluster.start_of_head:
        for host in re.findall(r"""--dashboard-host[=\s]+['"]?([^\s'";]+)""", command.text):
            if host not in ("127.0.0.1", "localhost", "::1"):
                yield (
                    command.where,
                    f"the dashboard listens on {host}, where others can reach it and run code; "
                    "write --dashboard-host=127.0.0.1 and connect with `ray dashboard`.",
                )


def head(cluster: ClusterFile) -> Iterator[Problem]:
    """The head runs no trials: they would compete with the driver and Ray's own processes."""
    if cluster.head.settings:  # if it has a node type, `ray start` takes the resources from there
        resources = cluster.head.settings.get("resources", {})
        taken = [name for name in ("CPU", "GPU") if resources.get(name) != 0]
        where, fix = f"{cluster.head.where}.resources", "{CPU: 0, GPU: 0}"
        got = json.dumps(resources)
    else:
        start = " ".join(command.text for command in cluster.start_of_head)
        options = ("--num-cpus", "--num-gpus")
        taken = [name for name in options if not re.search(rf"{name}[=\s]+0\b", start)]
        where, fix = "head_start_ray_commands", "--num-cpus=0 --num-gpus=0"
        got = " ".join(re.findall(r"--num-[cg]pus[=\s]+\S+", start)) or "no --num-cpus"
    if taken:
        yield where, f"the head accepts trials ({got}); set {fix} there."


def autoscaler(cluster: ClusterFile) -> Iterator[Problem]:
    """A cluster on premises turns off version 2 of Ray's autoscaler."""
    variable = "RAY_enable_autoscaler_v2"
    value = cluster.head.variables.get(variable, "not set")
    if cluster.provider == "local" and value not in ("0", "false"):
        yield (
            "head_start_ray_commands",
            f"{variable} is {value}, so the autoscaler always starts one worker too few; "
            f"write {variable}=0 before `ray start`.",
        )


def workers(cluster: ClusterFile) -> Iterator[Problem]:
    """At least one worker is allowed, and the limits on their number agree."""
    addresses = cluster.settings["provider"].get("worker_ips")
    limit = cluster.settings.get("max_workers", len(addresses or []))
    requested = {
        f"{node.where}.max_workers": node.settings.get("max_workers", limit)
        for node in cluster.workers
    }
    if addresses is not None:
        requested = {"provider.worker_ips": len(addresses)}
    least = sum(node.settings.get("min_workers", 0) for node in cluster.workers)
    if limit == 0 or not any(requested.values()):
        listed = ", ".join(f"{where} {count}" for where, count in requested.items())
        yield (
            "max_workers",
            f"there are no workers (max_workers {limit}, {listed or 'no node type'}), and the head "
            "accepts no trials; allow at least one worker.",
        )
        return
    if least > limit:
        yield (
            "max_workers",
            f"the node types request at least {least} workers, but max_workers is {limit}, so "
            "`ray up` rejects the file; raise max_workers.",
        )
    for where, count in requested.items():
        if count > limit:
            yield (
                where,
                f"{count} workers are requested, but max_workers of the cluster is {limit}, and "
                "Ray silently ignores the rest; make the two numbers agree.",
            )


# What the nodes get


def token_on_nodes(cluster: ClusterFile) -> Iterator[Problem]:
    """Every node gets the token and requires it; only `ray start` uses one without being asked."""
    if open_nodes := [
        node for node in cluster.nodes if node.variables.get("RAY_AUTH_MODE") != "token"
    ]:
        yield (
            "setup_commands",
            f"RAY_AUTH_MODE is not set to token on {names_of(open_nodes)} where Ray starts; write "
            "`export RAY_AUTH_MODE=token` into ~/.bashrc, or RAY_AUTH_MODE=token before "
            "`ray start`.",
        )
    targets = cluster.settings.get("file_mounts", {})
    if not any(target.endswith(".ray/auth_token") for target in targets):
        yield (
            "file_mounts",
            "the nodes do not get the token, and nothing else keeps others out; "
            f"add `{TOKEN}: {TOKEN}`.",
        )


def storage(cluster: ClusterFile) -> Iterator[Problem]:
    """All nodes can read and write the storage. If not, Tune fails at the first checkpoint."""
    variable = "TUNE_JOBS_STORAGE_PATH"
    path = cluster.head.variables.get(variable)
    if path is None:
        yield (
            "setup_commands",
            f"{variable} is not set on {cluster.head.name} where Ray starts, so results go to a "
            f"folder of the job; write `export {variable}=s3://...`, or a folder that all nodes "
            "mount, into ~/.bashrc.",
        )
    elif NODE_LOCAL.match(path):
        yield (
            "setup_commands",
            f"{variable}={path} is on each node's own disk; use a URL (s3://...) or a folder "
            "that all nodes mount.",
        )
    elif path.startswith("s3://"):
        yield from aws.no_profile(cluster, path)
    elif path.startswith(("/", "file://")):
        yield from aws.no_mount(cluster, path)


def mounts(cluster: ClusterFile) -> Iterator[Problem]:
    """Mounts are small: Ray hashes all their files; `rsync_exclude` only limits what it copies."""
    mounted = cluster.settings.get("file_mounts", {})
    synced = cluster.settings.get("cluster_synced_files", [])  # on the head, maybe not here
    for where, source in (
        *((f"file_mounts.{target}", source) for target, source in mounted.items()),
        *((f"cluster_synced_files.{i}", source) for i, source in enumerate(synced)),
    ):
        path = Path(source).expanduser()
        if PLACEHOLDER.search(source) or path == Path(TOKEN).expanduser():
            continue
        if not path.exists():
            if source not in synced:
                yield where, f"{path} is not on this machine; correct the path or remove it."
        elif excess := _excess(path):
            yield (
                where,
                f"{path} {excess}, and Ray hashes all its files on every update; remove it and "
                "send code with `ray job submit --working-dir .`.",
            )


# This machine


def ssh_key(cluster: ClusterFile) -> Iterator[Problem]:
    """The SSH key exists, and only its owner can read it."""
    file = cluster.settings.get("auth", {}).get("ssh_private_key")
    if file and not PLACEHOLDER.search(file):
        yield from _private_file(
            file,
            "auth.ssh_private_key",
            "ssh rejects it while `ray up` waits 15 minutes",
            "correct the path",
        )


def token_here(cluster: ClusterFile) -> Iterator[Problem]:
    """The token exists, only its owner can read it, and this shell sends it."""
    yield from _private_file(
        TOKEN,
        HERE,
        "anyone who has it can run code on the cluster",
        f"run `RAY_AUTH_MODE=token ray get-auth-token --generate; chmod 600 {TOKEN}`",
    )
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if mode != "token":
        yield (
            HERE,
            f"RAY_AUTH_MODE is {mode} in this shell, so the cluster will reject `ray job submit`; "
            "run `export RAY_AUTH_MODE=token`.",
        )


def machine(cluster: ClusterFile) -> Iterator[Problem]:
    """The programs and packages that `ray up` and `ray job submit` need are installed."""
    for tool in ("ssh", "rsync"):
        if not which(tool):
            yield HERE, f"`ray up` needs {tool}, which is not on the PATH; install it."
    needed = versions.requirements("ray", extras={"default"})
    if cluster.provider == "aws":
        needed.append("boto3")
    if missing := [name for name in needed if versions.installed_version(name) is None]:
        yield (
            HERE,
            f"`ray up` and `ray job submit` need {', '.join(missing)}, not installed here; "
            f"run `{INSTALL_CLUSTER}`.",
        )


def _excess(path: Path) -> str | None:
    """What makes this too large for a mount. Stops counting at the limits."""
    if any((path / name).exists() for name in (".git", "pyproject.toml")):
        return "is a repository"
    files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    size = 0
    for count, file in enumerate(files, start=1):
        size += file.stat().st_size
        if size > MAX_MOUNT_BYTES:
            return f"holds more than {MAX_MOUNT_BYTES >> 20} MiB"
        if count > MAX_MOUNT_FILES:
            return f"holds more than {MAX_MOUNT_FILES} files"
    return None


def _private_file(file: str, where: str, danger: str, fix: str) -> Iterator[Problem]:
    path = Path(file).expanduser()
    if not path.is_file():
        yield where, f"{file} is not on this machine; {fix}."
    elif (mode := path.stat().st_mode & 0o777) & 0o077:
        yield (
            where,
            f"{file} has mode {mode:04o}, so others can read it, and {danger}; "
            f"run `chmod 600 {file}`.",
        )


# The checks, in the order in which findings are printed

Checks = tuple[tuple[str, Callable[[ClusterFile], Iterable[Problem]]], ...]

CHECKS_OF_ANY_FILE: Checks = (
    ("placeholder", schema.placeholders),
    ("schema", schema.schema),
    ("unknown_key", schema.unknown_keys),
    ("machine", machine),
)
# These rely on Ray's schema, so they run only if `schema.schema` finds nothing.
CHECKS_OF_VALID_FILE: Checks = (
    ("unknown_key", schema.unknown_provider_keys),
    ("unknown_key", schema.unknown_ec2_parameters),
    ("security_group", aws.security_group),
    ("image", aws.image),
    ("instance_type", aws.instance_type),
    ("dashboard", dashboard),
    ("head", head),
    ("autoscaler", autoscaler),
    ("workers", workers),
    ("token", token_on_nodes),
    ("storage", storage),
    ("python", versions.python),
    ("versions", versions.pins),
    ("versions", versions.missing_packages),
    ("versions", versions.docker),
    ("mounts", mounts),
    ("key", ssh_key),
    ("token", token_here),
    ("versions", versions.versions_here),
)
# With `--aws`.
CHECKS_OF_ACCOUNT: Checks = (("aws", aws.account),)
