"""What the doctor finds in an AWS account, here moto's; it looks, and changes nothing."""

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

from tune_jobs.doctor.aws import account as examine_account
from tune_jobs.doctor.cluster_file import read_cluster_file

REGION = "us-west-2"
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
FROM_ME = [{"CidrIp": "192.0.2.1/32"}]
PORT_22 = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
SSH = PORT_22 | {"IpRanges": FROM_ME}
EVERYONE = [{"CidrIp": "0.0.0.0/0"}]


@dataclass
class Account:
    """An account with all that the file names."""

    ec2: Any
    iam: Any
    group: str
    image: str

    def new_group(self, *rules: dict[str, Any], trusts_itself: bool = True) -> str:
        name = str(uuid4())
        group: str = self.ec2.create_security_group(GroupName=name, Description=name)["GroupId"]
        if trusts_itself:
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


@pytest.fixture(scope="module")  # it takes moto seconds; tests add to it, and change nothing
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


def test_good_account_has_no_finding(account: Account, tmp_path: Path) -> None:
    assert findings_of(account.config(), tmp_path) == []


def test_calls_only_read(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def use_group(*rules: dict[str, Any], trusts_itself: bool = True) -> Broken:
    def broken(account: Account, config: Any) -> None:
        group = account.new_group(*rules, trusts_itself=trusts_itself)
        for name in ("head", "gpu"):
            node_config(config, name)["SecurityGroupIds"] = [group]

    return broken


def put(**values: Any) -> Broken:
    return lambda account, config: node_config(config).update(values)


def let_in_a_foreign_group(account: Account, config: Any) -> None:
    others = [{"GroupId": account.new_group()}]
    ray = {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379, "UserIdGroupPairs": others}
    use_group(PORT_22 | {"UserIdGroupPairs": others}, ray)(account, config)


def let_in_a_prefix_list(account: Account, config: Any) -> None:
    made = account.ec2.create_managed_prefix_list(
        PrefixListName="office", MaxEntries=1, AddressFamily="IPv4"
    )
    lists = [{"PrefixListId": made["PrefixList"]["PrefixListId"]}]
    ray = {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379, "PrefixListIds": lists}
    use_group(PORT_22 | {"PrefixListIds": lists}, ray)(account, config)


def profile_without_role(account: Account, config: Any) -> None:
    account.new_profile("empty", has_role=False)
    arn = account.iam.get_instance_profile(InstanceProfileName="empty")["InstanceProfile"]["Arn"]
    node_config(config)["IamInstanceProfile"] = {"Arn": arn}


BROKEN: list[tuple[Broken, str, list[str]]] = [
    (
        put(SecurityGroupIds=["sg-0123"]),
        "available_node_types.gpu.node_config.SecurityGroupIds",
        ["sg-0123 is not to be had in us-west-2", "correct it"],
    ),
    (
        use_group(SSH, PORT_22 | {"IpRanges": EVERYONE}),
        "available_node_types.gpu.node_config",
        ["0.0.0.0/0", "tcp port 22", "the addresses that you connect from"],
    ),
    (
        use_group(PORT_22 | {"IpRanges": [*FROM_ME, {"CidrIp": "128.0.0.0/1"}]}),
        "available_node_types.gpu.node_config",
        ["lets in 128.0.0.0/1, which is everyone, at tcp port 22"],
    ),
    (
        use_group(SSH, PORT_22 | {"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}),
        "available_node_types.gpu.node_config",
        ["lets in ::/0, which is everyone, at tcp port 22"],
    ),
    (
        use_group(SSH, {"IpProtocol": "-1", "IpRanges": FROM_ME}),
        "available_node_types.gpu.node_config",
        ["lets in 192.0.2.1/32 at every port; ", "and nothing else"],
    ),
    (
        use_group(SSH, {"IpProtocol": "udp", "FromPort": 22, "ToPort": 22, "IpRanges": FROM_ME}),
        "available_node_types.gpu.node_config",
        ["lets in 192.0.2.1/32 at udp port 22; "],
    ),
    (
        use_group({"IpProtocol": "tcp", "FromPort": 20, "ToPort": 22, "IpRanges": FROM_ME}),
        "available_node_types.gpu.node_config",
        ["lets in 192.0.2.1/32 at tcp ports 20-22; "],
    ),
    (
        use_group(SSH, {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, "IpRanges": FROM_ME}),
        "available_node_types.gpu.node_config",
        ["lets in 192.0.2.1/32 at protocol icmp; "],
    ),
    (
        let_in_a_foreign_group,
        "available_node_types.gpu.node_config",
        [" lets in sg-", " at tcp port 6379; let in the cluster's own groups, and port 22 "],
    ),
    (
        let_in_a_prefix_list,
        "available_node_types.gpu.node_config",
        [" lets in pl-", " at tcp port 6379; "],
    ),
    (
        use_group(
            SSH,
            {
                "IpProtocol": "tcp",
                "FromPort": 8000,
                "ToPort": 9000,
                "Ipv6Ranges": [{"CidrIpv6": "::/0"}],
            },
        ),
        "available_node_types.gpu.node_config",
        ["::/0", "tcp ports 8000-9000"],
    ),
    (
        use_group(SSH, {"IpProtocol": "-1", "IpRanges": EVERYONE}),
        "available_node_types.gpu.node_config",
        ["0.0.0.0/0", "every port"],
    ),
    (
        use_group(SSH, trusts_itself=False),
        "available_node_types",
        ["does not let in all traffic from itself", "add that rule"],
    ),
    (
        use_group(),
        "available_node_types.head.node_config",
        ["lets in no one at port 22", "from your address"],
    ),
    (
        put(ImageId="ami-0123"),
        "available_node_types.gpu.node_config.ImageId",
        ["ami-0123 is not to be had in us-west-2", "correct it"],
    ),
    (
        put(InstanceType="g99.huge"),
        "available_node_types.gpu.node_config.InstanceType",
        ["g99.huge is not to be had in us-west-2"],
    ),
    (
        put(InstanceType="g5g.xlarge"),
        "available_node_types.gpu.node_config.ImageId",
        ["is for x86_64, g5g.xlarge is arm64", "go together"],
    ),
    (
        put(IamInstanceProfile={"Name": "gone"}),
        "available_node_types.gpu.node_config.IamInstanceProfile",
        ["no instance profile gone", "make it"],
    ),
    (
        profile_without_role,
        "available_node_types.gpu.node_config.IamInstanceProfile",
        ["empty holds no role", "add one"],
    ),
]


@pytest.mark.parametrize(("broken", "where", "words"), BROKEN)
def test_thing_that_is_broken_is_the_only_finding(
    broken: Broken, where: str, words: list[str], account: Account, tmp_path: Path
) -> None:
    config = account.config()
    broken(account, config)
    ((found, message),) = findings_of(config, tmp_path)
    assert found == where
    assert [word for word in words if word not in message] == []


def test_image_that_is_not_ready_is_told(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "DescribeImages", lambda found: found["Images"][0].update(State="failed"))
    findings = findings_of(account.config(), tmp_path)
    assert [message for _, message in findings] == [
        f"{account.image} is failed; name an image that is available."
    ] * 2


def test_nodes_in_groups_that_do_not_trust_each_other_are_told(
    account: Account, tmp_path: Path
) -> None:
    config, other = account.config(), account.new_group()
    node_config(config)["SecurityGroupIds"] = [other]
    messages = [message for _, message in findings_of(config, tmp_path)]
    assert messages[0].startswith(f"{account.group} does not let in all traffic from {other}")
    assert messages[1].startswith(f"{other} does not let in all traffic from {account.group}")
    assert len(messages) == 2


def test_groups_of_the_cluster_may_let_each_other_in(account: Account, tmp_path: Path) -> None:
    config = account.config()
    groups = [account.new_group(SSH), account.new_group()]
    for name, group, other in zip(("head", "gpu"), groups, reversed(groups), strict=True):
        rule = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": other}]}
        account.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        node_config(config, name)["SecurityGroupIds"] = [group]
    assert findings_of(config, tmp_path) == []


def test_groups_of_a_node_may_share_the_work(account: Account, tmp_path: Path) -> None:
    config = account.config()
    groups = [account.new_group(SSH, trusts_itself=False), account.new_group()]
    for name in ("head", "gpu"):
        node_config(config, name)["SecurityGroupIds"] = groups
    assert findings_of(config, tmp_path) == []


def test_ssh_is_not_needed_from_outside_where_addresses_are_internal(
    account: Account, tmp_path: Path
) -> None:
    config = account.config()
    use_group()(account, config)
    config["provider"]["use_internal_ips"] = True
    assert findings_of(config, tmp_path) == []


def test_placeholders_are_not_looked_up(account: Account, tmp_path: Path) -> None:
    config = account.config()
    put(
        ImageId="ami-YOUR-IMAGE",
        SecurityGroupIds=["sg-YOUR-GROUP"],
        IamInstanceProfile={"Name": "YOUR-PROFILE"},
    )(account, config)
    assert findings_of(config, tmp_path) == []


# Where AWS cannot be asked


def test_other_provider_is_one_finding(tmp_path: Path) -> None:
    ((_, message),) = findings_of({"provider": {"type": "local"}}, tmp_path)
    assert message == "AWS was not asked: the provider is local; leave out --aws."


def test_no_boto3_is_one_finding(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    ((_, message),) = findings_of(account.config(), tmp_path)
    assert "boto3 is not installed" in message
    assert 'pip install -c constraints.txt -e ".[cluster]"' in message


def test_no_credentials_are_one_finding(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    ((_, message),) = findings_of(account.config(), tmp_path)
    assert message.startswith("AWS was not asked: no credentials; run `aws configure`")


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="https://ec2.us-west-2.amazonaws.com"),
        ResponseParserError("no XML, but a proxy's page"),
        ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "No."}}, "Describe"),
    ],
)
def test_no_network_no_aws_and_no_rights_are_one_finding(
    error: Exception, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    config = account.config()
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", fail)
    ((_, message),) = findings_of(config, tmp_path)
    assert message == f"AWS was not asked: {error}; look at network, region and rights."


def test_region_that_is_none_is_one_finding(account: Account, tmp_path: Path) -> None:
    config = account.config()
    config["provider"]["region"] = "us west"
    ((_, message),) = findings_of(config, tmp_path)
    assert "'us west'" in message


def test_rights_that_end_halfway_leave_what_was_found(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(found: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "No."}}, "Get")

    config = account.config()
    put(ImageId="ami-0123")(account, config)
    answer(monkeypatch, "GetInstanceProfile", refuse)
    first, last = (message for _, message in findings_of(config, tmp_path))
    assert "ami-0123" in first
    assert "AccessDenied" in last


def answer(
    monkeypatch: pytest.MonkeyPatch, operation: str, change: Callable[[Any], object]
) -> None:
    """Change what AWS answers."""
    call = botocore.client.BaseClient._make_api_call

    def changed(client: Any, name: str, parameters: Any) -> Any:
        found = call(client, name, parameters)
        if name == operation:
            change(found)
        return found

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", changed)
