"""What is wrong with a cluster file and with this machine, told before `ray up` costs money."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from tune_jobs.doctor import aws as doctor_aws
from tune_jobs.doctor import schema as cluster_schema
from tune_jobs.doctor import versions as doctor_versions
from tune_jobs.doctor.cluster_file import (
    HERE,
    PLACEHOLDER,
    ClusterFile,
    ClusterFileError,
    Trouble,
    names_of,
    read_cluster_file,
)

__all__ = ["Finding", "examine"]

TOKEN = "~/.ray/auth_token"

# What a mount may hold: Ray reads all of it, each time.
MAX_MOUNT_FILES = 100
MAX_MOUNT_BYTES = 10 * 2**20

# A path that is relative, or in a folder that is not mounted by custom.
OF_ONE_NODE = re.compile(
    r"(file://)?(?!\w+://)((~|\$HOME|\$\{HOME\}|/home|/root|/tmp)(/|$)|[^/$~])"
)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: which check found it, where, and what to do."""

    check: str
    where: str
    message: str


def examine(file: Path, ask_aws: bool = False) -> list[Finding]:
    """What is wrong with a cluster file and with this machine; nothing is changed.

    Args:
        file: The cluster file.
        ask_aws: Look up in AWS what the file names.
    """
    try:
        cluster = read_cluster_file(file)
    except ClusterFileError as error:
        return [Finding("file", str(file), str(error))]
    checks = CHECKS_OF_ANY_FILE
    if not any(cluster_schema.schema(cluster)):
        checks += CHECKS
        if ask_aws:
            checks += (("aws", doctor_aws.account),)
    return [
        Finding(name, where, message) for name, check in checks for where, message in check(cluster)
    ]


# The file itself


def dashboard(cluster: ClusterFile) -> Iterator[Trouble]:
    """Who reaches the dashboard can run anything on the cluster (CVE-2023-48022)."""
    for command in cluster.start_of_head:
        for host in re.findall(r"""--dashboard-host[=\s]+['"]?([^\s'";]+)""", command.text):
            if host not in ("127.0.0.1", "localhost", "::1"):
                yield (
                    command.where,
                    f"the dashboard listens at {host}, where others can reach it and run code; "
                    "write --dashboard-host=127.0.0.1 and use `ray dashboard`.",
                )


def head(cluster: ClusterFile) -> Iterator[Trouble]:
    """A trial there takes CPU and memory from the sweep's driver and Ray's own processes."""
    if cluster.head.settings:  # it has a node type, which counts
        resources = cluster.head.settings.get("resources", {})
        taken = [name for name in ("CPU", "GPU") if resources.get(name) != 0]
        where, way_out = f"{cluster.head.where}.resources", "{CPU: 0, GPU: 0}"
        got = json.dumps(resources)
    else:
        start = " ".join(command.text for command in cluster.start_of_head)
        options = ("--num-cpus", "--num-gpus")
        taken = [name for name in options if not re.search(rf"{name}[=\s]+0\b", start)]
        where, way_out = "head_start_ray_commands", "--num-cpus=0 --num-gpus=0"
        got = " ".join(re.findall(r"--num-[cg]pus[=\s]+\S+", start)) or "no --num-cpus"
    if taken:
        yield where, f"the head takes trials ({got}); say {way_out} there."


def autoscaler(cluster: ClusterFile) -> Iterator[Trouble]:
    variable = "RAY_enable_autoscaler_v2"
    value = cluster.head.variables.get(variable, "not set")
    if cluster.provider == "local" and value not in ("0", "false"):
        yield (
            "head_start_ray_commands",
            f"{variable} is {value}, so the autoscaler starts one worker too few, for ever; "
            f"write {variable}=0 before `ray start`.",
        )


def workers(cluster: ClusterFile) -> Iterator[Trouble]:
    addresses = cluster.settings["provider"].get("worker_ips")
    limit = cluster.settings.get("max_workers", len(addresses or []))
    asked = {
        f"{node.where}.max_workers": node.settings.get("max_workers", limit)
        for node in cluster.workers
    }
    if addresses is not None:
        asked = {"provider.worker_ips": len(addresses)}
    least = sum(node.settings.get("min_workers", 0) for node in cluster.workers)
    if limit == 0 or not any(asked.values()):
        listed = ", ".join(f"{where} {count}" for where, count in asked.items())
        yield (
            "max_workers",
            f"there are no workers (max_workers {limit}, {listed or 'no node type'}), and the head "
            "takes no trials; allow one at least.",
        )
        return
    if least > limit:
        yield (
            "max_workers",
            f"the node types ask for {least} workers at least, max_workers is {limit}, and "
            "`ray up` refuses that; raise max_workers.",
        )
    for where, count in asked.items():
        if count > limit:
            yield (
                where,
                f"{count} workers are asked for, but max_workers of the cluster is {limit} and "
                "cuts them off without a word; make them agree.",
            )


# What the commands bring about


def token_on_nodes(cluster: ClusterFile) -> Iterator[Trouble]:
    """`ray start` takes the token if it finds one, workers and clients do not."""
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
            f"the nodes do not get the token, which is all that keeps others out; "
            f"add `{TOKEN}: {TOKEN}`.",
        )


def storage(cluster: ClusterFile) -> Iterator[Trouble]:
    """What is on a node's own disk no other node can read; Tune says so at the first checkpoint."""
    variable = "TUNE_JOBS_STORAGE_PATH"
    path = cluster.head.variables.get(variable)
    if path is None:
        yield (
            "setup_commands",
            f"{variable} is not set on {cluster.head.name} where Ray starts, so results go to a "
            f"folder of the job's own; write `export {variable}=s3://...`, or a folder that all "
            "nodes mount, into ~/.bashrc.",
        )
    elif OF_ONE_NODE.match(path):
        yield (
            "setup_commands",
            f"{variable}={path} is on each node's own disk; name a URL (s3://...) or a folder "
            "that all nodes mount.",
        )
    elif path.startswith("s3://"):
        yield from doctor_aws.no_profile(cluster, path)
    elif path.startswith(("/", "file://")):
        yield from doctor_aws.no_mount(cluster, path)


def mounts(cluster: ClusterFile) -> Iterator[Trouble]:
    """Ray hashes every file of a mount each time, and heeds `rsync_exclude` only as it copies."""
    mounted = cluster.settings.get("file_mounts", {})
    synced = cluster.settings.get("cluster_synced_files", [])  # from the head, so may not be here
    for where, source in (
        *((f"file_mounts.{target}", source) for target, source in mounted.items()),
        *((f"cluster_synced_files.{i}", source) for i, source in enumerate(synced)),
    ):
        path = Path(source).expanduser()
        if PLACEHOLDER.search(source) or path == Path(TOKEN).expanduser():
            continue
        if not path.exists():
            if source not in synced:
                yield where, f"{path} is not on this machine; correct the path or take it out."
        elif burden := _burden(path):
            yield (
                where,
                f"{path} {burden}, and Ray hashes every file of it each time; take it out and "
                "ship code with `ray job submit --working-dir .`.",
            )


# This machine


def ssh_key(cluster: ClusterFile) -> Iterator[Trouble]:
    file = cluster.settings.get("auth", {}).get("ssh_private_key")
    if file and not PLACEHOLDER.search(file):
        yield from _private_file(
            file,
            "auth.ssh_private_key",
            "ssh refuses it, while `ray up` waits 15 minutes",
            "correct the path",
        )


def token_here(cluster: ClusterFile) -> Iterator[Trouble]:
    yield from _private_file(
        TOKEN,
        HERE,
        "whoever has it can run code on the cluster",
        f"RAY_AUTH_MODE=token ray get-auth-token --generate; chmod 600 {TOKEN}",
    )
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if mode != "token":
        yield (
            HERE,
            f"RAY_AUTH_MODE is {mode} in this shell, so the cluster will turn `ray job submit` "
            "away; `export RAY_AUTH_MODE=token`.",
        )


def machine(cluster: ClusterFile) -> Iterator[Trouble]:
    for tool in ("ssh", "rsync"):
        if not which(tool):
            yield HERE, f"`ray up` needs {tool}, which is not on the PATH here; install it."
    needed = doctor_versions.requirements("ray", extra="default")
    if cluster.provider == "aws":
        needed.append("boto3")
    if missing := [name for name in needed if doctor_versions.installed_version(name) is None]:
        yield (
            HERE,
            f"`ray up` and `ray job submit` need {', '.join(missing)}, not installed here; "
            f"`{doctor_versions.INSTALL_CLUSTER}`.",
        )


Checks = tuple[tuple[str, Callable[[ClusterFile], Iterable[Trouble]]], ...]

CHECKS_OF_ANY_FILE: Checks = (
    ("placeholder", cluster_schema.placeholders),
    ("schema", cluster_schema.schema),
    ("unknown_key", cluster_schema.unknown_keys),
    ("machine", machine),
)
CHECKS: Checks = (
    ("unknown_key", cluster_schema.unknown_provider_keys),
    ("unknown_key", cluster_schema.unknown_ec2_parameters),
    ("security_group", doctor_aws.security_group),
    ("image", doctor_aws.image),
    ("instance_type", doctor_aws.instance_type),
    ("dashboard", dashboard),
    ("head", head),
    ("autoscaler", autoscaler),
    ("workers", workers),
    ("token", token_on_nodes),
    ("storage", storage),
    ("python", doctor_versions.python),
    ("versions", doctor_versions.pins),
    ("versions", doctor_versions.missing_packages),
    ("versions", doctor_versions.docker),
    ("mounts", mounts),
    ("key", ssh_key),
    ("token", token_here),
    ("versions", doctor_versions.versions_here),
)


def _burden(path: Path) -> str | None:
    """What makes it too much for a mount; counts no further than it must."""
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


def _private_file(file: str, where: str, danger: str, way_out: str) -> Iterator[Trouble]:
    path = Path(file).expanduser()
    if not path.is_file():
        yield where, f"{file} is not on this machine; {way_out}."
    elif (mode := path.stat().st_mode & 0o777) & 0o077:
        yield (
            where,
            f"{file} has mode {mode:04o}, so others can read it, and {danger}; chmod 600 {file}.",
        )
