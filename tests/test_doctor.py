"""The doctor: each problem causes one finding; a good file on a good machine causes none."""

from pathlib import Path

import pytest
from cluster_files import (
    AWS,
    CASE,
    HEAD_NODE,
    ONPREM,
    PINS,
    SHIPPED,
    WORKER_NODE,
    Break,
    Case,
    Config,
    assert_only_finding,
    drop,
    findings_after,
    findings_of,
    good,
    good_machine,
    install,
    put,
    remove,
    swap,
)

from tune_jobs.doctor import INSTALL_CLUSTER


def rules_of_default_group(config: Config) -> None:
    """Add rules to the group that Ray creates, in place of naming one."""
    drop(f"{WORKER_NODE}.node_config.SecurityGroupIds")(config)
    config["provider"]["security_group"] = {"IpPermissions": []}


# The file, the change that breaks it, and the only finding: check, where, words of the message.
BROKEN: list[Case] = [
    (
        AWS,
        drop(f"{HEAD_NODE}.node_config.SecurityGroupIds"),
        "security_group",
        f"{HEAD_NODE}.node_config",
        ["head has no SecurityGroupIds", "0.0.0.0/0", "your own"],
    ),
    (AWS, rules_of_default_group, "security_group", f"{WORKER_NODE}.node_config", ["gpu_spot"]),
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
    (AWS, drop(f"{HEAD_NODE}.resources"), "head", f"{HEAD_NODE}.resources", ["accepts trials"]),
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
        ["no workers (max_workers 4, no node type)", "allow at least one"],
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
        ["at least 5 workers", "max_workers is 4", "raise max_workers"],
    ),
    (
        AWS,
        put("max_workers", 3),
        "workers",
        f"{WORKER_NODE}.max_workers",
        ["4 workers", "cluster is 3", "make the two numbers agree"],
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
    (AWS, remove("bin/ssh"), "machine", "this machine", ["needs ssh, which is not on the PATH"]),
    (ONPREM, remove("bin/rsync"), "machine", "this machine", ["needs rsync", "install it"]),
]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", SHIPPED)
def test_doctor_good_file_passes(name: str) -> None:
    assert findings_of(good(name)) == []


@pytest.mark.parametrize(CASE, BROKEN)
def test_doctor_problem_found(
    name: str, broken: Break, check: str, where: str, words: list[str]
) -> None:
    assert_only_finding(name, broken, check, where, words)


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        (AWS, drop("cluster_name")),  # Ray has a default
        (AWS, drop("auth")),
        (AWS, drop(f"{WORKER_NODE}.resources")),  # Ray asks AWS
        (AWS, drop(f"{HEAD_NODE}.node_config.IamInstanceProfile")),  # Ray creates one
        (AWS, put("provider.key_pair", {"key_name": "mine"})),
        (AWS, put(f"{HEAD_NODE}.node_config.SubnetIds", ["subnet-1"])),
        (AWS, put("max_workers", 9)),
        (AWS, drop(f"{WORKER_NODE}.max_workers")),
        (AWS, swap("--dashboard-host=127.0.0.1", "--dashboard-host localhost")),
        (AWS, swap("--dashboard-host=127.0.0.1", "")),
        (ONPREM, put("min_workers", 1)),  # Ray accepts it here, but not its schema
        (ONPREM, swap("--num-cpus=0 --num-gpus=0", "--num-gpus 0 --num-cpus 0")),
    ],
)
def test_doctor_good_change_passes(name: str, fine: Break) -> None:
    assert findings_after(name, fine) == []


def test_doctor_launch_template() -> None:
    config = good(AWS)
    config["available_node_types"]["gpu_spot"]["node_config"] = {
        "LaunchTemplate": {"LaunchTemplateName": "gpu", "Version": 1}
    }
    assert findings_of(config) == []


def test_doctor_network_interface_groups() -> None:
    config = good(AWS)
    node_config = config["available_node_types"]["head"]["node_config"]
    groups = node_config.pop("SecurityGroupIds")
    node_config["NetworkInterfaces"] = [{"DeviceIndex": 0, "SubnetId": "s", "Groups": groups}]
    assert findings_of(config) == []


@pytest.mark.parametrize(
    ("name", "package", "is_needed"),
    [(AWS, "boto3", True), (ONPREM, "boto3", False), (ONPREM, "aiohttp-cors", True)],
)
def test_doctor_package_missing(
    name: str, package: str, is_needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {name: version for name, version in PINS.items() if name != package})
    findings = findings_of(good(name))
    assert [finding.check for finding in findings] == ["machine"] * is_needed
    assert all(package in finding.message for finding in findings)
    assert all(f"run `{INSTALL_CLUSTER}`" in finding.message for finding in findings)


def test_doctor_own_worker_commands() -> None:
    """A worker type with its own setup commands runs none of the shared ones."""
    config = good(AWS)
    config["available_node_types"]["gpu_spot"]["worker_setup_commands"] = ["ls"]
    findings = findings_of(config)
    assert {finding.check for finding in findings} == {"token", "python", "versions"}
    assert all("gpu_spot" in f.message and "head" not in f.message for f in findings)


def test_doctor_provider_only() -> None:
    """In a file with nothing but a provider, the doctor finds the problems of Ray's defaults."""
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
def test_doctor_other_provider(kind: str) -> None:
    assert {f.check for f in findings_of({"provider": {"type": kind}})} >= {"token", "storage"}
