"""Runs a job as a script: command line in, summary and exit code out."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from tune_jobs.engine.core.outcome import Reason
from tune_jobs.engine.core.settings import Settings, SettingsError, parse_settings
from tune_jobs.engine.report.results import Sweep, SweepFailedError
from tune_jobs.engine.report.summary import format_summary
from tune_jobs.engine.store.folder import storage_uri
from tune_jobs.engine.store.manifest import recorded_settings

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

    With `--resume`, what the command line does not say is as the sweep was started.

    Args:
        job: Maps the settings to a finished sweep.
        settings_type: `Settings` or `LightningSettings`, or a dataclass that extends one.
        description: The head of `--help`.
        args: The command line; None: the program's own.
        finish: Called with the sweep after the summary has been printed.

    Exits with 0, also if some trials failed; 1 if all did, or the storage; 2 if the settings cannot
    be met; 130, as shells have it, if it was interrupted.
    """
    address = None
    try:
        settings = _read_settings(settings_type, description or "", args)
        address = settings.address
        sweep = job(settings)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SweepFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        _print_way_on(error.path, error.ended, address)
        sys.exit(130 if error.ended == Reason.INTERRUPTED else 1)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    print(format_summary(sweep))
    _print_way_on(sweep.path, sweep.ended, address)
    finish(sweep)
    sys.exit(130 if sweep.ended == Reason.INTERRUPTED else 0)


def _read_settings(
    settings_type: type[AnySettings], description: str, args: Sequence[str] | None
) -> AnySettings:
    settings = parse_settings(settings_type, description, args)
    if not settings.resume:
        return settings
    try:
        folder = f"{storage_uri(settings.storage_path)}/{settings.name}"
        recorded = recorded_settings(folder, settings)
    except OSError:
        return settings  # `run_sweep` says what is wrong with the folder
    # A flag that were on by default could only be turned off.
    default = dataclasses.replace(recorded, resume=False, retry_failed=False)
    return parse_settings(settings_type, description, args, default=default)


def _print_way_on(path: str, ended: Reason | None, address: str | None) -> None:
    """The command that goes on with a sweep which has ended before its time."""
    if ended is None or not ended.is_resumable:
        return
    storage, _, name = path.rpartition("/")
    default = Settings().storage_path
    elsewhere = [] if storage == storage_uri(default) else ["--storage-path", storage]
    if address is not None:
        elsewhere += ["--address", address]
    command = shlex.join(["python", sys.argv[0], "--name", name, *elsewhere, "--resume"])
    print(f"To go on: {command}")
