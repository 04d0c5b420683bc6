"""Sweeps that are killed at random moments; `python tests/torture.py --seeds 10` tries more."""

import pytest
from torture import torture

pytestmark = pytest.mark.slow


@pytest.mark.timeout(280)
@pytest.mark.parametrize("mode", ["driver", "both"])
def test_sweep_is_complete_and_consistent_however_often_it_is_killed(mode: str) -> None:
    assert torture(0, mode) == []
