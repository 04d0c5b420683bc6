"""Checks of the structure: placeholders, unknown keys, and values that Ray or EC2 rejects.

`checks.examine` runs them first: the other checks rely on a valid structure.
"""

import difflib
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import jsonschema

from tune_jobs.doctor.cluster_file import AUTOSCALER, PLACEHOLDER, ClusterFile, Problem

__all__ = [
    "placeholders",
    "schema",
    "unknown_ec2_parameters",
    "unknown_keys",
    "unknown_provider_keys",
]

# The rules of the schema in words.
RULES = {"type": "of type {}", "minimum": "at least {}", "enum": "one of {}"}

# Keys of `provider` that Ray reads but its schema lacks, and that look like typos of other keys.
PROVIDER_KEYS = {
    "aws_credentials",
    "coordinator_address",
    "external_head_ip",
    "key_pair",
    "use_external_head_ip",
}

# Keys of a node config that Ray reads and rewrites before it calls EC2.
NOT_FOR_EC2 = {"SubnetIds", "LaunchTemplate"}


def placeholders(cluster: ClusterFile) -> Iterator[Problem]:
    """The user has replaced all placeholders."""
    places: dict[str, list[str]] = {}
    for where, text in _texts(cluster.written):
        for found in PLACEHOLDER.findall(text):
            places.setdefault(found, []).append(where)
    for found, paths in places.items():
        yield (
            ", ".join(dict.fromkeys(paths)),
            f"{found} is a placeholder; replace it with your own.",
        )


def schema(cluster: ClusterFile) -> Iterator[Problem]:
    """No value is missing or of the wrong type: `ray up` rejects such a file."""
    errors = [e for e in _schema_errors(cluster) if e.validator != "additionalProperties"]
    for error in errors:
        if error.validator == "required":
            key = error.message.partition("' is")[0].strip("'")
            yield (
                _path(*error.absolute_path, key),
                f"{key} is missing, and `ray up` needs it; add it.",
            )
        else:
            rule = RULES.get(error.validator, f"{error.validator} {{}}")
            got = textwrap.shorten(json.dumps(error.instance), 60)
            yield (
                _path(*error.absolute_path),
                f"this must be {rule.format(error.validator_value)}, got {got}; "
                "correct it, or `ray up` rejects the file.",
            )
    if errors:
        return
    types, head = (cluster.settings.get(key) for key in ("available_node_types", "head_node_type"))
    if types and head not in types:
        yield (
            "head_node_type",
            f"{head} is not one of the node types ({', '.join(types)}); name one of them.",
        )
    for where, error in _ec2_errors(cluster):
        if not error.startswith("Unknown parameter"):
            error = re.sub(r"<class '(.*?)'>", r"\1", error)
            yield where, f"EC2 rejects this: {error}."


def unknown_keys(cluster: ClusterFile) -> Iterator[Problem]:
    """Ray's schema knows all keys of the file, outside of `provider` and `node_config`."""
    for error in _schema_errors(cluster):
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for key in sorted(set(error.instance) - set(known)):
                yield _unknown(_path(*error.absolute_path, key), key, known)


def unknown_provider_keys(cluster: ClusterFile) -> Iterator[Problem]:
    """No key of `provider` is a typo: the schema accepts any key, and Ray ignores unknown ones."""
    known = {*_schema(cluster)["properties"]["provider"]["properties"], *PROVIDER_KEYS}
    for key in sorted(cluster.settings["provider"].keys() - known):
        if difflib.get_close_matches(key, known, cutoff=0.8):
            yield _unknown(f"provider.{key}", key, known)


def unknown_ec2_parameters(cluster: ClusterFile) -> Iterator[Problem]:
    """EC2 knows all keys of each `node_config`."""
    for where, line in _ec2_errors(cluster):
        if match := re.fullmatch(r'Unknown parameter in (.*): "(.*)", must be one of: (.*)', line):
            inside, key, known = match.groups()
            path = [] if inside == "input" else [inside]
            yield _unknown(_path(where, *path, key), key, known.split(", "))


def _schema_errors(cluster: ClusterFile) -> Iterator[Any]:
    return iter(jsonschema.Draft7Validator(_schema(cluster)).iter_errors(cluster.settings))


def _schema(cluster: ClusterFile) -> dict[str, Any]:
    """Ray's schema of cluster files, with further rules that Ray's code enforces."""
    schema: dict[str, Any] = json.loads(AUTOSCALER.joinpath("ray-schema.json").read_text())
    keys = schema["properties"]
    keys["file_mounts"]["additionalProperties"] = {"type": "string"}
    keys["cluster_synced_files"]["items"] = {"type": "string"}
    provider = keys["provider"]
    provider["properties"]["type"]["enum"] = [
        *sorted(f.name for f in AUTOSCALER.iterdir() if f.joinpath("defaults.yaml").is_file()),
        "external",
    ]
    if cluster.provider == "aws":
        provider["required"].append("region")
        node_type = keys["available_node_types"]["patternProperties"][".*"]
        node_type["required"] = ["node_config"]  # Ray asks AWS for the resources
    elif cluster.provider == "local":
        for key in ("available_node_types", "head_node_type"):  # Ray creates its own
            del keys[key]
        keys["min_workers"] = {"type": "integer"}
        if "coordinator_address" not in cluster.written["provider"]:
            provider["required"] += ["head_ip", "worker_ips"]
    return schema


def _ec2_errors(cluster: ClusterFile) -> Iterator[tuple[str, str]]:
    """The errors that boto3 finds in the parameters of RunInstances, each with its node config."""
    if cluster.provider != "aws":
        return
    try:
        from botocore.validate import ParamValidator
    except ImportError:
        return  # `checks.machine` reports that boto3 is missing
    for node in cluster.nodes:
        asked = {key: value for key, value in node.config.items() if key not in NOT_FOR_EC2}
        asked |= {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, _ec2_parameters())
        for line in report.generate_report().splitlines():
            yield f"{node.where}.node_config", line


@cache
def _ec2_parameters() -> Any:
    import botocore.session

    ec2 = botocore.session.get_session().get_service_model("ec2")
    return ec2.operation_model("RunInstances").input_shape


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All strings, keys included, each with its dotted path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, _path(path, i))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield _path(path, key), key
            yield from _texts(item, _path(path, key))


def _path(*parts: object) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _unknown(where: str, key: str, known: Iterable[str]) -> Problem:
    near = difflib.get_close_matches(key, known, n=1)
    fix = f"did you mean {near[0]}?" if near else "remove it."
    return where, f"{key} is not known here; {fix}"
