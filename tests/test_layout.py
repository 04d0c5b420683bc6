"""What `lint-imports` cannot see of the house: its contracts are in pyproject.toml."""

from pathlib import Path

import pytest

NO_JOBS = {"__init__.py", "cli.py"}
JOBS = [
    path
    for path in sorted((Path(__file__).parents[1] / "tune_jobs").glob("*.py"))
    if path.name not in NO_JOBS
]


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_job_is_short_enough_to_copy(job: Path) -> None:
    assert len(job.read_text().splitlines()) <= 90
