"""`tune-jobs doctor --aws` in an account of moto: what it finds, and that it only reads."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import botocore.client
import pytest
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.parsers import ResponseParserError
from moto import mock_aws

from tune_jobs.doctor import INSTALL_CLUSTER
from tune_jobs.doctor.aws import account as examine_account
from tune_jobs.doctor.cluster_file import read_cluster_file

REGION = "us-west-2"
HEAD = "available_node_types.head.node_config"
GPU = "available_node_types.gpu.node_config"
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
FROM_ME = {"IpRanges": [{"CidrIp": "192.0.2.1/32"}]}
PORT_22 = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
SSH = PORT_22 | FROM_ME
EVERYONE = {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
EVERYONE_V6 = {"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
RAY = {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379}


@dataclass
class Account:
    """An account that has everything the file names.

    Attributes:
        ec2: Its client for EC2.
        iam: Its client for IAM.
        group: A good security group.
        image: An x86_64 image.
    """

    ec2: Any
    iam: Any
    group: str
    image: str

    def new_group(self, *rules: dict[str, Any], allows_itself: bool = True) -> str:
        name = str(uuid4())
        group: str = self.ec2.create_security_group(GroupName=name, Description=name)["GroupId"]
        if allows_itself:
            itself = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
            rules = (itself, *rules)
        if rules:
            self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=list(rules))
        return group

    def new_profile(self, name: str, has_role: bool = True) -> None:
        self.iam.create_instance_profile(InstanceProfileName=name)
        if has_role:
            self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
            self.iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)

    def config(self) -> dict[str, Any]:
        return {
            "cluster_name": "tune",
            "provider": {"type": "aws", "region": REGION},
            "available_node_types": {
                name: {"node_config": self.node_config(kind, name), "resources": {}}
                for name, kind in (("head", "m6i.large"), ("gpu", "g4dn.xlarge"))
            },
            "head_node_type": "head",
        }

    def node_config(self, kind: str, profile: str) -> dict[str, Any]:
        return {
            "InstanceType": kind,
            "ImageId": self.image,
            "SecurityGroupIds": [self.group],
            "IamInstanceProfile": {"Name": profile},
        }


@pytest.fixture(scope="module")  # takes seconds to create; tests add to it but change nothing in it
def account() -> Iterator[Account]:
    with mock_aws():
        ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
        image = ec2.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])
        account = Account(ec2, iam, "", image["Images"][0]["ImageId"])
        account.group = account.new_group(SSH)
        for name in ("head", "gpu"):
            account.new_profile(name)
        yield account


def findings_of(config: Any, folder: Path) -> list[tuple[str, str]]:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return list(examine_account(read_cluster_file(file)))


def node_config(config: Any, name: str = "gpu") -> dict[str, Any]:
    found: dict[str, Any] = config["available_node_types"][name]["node_config"]
    return found


def test_account_good_passes(account: Account, tmp_path: Path) -> None:
    assert findings_of(account.config(), tmp_path) == []


def test_account_calls_read_only(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    call = botocore.client.BaseClient._make_api_call

    def recorded(client: Any, operation: str, parameters: Any) -> Any:
        calls.append((operation, client.meta.region_name))
        return call(client, operation, parameters)

    config = account.config()
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", recorded)
    assert findings_of(config, tmp_path) == []
    assert {operation for operation, _ in calls} == {
        "DescribeSecurityGroups",
        "DescribeImages",
        "DescribeInstanceTypes",
        "GetInstanceProfile",
    }
    assert all(operation.startswith(("Describe", "Get", "List")) for operation, _ in calls)
    assert all(region == REGION for name, region in calls if name != "GetInstanceProfile")


Broken = Callable[[Account, Any], object]


def use_group(*rules: dict[str, Any], allows_itself: bool = True) -> Broken:
    """Put all nodes into a new group with these rules."""

    def broken(account: Account, config: Any) -> None:
        group = account.new_group(*rules, allows_itself=allows_itself)
        for name in ("head", "gpu"):
            node_config(config, name)["SecurityGroupIds"] = [group]

    return broken


def put(**values: Any) -> Broken:
    """Set these keys in the node config of the GPU nodes."""
    return lambda account, config: node_config(config).update(values)


def allow_foreign_group(account: Account, config: Any) -> None:
    others = {"UserIdGroupPairs": [{"GroupId": account.new_group()}]}
    use_group(PORT_22 | others, RAY | others)(account, config)


def allow_prefix_list(account: Account, config: Any) -> None:
    made = account.ec2.create_managed_prefix_list(
        PrefixListName="office", MaxEntries=1, AddressFamily="IPv4"
    )
    lists = {"PrefixListIds": [{"PrefixListId": made["PrefixList"]["PrefixListId"]}]}
    use_group(PORT_22 | lists, RAY | lists)(account, config)


def use_profile_without_role(account: Account, config: Any) -> None:
    account.new_profile("empty", has_role=False)
    arn = account.iam.get_instance_profile(InstanceProfileName="empty")["InstanceProfile"]["Arn"]
    node_config(config)["IamInstanceProfile"] = {"Arn": arn}


# The change that breaks it, and the only finding: where, words of the message.
BROKEN: list[tuple[Broken, str, list[str]]] = [
    (
        put(SecurityGroupIds=["sg-0123"]),
        f"{GPU}.SecurityGroupIds",
        ["sg-0123 is not available in us-west-2", "correct it"],
    ),
    (
        use_group(SSH, PORT_22 | EVERYONE),
        GPU,
        ["0.0.0.0/0", "tcp port 22", "allow only your addresses"],
    ),
    (
        use_group(PORT_22 | {"IpRanges": [*FROM_ME["IpRanges"], {"CidrIp": "128.0.0.0/1"}]}),
        GPU,
        ["allows 128.0.0.0/1, which is everyone, on tcp port 22"],
    ),
    (
        use_group(SSH, PORT_22 | EVERYONE_V6),
        GPU,
        ["allows ::/0, which is everyone, on tcp port 22"],
    ),
    (
        use_group(SSH, {"IpProtocol": "-1"} | FROM_ME),
        GPU,
        ["allows 192.0.2.1/32 on every port; ", "allow only the cluster's own groups"],
    ),
    (use_group(SSH, SSH | {"IpProtocol": "udp"}), GPU, ["allows 192.0.2.1/32 on udp port 22; "]),
    (use_group(SSH | {"FromPort": 20}), GPU, ["allows 192.0.2.1/32 on tcp ports 20-22; "]),
    (
        use_group(SSH, {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1} | FROM_ME),
        GPU,
        ["allows 192.0.2.1/32 on protocol icmp; "],
    ),
    (
        allow_foreign_group,
        GPU,
        [" allows sg-", " on tcp port 6379; allow only the cluster's own groups, and port 22 "],
    ),
    (allow_prefix_list, GPU, [" allows pl-", " on tcp port 6379; "]),
    (
        use_group(SSH, RAY | {"FromPort": 8000, "ToPort": 9000} | EVERYONE_V6),
        GPU,
        ["::/0", "tcp ports 8000-9000"],
    ),
    (use_group(SSH, {"IpProtocol": "-1"} | EVERYONE), GPU, ["0.0.0.0/0", "every port"]),
    (
        use_group(SSH, allows_itself=False),
        "available_node_types",
        ["does not allow all traffic from itself", "add that rule"],
    ),
    (use_group(), HEAD, ["allows nobody on port 22", "allow your address"]),
    (
        put(ImageId="ami-0123"),
        f"{GPU}.ImageId",
        ["ami-0123 is not available in us-west-2", "correct it"],
    ),
    (
        put(InstanceType="g99.huge"),
        f"{GPU}.InstanceType",
        ["g99.huge is not available in us-west-2"],
    ),
    (
        put(InstanceType="g5g.xlarge"),
        f"{GPU}.ImageId",
        ["is for x86_64, but g5g.xlarge is arm64", "that match"],
    ),
    (
        put(IamInstanceProfile={"Name": "gone"}),
        f"{GPU}.IamInstanceProfile",
        ["no instance profile gone", "create it"],
    ),
    (use_profile_without_role, f"{GPU}.IamInstanceProfile", ["empty has no role", "add one"]),
]


@pytest.mark.parametrize(("broken", "where", "words"), BROKEN)
def test_account_problem_found(
    broken: Broken, where: str, words: list[str], account: Account, tmp_path: Path
) -> None:
    config = account.config()
    broken(account, config)
    ((found, message),) = findings_of(config, tmp_path)
    assert found == where
    assert [word for word in words if word not in message] == []


def test_account_image_not_ready(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_response(
        monkeypatch, "DescribeImages", lambda found: found["Images"][0].update(State="failed")
    )
    findings = findings_of(account.config(), tmp_path)
    assert [message for _, message in findings] == [
        f"{account.image} is failed; name an image that is available."
    ] * 2


def test_account_groups_closed(account: Account, tmp_path: Path) -> None:
    """Nodes in different groups, neither of which allows the other."""
    config, other = account.config(), account.new_group()
    node_config(config)["SecurityGroupIds"] = [other]
    messages = [message for _, message in findings_of(config, tmp_path)]
    assert messages[0].startswith(f"{account.group} does not allow all traffic from {other}")
    assert messages[1].startswith(f"{other} does not allow all traffic from {account.group}")
    assert len(messages) == 2


def test_account_groups_allow_each_other(account: Account, tmp_path: Path) -> None:
    """Nodes in different groups, each of which allows the other."""
    config = account.config()
    groups = [account.new_group(SSH), account.new_group()]
    for name, group, other in zip(("head", "gpu"), groups, reversed(groups), strict=True):
        rule = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": other}]}
        account.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        node_config(config, name)["SecurityGroupIds"] = [group]
    assert findings_of(config, tmp_path) == []


def test_account_groups_combined(account: Account, tmp_path: Path) -> None:
    """If a node has several groups, the rules of all of them count."""
    config = account.config()
    groups = [account.new_group(SSH, allows_itself=False), account.new_group()]
    for name in ("head", "gpu"):
        node_config(config, name)["SecurityGroupIds"] = groups
    assert findings_of(config, tmp_path) == []


def test_account_internal_addresses(account: Account, tmp_path: Path) -> None:
    """With internal addresses, `ray up` does not need SSH from outside."""
    config = account.config()
    use_group()(account, config)
    config["provider"]["use_internal_ips"] = True
    assert findings_of(config, tmp_path) == []


def test_account_placeholders_skipped(account: Account, tmp_path: Path) -> None:
    config = account.config()
    put(
        ImageId="ami-YOUR-IMAGE",
        SecurityGroupIds=["sg-YOUR-GROUP"],
        IamInstanceProfile={"Name": "YOUR-PROFILE"},
    )(account, config)
    assert findings_of(config, tmp_path) == []


# AWS cannot be queried: one finding


def test_account_other_provider(tmp_path: Path) -> None:
    ((_, message),) = findings_of({"provider": {"type": "local"}}, tmp_path)
    assert message == "AWS was not checked: the provider is local; leave out --aws."


def test_account_boto3_missing(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    ((_, message),) = findings_of(account.config(), tmp_path)
    assert "boto3 is not installed" in message
    assert f"run `{INSTALL_CLUSTER}`" in message


def test_account_credentials_missing(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    ((_, message),) = findings_of(account.config(), tmp_path)
    assert message.startswith("AWS was not checked: there are no credentials; run `aws configure`")


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="https://ec2.us-west-2.amazonaws.com"),
        ResponseParserError("a proxy's page, not XML"),
        ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "No."}}, "Describe"),
    ],
)
def test_account_query_fails(
    error: Exception, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    config = account.config()
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", fail)
    ((_, message),) = findings_of(config, tmp_path)
    assert (
        message
        == f"AWS was not checked: {error}; check the network, the region and your permissions."
    )


def test_account_region_malformed(account: Account, tmp_path: Path) -> None:
    config = account.config()
    config["provider"]["region"] = "us west"
    ((_, message),) = findings_of(config, tmp_path)
    assert "'us west'" in message


def test_account_query_fails_midway(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings from before the failure remain."""

    def refuse(found: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "No."}}, "Get")

    config = account.config()
    put(ImageId="ami-0123")(account, config)
    change_response(monkeypatch, "GetInstanceProfile", refuse)
    first, last = (message for _, message in findings_of(config, tmp_path))
    assert "ami-0123" in first
    assert "AccessDenied" in last


def change_response(
    monkeypatch: pytest.MonkeyPatch, operation: str, change: Callable[[Any], object]
) -> None:
    """Change the response of AWS to an operation."""
    call = botocore.client.BaseClient._make_api_call

    def changed(client: Any, name: str, parameters: Any) -> Any:
        found = call(client, name, parameters)
        if name == operation:
            change(found)
        return found

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", changed)
