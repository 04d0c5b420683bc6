"""What a cluster file says of AWS: what it leaves to Ray's defaults, and what it names there."""

import json
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import product
from typing import Any

from tune_jobs.doctor.cluster_file import PLACEHOLDER, ClusterFile, NodeConfig, Trouble
from tune_jobs.doctor.versions import INSTALL_CLUSTER

__all__ = ["account", "image", "instance_type", "no_mount", "no_profile", "security_group"]

# What makes a mount, or may; the last two are not looked into.
MOUNT = re.compile(r"mount|fstab|\befs|\bnfs|\bfsx|LaunchTemplate|UserData")
WORLD = 8  # bits of a network so wide that it is as good as the world
SSH = 22
LAST_PORT = 65535

# By key of a node config: what looks it up, its filter, and where the answer has it. Filters, as
# they leave out what is not there, where ids would raise.
LOOKUPS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "SecurityGroupIds": ("describe_security_groups", "group-id", "SecurityGroups.GroupId", {}),
    "InstanceType": ("describe_instance_types", "instance-type", "InstanceTypes.InstanceType", {}),
    # A deprecated image still starts.
    "ImageId": ("describe_images", "image-id", "Images.ImageId", {"IncludeDeprecated": True}),
}


def security_group(cluster: ClusterFile) -> Iterator[Trouble]:
    for node in _nodes_without("SecurityGroupIds", cluster):
        if not node.security_groups:
            yield (
                f"{node.where}.node_config",
                f"{node.name} has no SecurityGroupIds, so Ray makes a group that opens ssh to "
                "0.0.0.0/0, to which provider.security_group only adds; name a group of your own.",
            )


def image(cluster: ClusterFile) -> Iterator[Trouble]:
    for node in _nodes_without("ImageId", cluster):
        yield (
            f"{node.where}.node_config",
            f"{node.name} has no ImageId, so Ray takes an image of Ubuntu 18.04; name a newer one.",
        )


def instance_type(cluster: ClusterFile) -> Iterator[Trouble]:
    for node in _nodes_without("InstanceType", cluster):
        yield (
            f"{node.where}.node_config",
            f"{node.name} has no InstanceType, so EC2 starts one of its oldest; name one.",
        )


def no_profile(cluster: ClusterFile, storage: str) -> Iterator[Trouble]:
    for node in _nodes_without("IamInstanceProfile", cluster):
        if node is not cluster.head:  # Ray makes one for the head, and for no other node
            yield (
                f"{node.where}.node_config",
                f"{node.name} has no IamInstanceProfile, so it cannot write to {storage}; "
                "name one that may.",
            )


def no_mount(cluster: ClusterFile, storage: str) -> Iterator[Trouble]:
    head = cluster.head
    texts = [command.text.replace(storage, "") for command in head.commands]
    if cluster.provider == "aws" and not MOUNT.search(" ".join([*texts, json.dumps(head.config)])):
        yield (
            "setup_commands",
            f"nothing mounts the storage {storage}, so each node has one of its own; "
            "mount it on all nodes, or name a bucket (s3://...).",
        )


def _nodes_without(key: str, cluster: ClusterFile) -> list[NodeConfig]:
    """Node types on aws that do not say it; a launch template may, which is not looked into."""
    if cluster.provider != "aws":
        return []
    return [
        node
        for node in cluster.nodes
        if not node.config.get(key) and "LaunchTemplate" not in node.config
    ]


# What the account says; asked once, and not for long


def account(cluster: ClusterFile) -> Iterator[Trouble]:
    """Is what the file names there, and fit? Looks only, never changes anything."""
    try:
        yield from _account(cluster)
    except _CannotAskError as error:
        yield "provider", f"AWS was not asked: {error}"


class _CannotAskError(Exception):
    """The message says why AWS cannot be asked, and what to do."""


def _account(cluster: ClusterFile) -> Iterator[Trouble]:
    if cluster.provider != "aws":
        raise _CannotAskError(f"the provider is {cluster.provider}; leave out --aws.")
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError as error:
        raise _CannotAskError(f"boto3 is not installed; `{INSTALL_CLUSTER}`.") from error
    # Not the minutes of boto3's own defaults, where there is no network.
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2})
    try:
        session = boto3.Session(region_name=cluster.settings["provider"]["region"])
        if session.get_credentials() is None:
            raise _CannotAskError("no credentials; run `aws configure`, or set AWS_PROFILE.")
        with ExitStack() as stack:
            ec2, iam = (
                stack.enter_context(closing(session.client(name, config=config)))
                for name in ("ec2", "iam")
            )
            yield from _security_groups(cluster, ec2)
            yield from _instances(cluster, ec2)
            yield from _profiles(cluster, iam)
    # The last two: what answers is a proxy, and no AWS; the region has a name like no other.
    except (BotoCoreError, ClientError, ResponseParserError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise _CannotAskError(f"{reason}; look at network, region and rights.") from error


def _security_groups(cluster: ClusterFile, ec2: Any) -> Iterator[Trouble]:
    named = {group: node for node in cluster.nodes for group in node.security_groups}
    found = _look_up(ec2, "SecurityGroupIds", named)
    for group, node in named.items():
        if group in found:
            for fault in _open_to_others(found[group], named):
                yield f"{node.where}.node_config", f"{group} lets in {fault}"
        elif not PLACEHOLDER.search(group):
            yield _missing(cluster, node, "SecurityGroupIds", group)
    if named.keys() <= found.keys():
        rules = {group: found[group]["IpPermissions"] for group in found}
        yield from _closed_to_each_other(cluster, rules)
        if not cluster.settings["provider"].get("use_internal_ips"):
            yield from _closed_to_ssh(cluster.head, rules)


def _open_to_others(found: Any, own: Container[str]) -> Iterator[str]:
    """What Ray listens on is for the nodes alone, and ssh for few."""
    for rule in found["IpPermissions"]:
        cidrs = _cidrs(rule)
        others = {*cidrs, *_prefix_lists(rule), *_groups(rule)}
        for source in sorted(other for other in others if other not in own):
            if (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")) != ("tcp", SSH, SSH):
                yield (
                    f"{source} at {_ports(rule)}; let in the cluster's own groups, and port {SSH} "
                    "from where you are, and nothing else."
                )
            elif source in cidrs and int(source.rpartition("/")[2]) <= WORLD:
                yield (
                    f"{source}, which is everyone, at {_ports(rule)}; "
                    "allow the addresses that you connect from."
                )


def _closed_to_each_other(cluster: ClusterFile, rules: dict[str, Any]) -> Iterator[Trouble]:
    """Ray's nodes connect to one another at ports of their choice."""
    of_nodes = dict.fromkeys(tuple(node.security_groups) for node in cluster.nodes)
    for groups, others in product(of_nodes, repeat=2):
        if (
            groups
            and others
            and not any(
                _covers(rule, 1, LAST_PORT) and _groups(rule) & set(others)
                for group in groups
                for rule in rules[group]
            )
        ):
            to, by = " and ".join(groups), " and ".join(others)
            yield (
                "available_node_types",
                f"{to} does not let in all traffic from {'itself' if to == by else by}, so nodes "
                "cannot reach each other; add that rule.",
            )


def _closed_to_ssh(head: NodeConfig, rules: dict[str, Any]) -> Iterator[Trouble]:
    groups = head.security_groups
    if groups and not any(
        _covers(rule, SSH, SSH)
        and (_cidrs(rule) or _prefix_lists(rule) or _groups(rule) - set(groups))
        for group in groups
        for rule in rules[group]
    ):
        yield (
            f"{head.where}.node_config",
            f"{' and '.join(groups)} lets in no one at port {SSH}, which `ray up` needs; "
            "allow it from your address.",
        )


def _instances(cluster: ClusterFile, ec2: Any) -> Iterator[Trouble]:
    images, types = (
        _look_up(ec2, key, (node.config.get(key, "") for node in cluster.nodes))
        for key in ("ImageId", "InstanceType")
    )
    for node in cluster.nodes:
        for key, found in (("ImageId", images), ("InstanceType", types)):
            name = node.config.get(key, "")
            if name and name not in found and not PLACEHOLDER.search(name):
                yield _missing(cluster, node, key, name)
        image = images.get(node.config.get("ImageId", ""))
        if image:
            yield from _unfit(node, image, types.get(node.config.get("InstanceType", "")))


def _unfit(node: NodeConfig, image: Any, instance_type: Any) -> Iterator[Trouble]:
    where = f"{node.where}.node_config.ImageId"
    if image["State"] != "available":
        yield where, f"{image['ImageId']} is {image['State']}; name an image that is available."
    if instance_type is None:
        return
    architectures = instance_type["ProcessorInfo"]["SupportedArchitectures"]
    if image["Architecture"] not in architectures:
        yield (
            where,
            f"{image['ImageId']} is for {image['Architecture']}, {instance_type['InstanceType']} "
            f"is {' or '.join(architectures)}; name an image and a type that go together.",
        )


def _profiles(cluster: ClusterFile, iam: Any) -> Iterator[Trouble]:
    for node in cluster.nodes:
        for value in node.config.get("IamInstanceProfile", {}).values():
            name = value.rpartition("/")[2]  # of an ARN, too
            where = f"{node.where}.node_config.IamInstanceProfile"
            if PLACEHOLDER.search(name):
                continue
            try:
                profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
            except iam.exceptions.NoSuchEntityException:
                yield where, f"there is no instance profile {name}; make it, or name another."
            else:
                if not profile["Roles"]:
                    yield where, f"the instance profile {name} holds no role; add one to it."


def _look_up(ec2: Any, key: str, names: Iterable[str]) -> dict[str, Any]:
    operation, filter_name, answer, options = LOOKUPS[key]
    values = sorted({name for name in names if name and not PLACEHOLDER.search(name)})
    if not values:
        return {}
    filters = [{"Name": filter_name, "Values": values}]
    found = getattr(ec2, operation)(Filters=filters, **options)
    items, _, identity = answer.partition(".")
    return {item[identity]: item for item in found[items]}


def _missing(cluster: ClusterFile, node: NodeConfig, key: str, name: str) -> Trouble:
    region = cluster.settings["provider"]["region"]
    return (
        f"{node.where}.node_config.{key}",
        f"{name} is not to be had in {region}; correct it, or the region.",
    )


def _cidrs(rule: Any) -> set[str]:
    return {
        *(block["CidrIp"] for block in rule.get("IpRanges", [])),
        *(block["CidrIpv6"] for block in rule.get("Ipv6Ranges", [])),
    }


def _prefix_lists(rule: Any) -> set[str]:
    return {entry["PrefixListId"] for entry in rule.get("PrefixListIds", [])}


def _groups(rule: Any) -> set[str]:
    return {pair["GroupId"] for pair in rule.get("UserIdGroupPairs", []) if "GroupId" in pair}


def _covers(rule: Any, first: int, last: int) -> bool:
    if rule["IpProtocol"] == "-1":
        return True
    return bool(
        rule["IpProtocol"] == "tcp" and rule["FromPort"] <= first and last <= rule["ToPort"]
    )


def _ports(rule: Any) -> str:
    if rule["IpProtocol"] == "-1":
        return "every port"
    first, last, protocol = rule.get("FromPort"), rule.get("ToPort"), rule["IpProtocol"]
    if protocol not in ("tcp", "udp"):
        return f"protocol {protocol}"
    return f"{protocol} port {first}" if first == last else f"{protocol} ports {first}-{last}"
