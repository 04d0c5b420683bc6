"""A sweep that is killed at random moments.

`python -m tests.torture --seeds 10 --mode driver` tries more; its output is in `torture.log`.
"""

import pytest
from torture import KINDS, torture


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(540)
@pytest.mark.parametrize("asha", KINDS)
def test_torture_of_the_driver(asha: str) -> None:
    """However often the driver is killed, the sweep ends complete and consistent."""
    assert torture(0, "driver", asha) == []
