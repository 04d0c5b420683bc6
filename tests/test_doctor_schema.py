"""The doctor on structure: placeholders, values that Ray or EC2 rejects, unknown keys."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from cluster_files import (
    AWS,
    CASE,
    HEAD_NODE,
    ONPREM,
    REPO,
    SHIPPED,
    WORKER_NODE,
    Break,
    Case,
    add_setup,
    assert_only_finding,
    drop,
    findings_after,
    findings_of,
    good,
    good_machine,
    put,
    swap,
)

from tune_jobs.doctor.checks import examine

# The file, the change that breaks it, and the only finding: check, where, words of the message.
BROKEN: list[Case] = [
    (
        AWS,
        put(f"{HEAD_NODE}.node_config.ImageId", "ami-YOUR-IMAGE"),
        "placeholder",
        f"{HEAD_NODE}.node_config.ImageId",
        ["ami-YOUR-IMAGE", "your own"],
    ),
    (
        AWS,
        put(f"{HEAD_NODE}.node_config.ImageId", "ami-00000000000000000"),
        "placeholder",
        f"{HEAD_NODE}.node_config.ImageId",
        ["ami-00000000000000000"],
    ),
    (
        AWS,
        put(f"{WORKER_NODE}.node_config.SecurityGroupIds", ["sg-000"]),
        "placeholder",
        f"{WORKER_NODE}.node_config.SecurityGroupIds.0",
        ["sg-000 "],
    ),
    *(
        (
            AWS,
            swap("s3://the-BUCKET/sweeps", f"s3://{bucket}/sweeps"),
            "placeholder",
            "setup_commands.N",
            [f"s3://{bucket}/sweeps is a placeholder"],
        )
        for bucket in ("<bucket>", "YOUR_BUCKET", "your-bucket", "CHANGE-ME", "CHANGEME")
    ),
    (
        ONPREM,
        add_setup("mount YOUR-SERVER:/x /mnt"),
        "placeholder",
        "setup_commands.N",
        ["YOUR-SERVER:/x"],
    ),
    (
        ONPREM,
        put("auth.ssh_private_key", "~/.ssh/YOUR-KEY"),
        "placeholder",
        "auth.ssh_private_key",
        ["~/.ssh/YOUR-KEY"],
    ),
    (
        ONPREM,
        put("file_mounts", {"~/.ray/auth_token": "~/.ray/auth_token", "/x": "/YOUR-FOLDER"}),
        "placeholder",
        "file_mounts./x",
        ["/YOUR-FOLDER"],
    ),
    (AWS, put("max_workers", "4"), "schema", "max_workers", ["of type integer", 'got "4"']),
    (AWS, put("max_workers", -1), "schema", "max_workers", ["at least 0", "got -1"]),
    (AWS, put("setup_commands", "ls"), "schema", "setup_commands", ["of type array", 'got "ls"']),
    (AWS, put("setup_commands", [1]), "schema", "setup_commands.N", ["of type string", "got 1"]),
    (AWS, put("file_mounts", None), "schema", "file_mounts", ["of type object", "got null"]),
    (AWS, put("file_mounts.~/x", 3), "schema", "file_mounts.~/x", ["of type string", "got 3"]),
    (AWS, put("available_node_types", []), "schema", "available_node_types", ["object", "got []"]),
    (
        AWS,
        put("cluster_synced_files", [1]),
        "schema",
        "cluster_synced_files.0",
        ["of type string", "got 1"],
    ),
    (AWS, drop("provider"), "schema", "provider", ["provider is missing", "add it"]),
    (AWS, put("provider", "aws"), "schema", "provider", ["of type object", 'got "aws"']),
    (AWS, drop("provider.type"), "schema", "provider.type", ["type is missing", "add it"]),
    (
        AWS,
        put("provider.type", "asw"),
        "schema",
        "provider.type",
        ["one of", '"asw"'],
    ),
    (AWS, drop("provider.region"), "schema", "provider.region", ["region is missing"]),
    (AWS, drop(f"{HEAD_NODE}.node_config"), "schema", f"{HEAD_NODE}.node_config", ["is missing"]),
    (
        AWS,
        put("head_node_type", "hed"),
        "schema",
        "head_node_type",
        ["hed is not one of the node types (head, gpu_spot)"],
    ),
    (
        AWS,
        put(f"{HEAD_NODE}.node_config.SecurityGroupIds", "sg-1"),
        "schema",
        f"{HEAD_NODE}.node_config",
        ["SecurityGroupIds", "value: sg-1", "valid types: list"],
    ),
    (
        AWS,
        put(f"{HEAD_NODE}.node_config.EbsOptimized", "yes"),
        "schema",
        f"{HEAD_NODE}.node_config",
        ["EbsOptimized", "value: yes", "valid types: bool"],
    ),
    (ONPREM, drop("provider.worker_ips"), "schema", "provider.worker_ips", ["is missing"]),
    (
        AWS,
        put("idle_timeout_minute", 5),
        "unknown_key",
        "idle_timeout_minute",
        ["idle_timeout_minute is not known", "did you mean idle_timeout_minutes?"],
    ),
    (AWS, put("qqq", 5), "unknown_key", "qqq", ["qqq is not known", "remove it"]),
    (
        AWS,
        put(f"{WORKER_NODE}.min_worker", 1),
        "unknown_key",
        f"{WORKER_NODE}.min_worker",
        ["did you mean min_workers?"],
    ),
    (AWS, put("auth.ssh_usr", "x"), "unknown_key", "auth.ssh_usr", ["did you mean ssh_user?"]),
    (
        AWS,
        put("provider.availability_zones", "us-west-2a"),
        "unknown_key",
        "provider.availability_zones",
        ["did you mean availability_zone?"],
    ),
    (
        AWS,
        put("provider.use_external_head_ips", True),
        "unknown_key",
        "provider.use_external_head_ips",
        ["did you mean use_external_head_ip?"],
    ),
    (
        AWS,
        put(f"{HEAD_NODE}.node_config.KeyNam", "mine"),
        "unknown_key",
        f"{HEAD_NODE}.node_config.KeyNam",
        ["did you mean KeyName?"],
    ),
    (
        AWS,
        put(f"{HEAD_NODE}.node_config.BlockDeviceMappings.0.Ebs", {"VolumSize": 100}),
        "unknown_key",
        f"{HEAD_NODE}.node_config.BlockDeviceMappings[0].Ebs.VolumSize",
        ["did you mean VolumeSize?"],
    ),
    (
        ONPREM,
        put("available_node_types", {}),
        "unknown_key",
        "available_node_types",
        ["available_node_types is not known here", "remove it"],
    ),
]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(CASE, BROKEN)
def test_schema_problem_found(
    name: str, broken: Break, check: str, where: str, words: list[str]
) -> None:
    assert_only_finding(name, broken, check, where, words)


@pytest.mark.parametrize("name", SHIPPED)
def test_schema_shipped_placeholders(name: str) -> None:
    """The shipped files have placeholders and no other problem."""
    findings = findings_of(yaml.safe_load((REPO / name).read_text()))
    assert {finding.check for finding in findings} == {"placeholder"}
    found = " ".join(finding.message for finding in findings)
    for placeholder in set(re.findall(r"YOUR-[A-Z-]+", (REPO / name).read_text())):
        assert placeholder in found


@pytest.mark.parametrize(
    "command", ["cat <in >out", "cat < in > out", "cat <<EOF>out\nx\nEOF", "diff <(ls a) <(ls b)"]
)
def test_schema_redirection_passes(command: str) -> None:
    assert findings_after(AWS, add_setup(command)) == []


def test_schema_null_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only boto3 knows that EC2 rejects null in place of a list of groups."""
    broken = put(f"{HEAD_NODE}.node_config.SecurityGroupIds", None)
    assert [finding.check for finding in findings_after(AWS, broken)] == ["schema"]
    monkeypatch.setitem(sys.modules, "botocore.validate", None)  # boto3 is not installed
    assert [finding.check for finding in findings_after(AWS, broken)] == ["security_group"]


def test_schema_command_path() -> None:
    (finding,) = findings_after(ONPREM, add_setup("mount YOUR-SERVER:/x /mnt"))
    assert finding.where == f"setup_commands.{len(good(ONPREM)['setup_commands'])}"


def test_schema_invalid_file_only() -> None:
    """If Ray rejects the file, the checks that rely on a valid file do not run."""
    config = good(AWS) | {"max_workers": "4", "setup_command": []}
    config["provider"]["region"] = "YOUR-REGION"
    checks = [finding.check for finding in findings_of(config)]
    assert checks == ["placeholder", "schema", "unknown_key"]


def test_schema_keys_not_strings() -> None:
    Path("cluster.yaml").write_text("on: 1\n2: 2024-01-01\ncluster_name: 2024-01-01\n")
    findings = examine(Path("cluster.yaml"))
    assert [(finding.check, finding.where) for finding in findings] == [
        ("schema", "provider"),
        ("unknown_key", "2"),
        ("unknown_key", "true"),
    ]
