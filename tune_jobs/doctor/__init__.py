"""`tune-jobs doctor`: find problems in a cluster file before `ray up` costs money.

- `checks`: `examine` runs every check. Start reading here, also to add a check.
- `cluster_file`: reads the file. Every check receives the resulting `ClusterFile`.
- `schema`, `versions`, `aws`: the checks of one subject each.

The doctor imports neither the engine nor Ray. Its packages come with the extra `cluster`.
"""

__all__ = ["INSTALL_CLUSTER"]

INSTALL_CLUSTER = 'pip install "tune-jobs[cluster]"'
