"""Runs a job as a script: command line in, summary and exit code out."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from tune_jobs.engine.core.errors import SettingsError, SweepFailedError
from tune_jobs.engine.core.settings import Settings, parse_settings

if TYPE_CHECKING:  # `--help` should not wait for Optuna
    from tune_jobs.engine.core.outcome import Outcome
    from tune_jobs.engine.report.result import SweepResult

__all__ = ["run_job"]

AnySettings = TypeVar("AnySettings", bound=Settings)


def run_job(
    job: "Callable[[AnySettings], SweepResult]",
    settings_type: type[AnySettings],
    description: str | None = None,
    args: Sequence[str] | None = None,
    finish: "Callable[[SweepResult], None]" = lambda result: None,
) -> NoReturn:
    """Parse the settings, run the job, print what it found, and exit.

    With `--resume`, options that the command line leaves out keep their previous values.

    Args:
        job: Maps the settings to a finished sweep.
        settings_type: `Settings`, `EpochSettings` or `LightningSettings`, or one that extends them.
        description: The head of `--help`.
        args: The command line; None: the program's own.
        finish: Called with the result after the summary is printed.

    Exits with 0, even if some trials failed; 1 if there is no winner, the storage failed or another
    driver took over; 2 if the settings cannot be satisfied; 130, as shells have it, if it was
    interrupted.
    """
    address = None
    try:
        settings = _read_settings(settings_type, description or "", args)
        address = settings.address
        result = job(settings)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SweepFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        _print_resume_command(error.path, error.ended, address)
        sys.exit(_exit_code(error.ended, otherwise=1))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    from tune_jobs.engine.report.result import SweepResult
    from tune_jobs.engine.report.summary import format_summary

    if not isinstance(result, SweepResult):
        got = f"{getattr(job, '__name__', 'the job')} returned {result!r}"
        print(f"error: {got}; it must return what run_sweep returns.", file=sys.stderr)
        sys.exit(1)
    print(format_summary(result))
    _print_resume_command(result.path, result.ended, address)
    finish(result)
    sys.exit(_exit_code(result.ended, otherwise=0))


def _read_settings(
    settings_type: type[AnySettings], description: str, args: Sequence[str] | None
) -> AnySettings:
    settings = parse_settings(settings_type, description, args)
    if not settings.resume:
        return settings
    from tune_jobs.engine.store.folder import storage_uri
    from tune_jobs.engine.store.manifest import recorded_settings

    try:
        folder = f"{storage_uri(settings.storage_path)}/{settings.name}"
        recorded = recorded_settings(folder, settings)
    except OSError:
        return settings  # `run_sweep` says what is wrong with the folder
    # Flags that were on must not be on by default, or they could not be left out.
    default = dataclasses.replace(recorded, resume=False, retry_failed=False)
    return parse_settings(settings_type, description, args, default=default)


def _exit_code(ended: "Outcome", otherwise: int) -> int:
    from tune_jobs.engine.core.outcome import Kind

    return 130 if ended.kind == Kind.INTERRUPTED else otherwise


def _print_resume_command(path: str, ended: "Outcome", address: str | None) -> None:
    """Print the command that resumes a sweep which has ended early."""
    if not ended.is_resumable:
        return
    from tune_jobs.engine.store.folder import storage_uri

    storage, _, name = path.rpartition("/")
    default = Settings().storage_path
    elsewhere = [] if storage == storage_uri(default) else ["--storage-path", storage]
    if address is not None:
        elsewhere += ["--address", address]
    command = shlex.join([*_own_command(), "--name", name, *elsewhere, "--resume"])
    print(f"Resume with: {command}")


def _own_command() -> list[str]:
    """The command that started this program, without its options."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return ["python", sys.argv[0]]
    return ["python", "-m", spec.name.removesuffix(".__main__")]
