"""A job whose trials sleep, to measure what a second worker gains."""

import time
from typing import Any

from ray import tune

from tune_jobs.engine import Settings, SweepResult, run_job, run_sweep


def sleep(config: dict[str, Any]) -> float:
    time.sleep(5)
    return float(config["x"])


def main(settings: Settings) -> SweepResult:
    return run_sweep(
        settings, space={"x": tune.uniform(0, 1)}, metric="score", mode="max", objective=sleep
    )


if __name__ == "__main__":
    run_job(main, Settings, __doc__)
