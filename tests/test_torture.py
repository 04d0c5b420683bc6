"""A sweep that is killed at random moments.

`python tests/torture.py --seeds 10 --mode driver` tries more; `torture.log` is what it said.
"""

import pytest
from torture import KINDS, torture


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("asha", KINDS)
def test_sweep_is_complete_and_consistent_however_often_its_driver_is_killed(asha: str) -> None:
    assert torture(0, "driver", asha) == []
