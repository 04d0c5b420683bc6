"""What a trial holds, and how many trials run in parallel: `plan_resources`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.settings import Settings

__all__ = ["DEFAULT_GPU_SHARE", "Node", "Resources", "count_slots", "plan_resources"]

DEFAULT_GPU_SHARE = 0.25

Node = Mapping[str, float]  # resource -> amount, as Ray names them: CPU, GPU


@dataclass(frozen=True)
class Resources:
    """What every trial holds, and how many trials run in parallel.

    Attributes:
        cpus: CPUs of one trial.
        gpus: Its share of one GPU, 0 to 1.
        slots: Trials in parallel.
    """

    cpus: float
    gpus: float
    slots: int

    @property
    def per_trial(self) -> dict[str, float]:
        """The request as Ray writes it."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} of a GPU" if self.gpus else ""
        return f"{self.slots} at a time, each on {self.cpus:g} CPU{gpus}"

    @property
    def num_threads(self) -> int:
        return max(1, math.floor(self.cpus))


def plan_resources(settings: Settings, nodes: Iterable[Node]) -> Resources:
    """Decide what a trial holds on these nodes.

    Args:
        settings: Uses `cpus_per_trial`, `gpus_per_trial` and `max_concurrent`.
        nodes: The CPUs and GPUs of each node that is alive or could be started.

    Raises:
        SettingsError: No node could ever hold a trial.
    """
    nodes = list(nodes)
    share = settings.gpus_per_trial
    if share == "auto":
        share = DEFAULT_GPU_SHARE if any(node.get("GPU", 0) for node in nodes) else 0.0
    cpus = settings.cpus_per_trial
    resources = Resources(cpus, share, slots=0)
    slots = count_slots(nodes, resources)
    if not slots:
        most = {name: max((n.get(name, 0) for n in nodes), default=0) for name in ("CPU", "GPU")}
        options = ["--cpus-per-trial"] if cpus > most["CPU"] else []
        options += ["--gpus-per-trial"] if share > most["GPU"] else []
        raise SettingsError(
            f"a trial needs {cpus:g} CPU and {share:g} GPU, but no node has both: the most that "
            f"one has is {most['CPU']:g} CPU and {most['GPU']:g} GPU; "
            f"lower {' and '.join(options or ['--cpus-per-trial'])}."
        )
    return replace(resources, slots=min(slots, settings.max_concurrent or slots))


def count_slots(nodes: Iterable[Node], resources: Resources) -> int:
    """How many such trials the nodes can hold.

    A trial's share is on one GPU, so a GPU holds floor(1 / share) trials, whatever is left over.
    """
    return sum(_trials_per_node(node, resources.cpus, resources.gpus) for node in nodes)


def _trials_per_node(node: Node, cpus: float, share: float) -> int:
    # 1e-9: three shares of 1/3 written as 0.333... must not lose a slot to rounding
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    if not share:
        return by_cpu
    return min(by_cpu, int(node.get("GPU", 0)) * math.floor(1 / share + 1e-9))
