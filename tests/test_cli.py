"""The command `tune-jobs`: exit codes, help, output, and what it imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tune_jobs import cli
from tune_jobs.doctor import INSTALL_CLUSTER
from tune_jobs.doctor.checks import Finding

REPO = Path(__file__).parents[1]

FINDINGS = [
    Finding("head", "available_node_types.head.resources", "the head accepts trials."),
    Finding("machine", "this machine", "there is no rsync."),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool]]:
    """The calls of a fake `examine`, which finds problems in `bad.yaml` only."""
    asked = []

    def examine(file: Path, ask_aws: bool) -> list[Finding]:
        asked.append((file, ask_aws))
        return FINDINGS if file.name == "bad.yaml" else []

    monkeypatch.setattr("tune_jobs.doctor.checks.examine", examine)
    return asked


def test_doctor_no_problems(
    asked: list[tuple[Path, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "good.yaml"]) == 0
    assert capsys.readouterr().out == "good.yaml: no problems found.\n"
    assert asked == [(Path("good.yaml"), False)]


def test_doctor_prints_findings(
    asked: list[tuple[Path, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "bad.yaml", "--aws"]) == 2
    assert capsys.readouterr().out == (
        "head: available_node_types.head.resources\n"
        "    the head accepts trials.\n"
        "machine: this machine\n"
        "    there is no rsync.\n"
        "bad.yaml: 2 problems to fix before `ray up`.\n"
    )
    assert asked == [(Path("bad.yaml"), True)]


@pytest.mark.parametrize(("name", "code"), [("good.yaml", 0), ("bad.yaml", 2)])
def test_doctor_prints_json(
    name: str,
    code: int,
    asked: list[tuple[Path, bool]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor", name, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {
        "file": name,
        "ok": code == 0,
        "findings": [
            {"check": found.check, "where": found.where, "message": found.message}
            for found in (FINDINGS if code else [])
        ],
    }


@pytest.mark.parametrize("has_aws", [False, True])
def test_doctor_file_missing(
    has_aws: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.yaml"
    args = ["doctor", str(file), *["--aws"] * has_aws]
    assert cli.main(args) == 2
    sentence = f"{file} cannot be read (No such file or directory); check the path."
    assert sentence in capsys.readouterr().out
    assert cli.main([*args, "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "file": str(file),
        "ok": False,
        "findings": [{"check": "file", "where": str(file), "message": sentence}],
    }


def test_help_lists_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "usage: tune-jobs" in out
    assert "doctor  Find problems in a cluster file" in out


def test_help_lists_doctor_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["doctor", "--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    for words in ("usage: tune-jobs doctor", "`ray up`", "--aws", "--json", "exit code is 0"):
        assert words in out


@pytest.mark.parametrize("args", [[], ["doctor"], ["doktor", "x"], ["doctor", "x", "--jso"]])
def test_cli_invalid_command_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(args)
    assert info.value.code == 2
    assert "tune-jobs" in capsys.readouterr().err


# What the command imports


def run_module(*args: str, setup: str = "") -> subprocess.CompletedProcess[str]:
    """Run `python -m tune_jobs.cli` after some code; print the heavy packages it has imported."""
    code = (
        f"import runpy, sys; sys.argv[0] = 'tune-jobs'; {setup}\n"
        "try: runpy.run_module('tune_jobs.cli', run_name='__main__')\n"
        "finally: print(sorted({'ray', 'torch', 'optuna', 'lightning'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_doctor_imports_nothing_heavy() -> None:
    """The shipped file has placeholders, but is valid, so every check runs."""
    no_token = "import os; os.environ.pop('RAY_AUTH_MODE', None)"
    run = run_module("doctor", str(REPO / "cluster.yaml"), setup=no_token)
    assert run.returncode == 2
    assert "RAY_AUTH_MODE is not set in this shell" in run.stdout
    assert run.stdout.endswith(" to fix before `ray up`.\n[]\n")


def test_module_exit_code(tmp_path: Path) -> None:
    run = run_module("doctor", str(tmp_path / "none.yaml"))
    assert run.returncode == 2
    assert run.stdout.endswith(": 1 problem to fix before `ray up`.\n[]\n")


@pytest.mark.parametrize("args", [["--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    """Nor does it need the packages of the extra `cluster`."""
    missing = "sys.modules |= dict.fromkeys(['jsonschema', 'packaging', 'yaml', 'boto3'])"
    run = run_module(*args, setup=missing)
    assert run.returncode == 0
    assert run.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("package", ["jsonschema", "packaging", "yaml"])
def test_doctor_extra_missing(package: str) -> None:
    run = run_module("doctor", "cluster.yaml", "--json", setup=f"sys.modules['{package}'] = None")
    assert run.returncode == 2
    assert run.stdout == "[]\n"
    assert run.stderr == (
        f"tune-jobs doctor needs the package {package}, which is not installed; "
        f"run `{INSTALL_CLUSTER}`.\n"
    )


def test_doctor_import_bug() -> None:
    """A failed import of anything else is a bug, with a traceback."""
    run = run_module("doctor", "x", setup="sys.modules['tune_jobs.doctor.aws'] = None")
    assert run.returncode == 1
    assert "tune_jobs.doctor.aws" in run.stderr
