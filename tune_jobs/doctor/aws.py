"""Checks for AWS: what the file leaves to bad defaults and, with `--aws`, what it names."""

import json
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import product
from typing import Any

from tune_jobs.doctor import INSTALL_CLUSTER
from tune_jobs.doctor.cluster_file import PLACEHOLDER, ClusterFile, NodeConfig, Problem

__all__ = ["account", "image", "instance_type", "no_mount", "no_profile", "security_group"]

# Text that mounts a folder. The last two may do so: the doctor does not read what they contain.
MOUNT = re.compile(r"mount|fstab|\befs|\bnfs|\bfsx|LaunchTemplate|UserData")
EVERYONE = 8  # a network with a prefix of at most this many bits counts as everyone
SSH = 22
LAST_PORT = 65535

# For a key of a node config: the EC2 operation that looks up its value, the filter to use, and the
# path in the response. A filter omits what does not exist; looking up by id would raise.
LOOKUPS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "SecurityGroupIds": ("describe_security_groups", "group-id", "SecurityGroups.GroupId", {}),
    "InstanceType": ("describe_instance_types", "instance-type", "InstanceTypes.InstanceType", {}),
    # EC2 still starts deprecated images.
    "ImageId": ("describe_images", "image-id", "Images.ImageId", {"IncludeDeprecated": True}),
}


def security_group(cluster: ClusterFile) -> Iterator[Problem]:
    """Every node names a security group: Ray's default one opens SSH to everyone."""
    for node in _nodes_without("SecurityGroupIds", cluster):
        if not node.security_groups:
            yield (
                f"{node.where}.node_config",
                f"{node.name} has no SecurityGroupIds, so Ray creates a group that opens SSH to "
                "0.0.0.0/0, and provider.security_group can only add rules to it; name your own "
                "group.",
            )


def image(cluster: ClusterFile) -> Iterator[Problem]:
    """Every node names an image: Ray's default is old."""
    for node in _nodes_without("ImageId", cluster):
        yield (
            f"{node.where}.node_config",
            f"{node.name} has no ImageId, so Ray uses an Ubuntu 18.04 image; name a newer one.",
        )


def instance_type(cluster: ClusterFile) -> Iterator[Problem]:
    """Every node names an instance type: EC2's default is old."""
    for node in _nodes_without("InstanceType", cluster):
        yield (
            f"{node.where}.node_config",
            f"{node.name} has no InstanceType, so EC2 starts one of its oldest types; name one.",
        )


def no_profile(cluster: ClusterFile, storage: str) -> Iterator[Problem]:
    """Workers name an instance profile: without one they cannot write to a bucket."""
    for node in _nodes_without("IamInstanceProfile", cluster):
        if node is not cluster.head:  # Ray creates one for the head only
            yield (
                f"{node.where}.node_config",
                f"{node.name} has no IamInstanceProfile, so it cannot write to {storage}; "
                "name one that can.",
            )


def no_mount(cluster: ClusterFile, storage: str) -> Iterator[Problem]:
    """Something mounts the storage if it is a folder."""
    head = cluster.head
    texts = [command.text.replace(storage, "") for command in head.commands]
    if cluster.provider == "aws" and not MOUNT.search(" ".join([*texts, json.dumps(head.config)])):
        yield (
            "setup_commands",
            f"nothing mounts the storage {storage}, so each node writes to its own disk; "
            "mount it on all nodes, or use a bucket (s3://...).",
        )


def _nodes_without(key: str, cluster: ClusterFile) -> list[NodeConfig]:
    """The nodes on AWS that do not set this key. A launch template may set it, so those pass."""
    if cluster.provider != "aws":
        return []
    return [
        node
        for node in cluster.nodes
        if not node.config.get(key) and "LaunchTemplate" not in node.config
    ]


# With `--aws`: what the account has


def account(cluster: ClusterFile) -> Iterator[Problem]:
    """What the file names exists in AWS and is suitable. Reads only; changes nothing."""
    try:
        yield from _account(cluster)
    except _CannotAskError as error:
        yield "provider", f"AWS was not checked: {error}"


class _CannotAskError(Exception):
    """AWS cannot be queried. The message says why, and how to fix it."""


def _account(cluster: ClusterFile) -> Iterator[Problem]:
    if cluster.provider != "aws":
        raise _CannotAskError(f"the provider is {cluster.provider}; leave out --aws.")
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
    except ImportError as error:
        raise _CannotAskError(f"boto3 is not installed; run `{INSTALL_CLUSTER}`.") from error
    # Without a network, boto3's defaults would retry for minutes.
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2})
    try:
        session = boto3.Session(region_name=cluster.settings["provider"]["region"])
        if session.get_credentials() is None:
            raise _CannotAskError(
                "there are no credentials; run `aws configure`, or set AWS_PROFILE."
            )
        with ExitStack() as stack:
            ec2, iam = (
                stack.enter_context(closing(session.client(name, config=config)))
                for name in ("ec2", "iam")
            )
            yield from _security_groups(cluster, ec2)
            yield from _instances(cluster, ec2)
            yield from _profiles(cluster, iam)
    # ResponseParserError: a proxy answered, not AWS. ValueError: the region's name is malformed.
    except (BotoCoreError, ClientError, ResponseParserError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise _CannotAskError(
            f"{reason}; check the network, the region and your permissions."
        ) from error


def _security_groups(cluster: ClusterFile, ec2: Any) -> Iterator[Problem]:
    named = {group: node for node in cluster.nodes for group in node.security_groups}
    found = _look_up(ec2, "SecurityGroupIds", named)
    for group, node in named.items():
        if group in found:
            for excess in _open_to_others(found[group], named):
                yield f"{node.where}.node_config", f"{group} allows {excess}"
        elif not PLACEHOLDER.search(group):
            yield _missing(cluster, node, "SecurityGroupIds", group)
    if named.keys() <= found.keys():
        rules = {group: found[group]["IpPermissions"] for group in found}
        yield from _closed_to_each_other(cluster, rules)
        if not cluster.settings["provider"].get("use_internal_ips"):
            yield from _closed_to_ssh(cluster.head, rules)


def _open_to_others(found: Any, own: Container[str]) -> Iterator[str]:
    """What the group allows beyond need: Ray's ports are for the nodes, SSH for few addresses."""
    for rule in found["IpPermissions"]:
        cidrs = _cidrs(rule)
        others = {*cidrs, *_prefix_lists(rule), *_groups(rule)}
        for source in sorted(other for other in others if other not in own):
            if (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")) != ("tcp", SSH, SSH):
                yield (
                    f"{source} on {_ports(rule)}; allow only the cluster's own groups, and port "
                    f"{SSH} from your addresses."
                )
            elif source in cidrs and int(source.rpartition("/")[2]) <= EVERYONE:
                yield (
                    f"{source}, which is everyone, on {_ports(rule)}; allow only your addresses."
                )


def _closed_to_each_other(cluster: ClusterFile, rules: dict[str, Any]) -> Iterator[Problem]:
    """The nodes allow all traffic from each other: Ray uses arbitrary ports."""
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
                f"{to} does not allow all traffic from {'itself' if to == by else by}, so nodes "
                "cannot reach each other; add that rule.",
            )


def _closed_to_ssh(head: NodeConfig, rules: dict[str, Any]) -> Iterator[Problem]:
    """The head allows SSH from outside: `ray up` needs it."""
    groups = head.security_groups
    if groups and not any(
        _covers(rule, SSH, SSH)
        and (_cidrs(rule) or _prefix_lists(rule) or _groups(rule) - set(groups))
        for group in groups
        for rule in rules[group]
    ):
        yield (
            f"{head.where}.node_config",
            f"{' and '.join(groups)} allows nobody on port {SSH}, which `ray up` needs; "
            "allow your address.",
        )


def _instances(cluster: ClusterFile, ec2: Any) -> Iterator[Problem]:
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
            yield from _unsuitable(node, image, types.get(node.config.get("InstanceType", "")))


def _unsuitable(node: NodeConfig, image: Any, instance_type: Any) -> Iterator[Problem]:
    """The image is available and fits the instance type."""
    where = f"{node.where}.node_config.ImageId"
    if image["State"] != "available":
        yield where, f"{image['ImageId']} is {image['State']}; name an image that is available."
    if instance_type is None:
        return
    architectures = instance_type["ProcessorInfo"]["SupportedArchitectures"]
    if image["Architecture"] not in architectures:
        yield (
            where,
            f"{image['ImageId']} is for {image['Architecture']}, but "
            f"{instance_type['InstanceType']} is {' or '.join(architectures)}; name an image and "
            "a type that match.",
        )


def _profiles(cluster: ClusterFile, iam: Any) -> Iterator[Problem]:
    for node in cluster.nodes:
        for value in node.config.get("IamInstanceProfile", {}).values():
            name = value.rpartition("/")[2]  # the value may be an ARN
            where = f"{node.where}.node_config.IamInstanceProfile"
            if PLACEHOLDER.search(name):
                continue
            try:
                profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
            except iam.exceptions.NoSuchEntityException:
                yield where, f"there is no instance profile {name}; create it or name another."
            else:
                if not profile["Roles"]:
                    yield where, f"the instance profile {name} has no role; add one to it."


def _look_up(ec2: Any, key: str, names: Iterable[str]) -> dict[str, Any]:
    """EC2's descriptions of what exists, by id or name. Skips placeholders."""
    operation, filter_name, answer, options = LOOKUPS[key]
    values = sorted({name for name in names if name and not PLACEHOLDER.search(name)})
    if not values:
        return {}
    filters = [{"Name": filter_name, "Values": values}]
    found = getattr(ec2, operation)(Filters=filters, **options)
    items, _, identity = answer.partition(".")
    return {item[identity]: item for item in found[items]}


def _missing(cluster: ClusterFile, node: NodeConfig, key: str, name: str) -> Problem:
    region = cluster.settings["provider"]["region"]
    return (
        f"{node.where}.node_config.{key}",
        f"{name} is not available in {region}; correct it or the region.",
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
    """Whether the rule allows all of these TCP ports."""
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
