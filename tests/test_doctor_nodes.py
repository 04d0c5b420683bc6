"""The doctor on what the nodes get: the token, the storage, the mounts, the keys."""

import os
from pathlib import Path

import pytest
from cluster_files import (
    AWS,
    CASE,
    ONPREM,
    SHIPPED,
    WORKER_NODE,
    Break,
    Case,
    Config,
    add_setup,
    assert_only_finding,
    drop,
    findings_after,
    findings_of,
    good,
    good_machine,
    put,
    remove,
    swap,
)


def mount_large_file(config: Config) -> None:
    Path("data").mkdir()
    with open("data/x", "wb") as file:
        file.truncate(11 * 2**20)
    config["file_mounts"]["~/data"] = "data"


def mount_many_files(config: Config) -> None:
    Path("data").mkdir()
    for i in range(101):
        Path("data", str(i)).touch()
    config["file_mounts"]["~/data"] = "data"


def mount_repository(marker: str) -> Break:
    def broken(config: Config) -> None:
        Path("repo", marker).mkdir(parents=True)
        config["file_mounts"]["~/repo"] = "repo"

    return broken


def sync_repository(config: Config) -> None:
    Path("repo", ".git").mkdir(parents=True)
    config["cluster_synced_files"] = ["/only/on/the/head", "~/repo"]


def mounted_by(command: str) -> Break:
    """Use a folder as the storage, which a setup command mounts."""

    def fine(config: Config) -> None:
        swap("=s3://the-BUCKET/sweeps", "=/data/sweeps")(config)
        add_setup(command)(config)

    return fine


def chmod(file: str, mode: int) -> Break:
    return lambda config: Path(file).chmod(mode)


# The file, the change that breaks it, and the only finding: check, where, words of the message.
BROKEN: list[Case] = [
    (
        AWS,
        remove(".ray/auth_token"),
        "token",
        "this machine",
        ["~/.ray/auth_token is not", "ray get-auth-token --generate; chmod 600"],
    ),
    (
        ONPREM,
        chmod(".ray/auth_token", 0o604),
        "token",
        "this machine",
        ["mode 0604", "chmod 600 ~/.ray/auth_token"],
    ),
    (
        AWS,
        lambda config: os.environ.pop("RAY_AUTH_MODE"),
        "token",
        "this machine",
        ["RAY_AUTH_MODE is not set in this shell", "`export RAY_AUTH_MODE=token`"],
    ),
    (
        ONPREM,
        lambda config: os.environ.update(RAY_AUTH_MODE="disabled"),
        "token",
        "this machine",
        ["RAY_AUTH_MODE is disabled in this shell"],
    ),
    (
        AWS,
        swap("RAY_AUTH_MODE=token ", ""),
        "token",
        "setup_commands",
        ["head and gpu_spot", "`export RAY_AUTH_MODE=token` into ~/.bashrc", "`ray start`"],
    ),
    (
        ONPREM,
        swap("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        "token",
        "setup_commands",
        ["head and workers"],
    ),
    (
        AWS,
        add_setup("echo 'export RAY_AUTH_MODE=disabled' >> ~/.bashrc"),
        "token",
        "setup_commands",
        ["head and gpu_spot"],
    ),
    (
        AWS,
        swap("ray start --address", "RAY_AUTH_MODE=disabled ray start --address"),
        "token",
        "setup_commands",
        ["on gpu_spot where"],
    ),
    (AWS, put("file_mounts", {}), "token", "file_mounts", ["~/.ray/auth_token: ~/.ray/auth_token"]),
    (
        AWS,
        swap("TUNE_JOBS_STORAGE_PATH=", "ANOTHER="),
        "storage",
        "setup_commands",
        ["TUNE_JOBS_STORAGE_PATH is not set on head", "s3://"],
    ),
    (
        AWS,
        drop(f"{WORKER_NODE}.node_config.IamInstanceProfile"),
        "storage",
        f"{WORKER_NODE}.node_config",
        ["gpu_spot has no IamInstanceProfile", "s3://the-BUCKET/sweeps", "name one"],
    ),
    *(
        (
            ONPREM,
            swap("TUNE_JOBS_STORAGE_PATH=/the-MOUNT/sweeps", f"TUNE_JOBS_STORAGE_PATH={path}"),
            "storage",
            "setup_commands",
            [f"TUNE_JOBS_STORAGE_PATH={path} ", "all nodes mount"],
        )
        for path in (
            "results",
            "./results",
            "~/results",
            "$HOME/results",
            "${HOME}/results",
            "/home/me/results",
            "/root/results",
            "/tmp/results",
            "/tmp",
            "file:///tmp/results",
        )
    ),
    *(
        (
            AWS,
            swap("=s3://the-BUCKET/sweeps", f"={path}"),
            "storage",
            "setup_commands",
            [f"nothing mounts the storage {path}, ", "s3://"],
        )
        for path in ("/data/sweeps", "/mnt/efs/sweeps", "file:///mount/sweeps")
    ),
    (ONPREM, mount_large_file, "mounts", "file_mounts.~/data", ["data", "10 MiB", "working-dir"]),
    (
        ONPREM,
        mount_many_files,
        "mounts",
        "file_mounts.~/data",
        ["data", "100 files", "--working-dir ."],
    ),
    (AWS, mount_repository(".git"), "mounts", "file_mounts.~/repo", ["repo is a repository"]),
    (
        AWS,
        mount_repository("pyproject.toml"),
        "mounts",
        "file_mounts.~/repo",
        ["repo is a repository"],
    ),
    (
        ONPREM,
        sync_repository,
        "mounts",
        "cluster_synced_files.1",
        ["repo is a repository", "--working-dir ."],
    ),
    (
        AWS,
        put("file_mounts.~/x", "/nowhere/x"),
        "mounts",
        "file_mounts.~/x",
        ["/nowhere/x is not on this machine", "remove it"],
    ),
    (
        ONPREM,
        remove(".ssh/id_ed25519"),
        "key",
        "auth.ssh_private_key",
        ["~/.ssh/id_ed25519 is not on this machine", "correct the path"],
    ),
    (
        ONPREM,
        chmod(".ssh/id_ed25519", 0o640),
        "key",
        "auth.ssh_private_key",
        ["mode 0640", "15 minutes", "chmod 600 ~/.ssh/id_ed25519"],
    ),
]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(CASE, BROKEN)
def test_nodes_problem_found(
    name: str, broken: Break, check: str, where: str, words: list[str]
) -> None:
    assert_only_finding(name, broken, check, where, words)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        (ONPREM, drop("auth.ssh_private_key")),
        (AWS, swap("RAY_AUTH_MODE=token", "'RAY_AUTH_MODE=token'")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=gs://bucket/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=file:///mnt/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=$SCRATCH/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=/data/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=/var/sweeps")),
        (AWS, mounted_by("sudo mount -t nfs4 server:/ /data")),
        (AWS, mounted_by("echo 'fs-1 /data efs' | sudo tee -a /etc/fstab")),
        (AWS, add_setup("# RAY_AUTH_MODE=disabled")),
        (AWS, add_setup("RAY_AUTH_MODE=disabled ls >> log")),
        (AWS, add_setup("export RAY_AUTH_MODE=disabled")),  # in a shell that exits
        (ONPREM, add_setup('echo "export RAY_AUTH_MODE=\\"token\\"" >> ~/.bashrc')),
    ],
)
def test_nodes_good_file_passes(name: str, fine: Break) -> None:
    assert findings_after(name, fine) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_nodes_unsourced_file(name: str) -> None:
    """Variables in a file that no startup file sources do not reach `ray start`."""
    config = good(name)
    config["setup_commands"] = [c for c in config["setup_commands"] if "source" not in c]
    config["setup_commands"].append("export RAY_AUTH_MODE=token TUNE_JOBS_STORAGE_PATH=s3://x")
    token, storage = findings_of(config)
    assert (token.check, storage.check) == ("token", "storage")
    assert "into ~/.bashrc" in token.message
    assert "into ~/.bashrc" in storage.message


def test_nodes_container_variables() -> None:
    config = good(AWS)
    swap("RAY_AUTH_MODE=token ", "")(config)
    config["docker"] = {
        "image": "ours:1",
        "container_name": "ray",
        "run_options": ["-e RAY_AUTH_MODE=token"],
    }
    assert findings_of(config) == []


def test_nodes_small_mounts_pass() -> None:
    Path("few").mkdir()
    for i in range(100):
        Path("few", str(i)).touch()
    config = good(AWS)
    config["file_mounts"] |= {"~/few": "~/few", "~/one": "few/1"}
    assert findings_of(config) == []
