"""The command `tune-jobs`: what there is to do around a sweep. Jobs themselves are scripts."""

import dataclasses
import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from tyro.extras import SubcommandApp

from tune_jobs.doctor.checks import Finding, examine

__all__ = ["main"]

app = SubcommandApp()


@app.command
def doctor(file: tyro.conf.Positional[Path], aws: bool = False, json: bool = False) -> int:
    """Say what is wrong with a cluster file and with this machine, before it costs money.

    Nothing is changed. The exit code is 0 where all is well, else 2.

    Args:
        file: The file that `ray up` is to get.
        aws: Look up in AWS what the file names; reads only, and needs credentials.
        json: Print an object with file, ok and findings: check, where and message of each.
    """
    findings = examine(file, ask_aws=aws)
    print(_as_json(file, findings) if json else _as_text(file, findings))
    return 2 if findings else 0


def main(args: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        args: The command line; None: the program's own.

    Returns:
        The exit code.

    Raises:
        SystemExit: Code 2 for what cannot be parsed, 0 after `--help`.
    """
    code: int = app.cli(
        prog="tune-jobs",
        description="What there is to do around a sweep; jobs themselves are scripts.",
        args=args,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return code


def _as_json(file: Path, findings: list[Finding]) -> str:
    listed = [dataclasses.asdict(finding) for finding in findings]
    return json_module.dumps({"file": str(file), "ok": not findings, "findings": listed}, indent=2)


def _as_text(file: Path, findings: list[Finding]) -> str:
    if not findings:
        return f"{file}: all is well, here and in the file."
    lines = [f"{finding.check}: {finding.where}\n    {finding.message}" for finding in findings]
    return "\n".join([*lines, f"{file}: {len(findings)} to mend before `ray up`."])


if __name__ == "__main__":
    sys.exit(main())
