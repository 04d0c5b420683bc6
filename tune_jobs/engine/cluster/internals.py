"""The private names of Ray that the cluster room needs.

Each has a canary in `tests/test_internals.py`, which fails on an upgrade before a sweep does.
"""

from typing import Any

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address

__all__ = ["HEAD_RESOURCE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "autoscaler_config", "would_join"]

HEAD_RESOURCE = "node:__internal_head__"  # a resource that Ray gives the head alone


def would_join(address: str | None) -> bool:
    """Whether `ray.init(address)` joins a running cluster; else it starts one.

    Not `address="auto"`, which joins any raylet in the process list: another sweep's, another
    user's.
    """
    return canonicalize_bootstrap_address(address) is not None


def autoscaler_config() -> Any:
    """What autoscaler v2 may start, with `node_group_configs`, or None if that was not set."""
    return ray._private.state.state.get_cluster_config()
