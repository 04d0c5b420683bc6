"""Watches the cluster while a sweep runs: `ClusterMonitor`."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from ray import tune

from tune_jobs.engine.cluster.capacity import Capacity
from tune_jobs.engine.cluster.slots import Node, Resources, count_slots
from tune_jobs.engine.core.transient import Transient

__all__ = ["ClusterMonitor"]

PERIOD_S = 5.0


class ClusterMonitor(Transient, tune.Callback):
    """Tells what the sweep waits for, and when nodes join or leave; knows how many slots there are.

    The slots of a node that joins after the sweep was planned are used from then on.

    Args:
        resources: The plan.
        most: The largest number of trials in parallel; None: as many as there are slots.
        read: Reads the cluster.
        notify: Called with each line to tell.

    Attributes:
        slots: How many trials may run in parallel now.
    """

    def __init__(
        self,
        resources: Resources,
        most: int | None,
        read: Callable[[], Capacity],
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._resources, self._most, self._read, self._notify = resources, most, read, notify
        self._capacity = read()
        self._total = self._count(self._capacity.nodes)
        self._next_look = 0.0
        self.slots = resources.slots

    def describe_wait(self, num_trials: int) -> str | None:
        """What trials wait for before as many run as can; None: for nothing.

        Args:
            num_trials: Trials that are still to run.
        """
        alive = self._capacity.alive.values()
        types = self._startable_types()
        if not types or count_slots(alive, self._resources) >= min(num_trials, self.slots):
            return None
        return f"{self._amount()}; the autoscaler is starting {' or '.join(types)}"

    def tell_wait(self, num_trials: int) -> None:
        """Tell what that many trials wait for, if for anything."""
        if waits_for := self.describe_wait(num_trials):
            self._notify(waits_for)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + PERIOD_S
        before, self._capacity = self._capacity, self._read()
        self._total = max(self._total, self._count(self._capacity.nodes))
        slots = max(self._resources.slots, count_slots(self._capacity.nodes, self._resources))
        self.slots = min(slots, self._most or slots)
        num_unfinished = sum(not trial.is_finished() for trial in trials)
        for node in before.alive.keys() - self._capacity.alive.keys():
            self._notify(f"Node {before.names[node]} has left: {self._now(num_unfinished)}")
        for node in self._capacity.alive.keys() - before.alive.keys():
            self._notify(
                f"Node {self._capacity.names[node]} has joined: {self._now(num_unfinished)}"
            )

    def _now(self, num_trials: int) -> str:
        return self.describe_wait(num_trials) or self._amount()

    def _amount(self) -> str:
        alive = self._count(self._capacity.alive.values())
        return f"{alive:g} of {self._total:g} {self._unit}s"

    def _startable_types(self) -> list[str]:
        fitting = (
            t for t, node in self._capacity.startable if count_slots([node], self._resources)
        )
        return list(dict.fromkeys(fitting))

    @property
    def _unit(self) -> str:
        return "GPU" if self._resources.gpus else "CPU"

    def _count(self, nodes: Iterable[Node]) -> float:
        return sum(n.get(self._unit, 0) for n in nodes if count_slots([n], self._resources))
