"""The plan: what a trial takes, and how many run side by side."""

import pytest

from tune_jobs.engine.cluster.slots import (
    DEFAULT_GPU_SHARE,
    Resources,
    count_slots,
    plan_resources,
)
from tune_jobs.engine.core.settings import Settings, SettingsError

TWO_GPUS = {"CPU": 16.0, "GPU": 2.0}


def test_quarter_shares_of_two_gpus_give_eight_slots() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.25), [TWO_GPUS]).slots == 8


def test_share_of_two_fifths_leaves_a_rest_on_each_gpu() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.4), [TWO_GPUS]).slots == 4


@pytest.mark.parametrize(
    ("share", "slots"),
    [(1 / 3, 3), (0.333333333, 3), (0.3333333334, 3), (0.34, 2), (0.1, 10), (1, 1), (0.51, 1)],
)
def test_gpu_holds_as_many_shares_as_fit_whatever_the_rounding(share: float, slots: int) -> None:
    assert count_slots([{"CPU": 100, "GPU": 1}], Resources(1, share, 0)) == slots


@pytest.mark.parametrize(
    ("total", "cpus", "slots"), [(1, 1 / 3, 3), (0.3, 0.1, 3), (4, 1.5, 2), (4, 5, 0)]
)
def test_node_without_gpu_need_holds_what_its_cpus_allow(
    total: float, cpus: float, slots: int
) -> None:
    assert count_slots([{"CPU": total}], Resources(cpus, 0, 0)) == slots


def test_cpus_limit_the_slots_where_they_are_fewer_than_the_shares() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.25), [{"CPU": 3, "GPU": 2}]).slots == 3
    assert plan_resources(Settings(gpus_per_trial=0.25, cpus_per_trial=4), [TWO_GPUS]).slots == 4


def test_slots_of_nodes_are_counted_node_by_node() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert plan_resources(Settings(cpus_per_trial=2), nodes).slots == 2


def test_nodes_without_gpus_hold_no_trial_that_needs_one() -> None:
    assert plan_resources(Settings(gpus_per_trial=0.5), [{"CPU": 64}, TWO_GPUS]).slots == 4


def test_auto_takes_the_default_share_where_a_node_has_a_gpu() -> None:
    resources = plan_resources(Settings(), [{"CPU": 4}, TWO_GPUS])
    assert resources.gpus == DEFAULT_GPU_SHARE == 0.25
    assert resources.per_trial == {"CPU": 1.0, "GPU": 0.25}
    assert resources.slots == 8


@pytest.mark.parametrize("node", [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 0.0}])
def test_auto_takes_no_gpu_where_there_is_none(node: dict[str, float]) -> None:
    resources = plan_resources(Settings(), [node])
    assert resources.gpus == 0
    assert resources.per_trial == {"CPU": 1.0}
    assert resources.slots == 4


def test_zero_share_uses_no_gpu_even_where_there_is_one() -> None:
    resources = plan_resources(Settings(gpus_per_trial=0), [TWO_GPUS])
    assert resources.per_trial == {"CPU": 1.0}
    assert resources.slots == 16


@pytest.mark.parametrize(("most", "slots"), [(1, 1), (3, 3), (16, 16), (99, 16), (None, 16)])
def test_max_concurrent_only_lowers_the_slots(most: int | None, slots: int) -> None:
    assert plan_resources(Settings(max_concurrent=most), [{"CPU": 16}]).slots == slots


def test_trial_larger_than_every_node_is_refused_with_the_numbers() -> None:
    settings = Settings(cpus_per_trial=8)
    with pytest.raises(SettingsError) as info:
        plan_resources(settings, [{"CPU": 4}, {"CPU": 6}])
    assert "needs 8 CPU and 0 GPU" in str(info.value)
    assert "6 CPU and 0 GPU" in str(info.value)
    assert str(info.value).endswith("lower --cpus-per-trial.")


def test_gpu_share_without_any_gpu_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"0\.5 GPU, .* lower --gpus-per-trial\."):
        plan_resources(Settings(gpus_per_trial=0.5), [{"CPU": 4}])


def test_no_node_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="0 CPU and 0 GPU; lower --cpus-per-trial"):
        plan_resources(Settings(), iter([]))


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1.0, 1), (2.9, 2), (4.0, 4)])
def test_trial_computes_with_at_least_one_thread(cpus: float, threads: int) -> None:
    assert plan_resources(Settings(cpus_per_trial=cpus), [{"CPU": 8}]).num_threads == threads
