"""The command `tune-jobs`. To start a sweep, run a job script instead.

To add a subcommand, write a function here and decorate it with `@app.command`:

- tyro turns its name into the subcommand, its arguments into options, its docstring into `--help`.
- It imports what it needs in its body, so that `--help` and the other subcommands start fast.
- It prints its output and returns the exit code.
"""

import dataclasses
import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from tyro.extras import SubcommandApp

if TYPE_CHECKING:
    from tune_jobs.doctor.checks import Finding

__all__ = ["main"]

app = SubcommandApp()


@app.command
def doctor(file: tyro.conf.Positional[Path], aws: bool = False, json: bool = False) -> int:
    """Find problems in a cluster file and on this machine before `ray up` costs money.

    Reads only; changes nothing. The exit code is 0 if there are no problems, otherwise 2.

    Args:
        file: The cluster file for `ray up`.
        aws: Also check in AWS that what the file names exists. Reads only; needs credentials.
        json: Print a JSON object with file, ok and findings (check, where and message of each).
    """
    try:
        from tune_jobs.doctor.checks import examine
    except ModuleNotFoundError as error:
        return _missing_extra(error)
    findings = examine(file, ask_aws=aws)
    print(_as_json(file, findings) if json else _as_text(file, findings))
    return 2 if findings else 0


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        args: The command line. Default: `sys.argv[1:]`.

    Returns:
        The exit code.

    Raises:
        SystemExit: With code 2 if the command line is invalid, with code 0 after `--help`.
    """
    code: int = app.cli(
        prog="tune-jobs",
        description="Tools for sweeps and clusters. To start a sweep, run a job script instead.",
        args=args,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return code


def _missing_extra(error: ModuleNotFoundError) -> int:
    """Say how to install the packages of the doctor, one of which is missing."""
    from tune_jobs.doctor import INSTALL_CLUSTER

    package = (error.name or "").partition(".")[0]
    if package not in ("jsonschema", "packaging", "yaml"):
        raise error
    print(
        f"tune-jobs doctor needs the package {package}, which is not installed; "
        f"run `{INSTALL_CLUSTER}`.",
        file=sys.stderr,
    )
    return 2


def _as_json(file: Path, findings: "list[Finding]") -> str:
    listed = [dataclasses.asdict(finding) for finding in findings]
    return json_module.dumps({"file": str(file), "ok": not findings, "findings": listed}, indent=2)


def _as_text(file: Path, findings: "list[Finding]") -> str:
    if not findings:
        return f"{file}: no problems found."
    lines = [f"{finding.check}: {finding.where}\n    {finding.message}" for finding in findings]
    count = "1 problem" if len(findings) == 1 else f"{len(findings)} problems"
    return "\n".join([*lines, f"{file}: {count} to fix before `ray up`."])


if __name__ == "__main__":
    sys.exit(main())
