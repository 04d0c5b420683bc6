"""The plan: what a trial holds, and how many trials run in parallel."""

import pytest

from tune_jobs.engine.cluster.slots import (
    DEFAULT_GPU_SHARE,
    Resources,
    count_slots,
    plan_resources,
)
from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.settings import Settings

TWO_GPUS = {"CPU": 16.0, "GPU": 2.0}


def test_slots_quarter_shares() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.25), [TWO_GPUS]).slots == 8


def test_slots_share_with_remainder() -> None:
    """A trial is on one GPU: what is left of two GPUs holds no trial."""
    assert plan_resources(Settings(gpus_per_trial=0.4), [TWO_GPUS]).slots == 4


@pytest.mark.parametrize(
    ("share", "slots"),
    [(1 / 3, 3), (0.333333333, 3), (0.3333333334, 3), (0.34, 2), (0.1, 10), (1, 1), (0.51, 1)],
)
def test_slots_rounded_shares(share: float, slots: int) -> None:
    """A GPU holds as many shares as fit, however they are rounded."""
    assert count_slots([{"CPU": 100, "GPU": 1}], Resources(1, share, 0)) == slots


@pytest.mark.parametrize(
    ("total", "cpus", "slots"), [(1, 1 / 3, 3), (0.3, 0.1, 3), (4, 1.5, 2), (4, 5, 0)]
)
def test_slots_without_gpus(total: float, cpus: float, slots: int) -> None:
    assert count_slots([{"CPU": total}], Resources(cpus, 0, 0)) == slots


def test_slots_limited_by_cpus() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.25), [{"CPU": 3, "GPU": 2}]).slots == 3
    assert plan_resources(Settings(gpus_per_trial=0.25, cpus_per_trial=4), [TWO_GPUS]).slots == 4


def test_slots_counted_per_node() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert plan_resources(Settings(cpus_per_trial=2), nodes).slots == 2


def test_slots_skip_nodes_without_gpu() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.5), [{"CPU": 64}, TWO_GPUS]).slots == 4


def test_auto_share_with_gpu() -> None:
    resources = plan_resources(Settings(), [{"CPU": 4}, TWO_GPUS])
    assert resources.gpus == DEFAULT_GPU_SHARE == 0.25
    assert resources.per_trial == {"CPU": 1.0, "GPU": 0.25}
    assert resources.slots == 8


@pytest.mark.parametrize("node", [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 0.0}])
def test_auto_share_without_gpu(node: dict[str, float]) -> None:
    resources = plan_resources(Settings(), [node])
    assert resources.gpus == 0
    assert resources.per_trial == {"CPU": 1.0}
    assert resources.slots == 4


def test_zero_share_ignores_gpus() -> None:
    resources = plan_resources(Settings(gpus_per_trial=0), [TWO_GPUS])
    assert resources.per_trial == {"CPU": 1.0}
    assert resources.slots == 16


@pytest.mark.parametrize(("most", "slots"), [(1, 1), (3, 3), (16, 16), (99, 16), (None, 16)])
def test_max_concurrent_limits_slots(most: int | None, slots: int) -> None:
    assert plan_resources(Settings(max_concurrent=most), [{"CPU": 16}]).slots == slots


def test_trial_larger_than_nodes_refused() -> None:
    """The message has what a trial needs, the most that a node has, and the option to lower."""
    settings = Settings(cpus_per_trial=8)
    with pytest.raises(SettingsError) as info:
        plan_resources(settings, [{"CPU": 4}, {"CPU": 6}])
    assert "needs 8 CPU and 0 GPU" in str(info.value)
    assert "6 CPU and 0 GPU" in str(info.value)
    assert str(info.value).endswith("lower --cpus-per-trial.")


def test_share_without_gpu_refused() -> None:
    with pytest.raises(SettingsError, match=r"0\.5 GPU, .* lower --gpus-per-trial\."):
        plan_resources(Settings(gpus_per_trial=0.5), [{"CPU": 4}])


def test_plan_without_nodes_refused() -> None:
    with pytest.raises(SettingsError, match="0 CPU and 0 GPU; lower --cpus-per-trial"):
        plan_resources(Settings(), iter([]))


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1.0, 1), (2.9, 2), (4.0, 4)])
def test_trial_has_a_thread(cpus: float, threads: int) -> None:
    """A trial computes with at least one thread."""
    assert plan_resources(Settings(cpus_per_trial=cpus), [{"CPU": 8}]).num_threads == threads
