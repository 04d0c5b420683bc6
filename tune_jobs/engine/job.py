"""Runs a job as a script: command line in, summary and exit code out."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from tune_jobs.engine.reasons import Reason
from tune_jobs.engine.results import Sweep, SweepFailedError
from tune_jobs.engine.settings import Settings, SettingsError, parse_settings
from tune_jobs.engine.summary import format_summary

__all__ = ["run_job"]

AnySettings = TypeVar("AnySettings", bound=Settings)


def run_job(
    job: Callable[[AnySettings], Sweep],
    settings_type: type[AnySettings],
    description: str | None = None,
    args: Sequence[str] | None = None,
    finish: Callable[[Sweep], None] = lambda sweep: None,
) -> NoReturn:
    """Parse the settings, run the job, print what it found, and exit.

    Args:
        job: Maps the settings to a finished sweep.
        settings_type: `Settings` or `LightningSettings`, or a dataclass that extends one.
        description: The head of `--help`.
        args: The command line; None: the program's own.
        finish: Called with the sweep after the summary has been printed.

    Exits with 0, also if some trials failed; 1 if all did; 2 if the settings cannot be met; 130, as
    shells have it, if it was interrupted.
    """
    try:
        sweep = job(parse_settings(settings_type, description or "", args))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SweepFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(format_summary(sweep))
    finish(sweep)
    interrupted = any(row["reason"] == Reason.INTERRUPTED for row in sweep.rows)
    sys.exit(130 if interrupted else 0)
