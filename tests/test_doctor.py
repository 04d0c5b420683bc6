"""The doctor: a good file on a good machine has no finding, each thing broken has just its own."""

import os
import re
from pathlib import Path

import pytest
import test_doctor_schema
import test_doctor_versions
from cluster_files import (
    AWS,
    HEAD_NODE,
    ONPREM,
    PINS,
    SHIPPED,
    WORKER_NODE,
    Break,
    Case,
    Config,
    add_setup,
    drop,
    findings_after,
    findings_of,
    good,
    good_machine,
    install,
    put,
    swap,
)


def large_file(config: Config) -> None:
    Path("data").mkdir()
    with open("data/x", "wb") as file:
        file.truncate(11 * 2**20)
    config["file_mounts"]["~/data"] = "data"


def many_files(config: Config) -> None:
    Path("data").mkdir()
    for i in range(101):
        Path("data", str(i)).touch()
    config["file_mounts"]["~/data"] = "data"


def repository(marker: str) -> Break:
    def broken(config: Config) -> None:
        Path("repo", marker).mkdir(parents=True)
        config["file_mounts"]["~/repo"] = "repo"

    return broken


def synced_repository(config: Config) -> None:
    Path("repo", ".git").mkdir(parents=True)
    config["cluster_synced_files"] = ["/only/on/the/head", "~/repo"]


def folder_that_is_mounted(command: str) -> Break:
    def fine(config: Config) -> None:
        swap("=s3://the-BUCKET/sweeps", "=/data/sweeps")(config)
        add_setup(command)(config)

    return fine


def rules_for_the_group_of_ray(config: Config) -> None:
    drop(f"{WORKER_NODE}.node_config.SecurityGroupIds")(config)
    config["provider"]["security_group"] = {"IpPermissions": []}


def chmod(file: str, mode: int) -> Break:
    return lambda config: Path(file).chmod(mode)


def remove(file: str) -> Break:
    return lambda config: Path(file).unlink()


# The file, what breaks it, the check that finds it, where, and what the message says.
BROKEN: list[Case] = [
    (
        AWS,
        drop(f"{HEAD_NODE}.node_config.SecurityGroupIds"),
        "security_group",
        f"{HEAD_NODE}.node_config",
        ["head has no SecurityGroupIds", "0.0.0.0/0", "your own"],
    ),
    (AWS, rules_for_the_group_of_ray, "security_group", f"{WORKER_NODE}.node_config", ["gpu_spot"]),
    (
        AWS,
        drop(f"{WORKER_NODE}.node_config.ImageId"),
        "image",
        f"{WORKER_NODE}.node_config",
        ["gpu_spot has no ImageId", "Ubuntu 18.04", "name a newer one"],
    ),
    (
        AWS,
        drop(f"{HEAD_NODE}.node_config.InstanceType"),
        "instance_type",
        f"{HEAD_NODE}.node_config",
        ["head has no InstanceType", "name one"],
    ),
    (
        AWS,
        swap("--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0"),
        "dashboard",
        "head_start_ray_commands.N",
        ["0.0.0.0", "--dashboard-host=127.0.0.1"],
    ),
    (
        AWS,
        drop("head_start_ray_commands"),
        "dashboard",
        "Ray's default head_start_ray_commands.N",
        ["0.0.0.0"],
    ),
    (
        AWS,
        put(f"{HEAD_NODE}.resources", {"GPU": 0}),
        "head",
        f"{HEAD_NODE}.resources",
        ['{"GPU": 0}', "{CPU: 0, GPU: 0}"],
    ),
    (AWS, put(f"{HEAD_NODE}.resources.GPU", 1), "head", f"{HEAD_NODE}.resources", ['"GPU": 1']),
    (AWS, drop(f"{HEAD_NODE}.resources"), "head", f"{HEAD_NODE}.resources", ["takes trials"]),
    (
        ONPREM,
        swap("--num-cpus=0 ", ""),
        "head",
        "head_start_ray_commands",
        ["(--num-gpus=0)", "--num-cpus=0 --num-gpus=0"],
    ),
    (
        ONPREM,
        swap("--num-gpus=0 ", "--num-gpus 02 "),
        "head",
        "head_start_ray_commands",
        ["--num-gpus 02"],
    ),
    (
        ONPREM,
        swap("RAY_enable_autoscaler_v2=0", ""),
        "autoscaler",
        "head_start_ray_commands",
        ["is not set", "one worker too few", "write RAY_enable_autoscaler_v2=0"],
    ),
    (
        ONPREM,
        swap("RAY_enable_autoscaler_v2=0", "RAY_enable_autoscaler_v2=1"),
        "autoscaler",
        "head_start_ray_commands",
        ["RAY_enable_autoscaler_v2 is 1"],
    ),
    (
        AWS,
        drop(WORKER_NODE),
        "workers",
        "max_workers",
        ["no workers (max_workers 4, no node type)", "allow one"],
    ),
    (AWS, put("max_workers", 0), "workers", "max_workers", ["no workers", "max_workers 0"]),
    (
        AWS,
        put(f"{WORKER_NODE}.max_workers", 0),
        "workers",
        "max_workers",
        ["gpu_spot.max_workers 0"],
    ),
    (
        AWS,
        put(f"{WORKER_NODE}.min_workers", 5),
        "workers",
        "max_workers",
        ["ask for 5 workers at least", "max_workers is 4", "raise max_workers"],
    ),
    (
        AWS,
        put("max_workers", 3),
        "workers",
        f"{WORKER_NODE}.max_workers",
        ["4 workers", "cluster is 3", "make them agree"],
    ),
    (
        AWS,
        drop("max_workers"),
        "workers",
        f"{WORKER_NODE}.max_workers",
        ["4 workers", "cluster is 2"],  # Ray's default
    ),
    (ONPREM, put("provider.worker_ips", []), "workers", "max_workers", ["provider.worker_ips 0"]),
    (ONPREM, put("max_workers", 1), "workers", "provider.worker_ips", ["2 workers", "is 1"]),
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
    (ONPREM, large_file, "mounts", "file_mounts.~/data", ["data", "10 MiB", "working-dir"]),
    (ONPREM, many_files, "mounts", "file_mounts.~/data", ["data", "100 files", "--working-dir ."]),
    (AWS, repository(".git"), "mounts", "file_mounts.~/repo", ["repo is a repository"]),
    (AWS, repository("pyproject.toml"), "mounts", "file_mounts.~/repo", ["repo is a repository"]),
    (
        ONPREM,
        synced_repository,
        "mounts",
        "cluster_synced_files.1",
        ["repo is a repository", "--working-dir ."],
    ),
    (
        AWS,
        put("file_mounts.~/x", "/nowhere/x"),
        "mounts",
        "file_mounts.~/x",
        ["/nowhere/x is not on this machine", "take it out"],
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
    # machine
    (AWS, remove("bin/ssh"), "machine", "this machine", ["needs ssh, which is not on the PATH"]),
    (ONPREM, remove("bin/rsync"), "machine", "this machine", ["needs rsync", "install it"]),
]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", SHIPPED)
def test_good_file_on_a_good_machine_has_no_finding(name: str) -> None:
    assert findings_of(good(name)) == []


@pytest.mark.parametrize(
    ("name", "broken", "check", "where", "words"),
    [*BROKEN, *test_doctor_schema.BROKEN, *test_doctor_versions.BROKEN],
)
def test_thing_that_is_broken_is_the_only_finding(
    name: str, broken: Break, check: str, where: str, words: list[str]
) -> None:
    (finding,) = findings_after(name, broken)
    assert (finding.check, re.sub(r"(_commands)\.\d+", r"\1.N", finding.where)) == (check, where)
    assert [word for word in words if word not in finding.message] == []
    assert finding.message.endswith((".", "?"))


# What must not be found


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        (AWS, drop("cluster_name")),  # Ray has a name for it
        (AWS, drop("auth")),
        (AWS, drop(f"{WORKER_NODE}.resources")),  # AWS is asked
        (AWS, drop(f"{HEAD_NODE}.node_config.IamInstanceProfile")),  # Ray makes one
        (AWS, put("provider.key_pair", {"key_name": "mine"})),
        (AWS, put(f"{HEAD_NODE}.node_config.SubnetIds", ["subnet-1"])),
        (AWS, put("max_workers", 9)),
        (AWS, drop(f"{WORKER_NODE}.max_workers")),
        (AWS, swap("--dashboard-host=127.0.0.1", "--dashboard-host localhost")),
        (AWS, swap("--dashboard-host=127.0.0.1", "")),
        (AWS, swap("RAY_AUTH_MODE=token", "'RAY_AUTH_MODE=token'")),
        (ONPREM, drop("auth.ssh_private_key")),
        (ONPREM, put("min_workers", 1)),  # Ray takes it here, though its schema does not
        (ONPREM, swap("--num-cpus=0 --num-gpus=0", "--num-gpus 0 --num-cpus 0")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=gs://bucket/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=file:///mnt/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=$SCRATCH/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=/data/sweeps")),
        (ONPREM, swap("=/the-MOUNT/sweeps", "=/var/sweeps")),
        (AWS, folder_that_is_mounted("sudo mount -t nfs4 server:/ /data")),
        (AWS, folder_that_is_mounted("echo 'fs-1 /data efs' | sudo tee -a /etc/fstab")),
        (AWS, add_setup("# RAY_AUTH_MODE=disabled")),
        (AWS, add_setup("RAY_AUTH_MODE=disabled ls >> log")),
        (AWS, add_setup("export RAY_AUTH_MODE=disabled")),  # in a shell that ends
        (ONPREM, add_setup('echo "export RAY_AUTH_MODE=\\"token\\"" >> ~/.bashrc')),
    ],
)
def test_what_is_fine_is_not_found(name: str, fine: Break) -> None:
    assert findings_after(name, fine) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_file_that_nothing_sources_sets_no_variables(name: str) -> None:
    config = good(name)
    config["setup_commands"] = [c for c in config["setup_commands"] if "source" not in c]
    config["setup_commands"].append("export RAY_AUTH_MODE=token TUNE_JOBS_STORAGE_PATH=s3://x")
    token, storage = findings_of(config)
    assert (token.check, storage.check) == ("token", "storage")
    assert "into ~/.bashrc" in token.message
    assert "into ~/.bashrc" in storage.message


def test_variables_of_a_container_count() -> None:
    config = good(AWS)
    swap("RAY_AUTH_MODE=token ", "")(config)
    config["docker"] = {
        "image": "ours:1",
        "container_name": "ray",
        "run_options": ["-e RAY_AUTH_MODE=token"],
    }
    assert findings_of(config) == []


def test_small_folder_and_file_may_be_mounted() -> None:
    Path("few").mkdir()
    for i in range(100):
        Path("few", str(i)).touch()
    config = good(AWS)
    config["file_mounts"] |= {"~/few": "~/few", "~/one": "few/1"}
    assert findings_of(config) == []


def test_launch_template_may_hold_what_the_node_config_does_not() -> None:
    config = good(AWS)
    config["available_node_types"]["gpu_spot"]["node_config"] = {
        "LaunchTemplate": {"LaunchTemplateName": "gpu", "Version": 1}
    }
    assert findings_of(config) == []


def test_groups_of_network_interfaces_count() -> None:
    config = good(AWS)
    node_config = config["available_node_types"]["head"]["node_config"]
    groups = node_config.pop("SecurityGroupIds")
    node_config["NetworkInterfaces"] = [{"DeviceIndex": 0, "SubnetId": "s", "Groups": groups}]
    assert findings_of(config) == []


@pytest.mark.parametrize(
    ("name", "package", "is_needed"),
    [(AWS, "boto3", True), (ONPREM, "boto3", False), (ONPREM, "aiohttp-cors", True)],
)
def test_package_that_ray_up_needs_is_missing(
    name: str, package: str, is_needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {name: version for name, version in PINS.items() if name != package})
    findings = findings_of(good(name))
    assert [finding.check for finding in findings] == ["machine"] * is_needed
    assert all(package in finding.message for finding in findings)
    assert all('pip install -c constraints.txt -e ".[cluster]"' in f.message for f in findings)


# Several things


def test_worker_type_with_commands_of_its_own_gets_none_of_the_shared_ones() -> None:
    config = good(AWS)
    config["available_node_types"]["gpu_spot"]["worker_setup_commands"] = ["ls"]
    findings = findings_of(config)
    assert {finding.check for finding in findings} == {"token", "python", "versions"}
    assert all("gpu_spot" in f.message and "head" not in f.message for f in findings)


def test_file_with_nothing_but_a_provider_is_told_what_ray_makes_of_it() -> None:
    checks = {
        finding.check for finding in findings_of({"provider": {"type": "aws", "region": "x"}})
    }
    assert checks >= {
        "security_group",
        "image",
        "dashboard",
        "head",
        "token",
        "storage",
        "versions",
    }


@pytest.mark.parametrize("kind", ["gcp", "azure"])
def test_other_providers_are_looked_at_as_far_as_it_goes(kind: str) -> None:
    assert {f.check for f in findings_of({"provider": {"type": kind}})} >= {"token", "storage"}
