"""The command `tune-jobs`: its exit codes, its help, what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tune_jobs import cli
from tune_jobs.doctor.checks import Finding

FINDINGS = [
    Finding("head", "available_node_types.head.resources", "the head takes trials."),
    Finding("machine", "this machine", "there is no rsync."),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool]]:
    """What the doctor was asked; it finds something in `bad.yaml` alone."""
    asked = []

    def examine(file: Path, ask_aws: bool) -> list[Finding]:
        asked.append((file, ask_aws))
        return FINDINGS if file.name == "bad.yaml" else []

    monkeypatch.setattr(cli, "examine", examine)
    return asked


def test_all_is_well(asked: list[tuple[Path, bool]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "good.yaml"]) == 0
    assert capsys.readouterr().out == "good.yaml: all is well, here and in the file.\n"
    assert asked == [(Path("good.yaml"), False)]


def test_findings_are_told_and_exit_2(
    asked: list[tuple[Path, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "bad.yaml", "--aws"]) == 2
    assert capsys.readouterr().out == (
        "head: available_node_types.head.resources\n"
        "    the head takes trials.\n"
        "machine: this machine\n"
        "    there is no rsync.\n"
        "bad.yaml: 2 to mend before `ray up`.\n"
    )
    assert asked == [(Path("bad.yaml"), True)]


@pytest.mark.parametrize(("name", "code"), [("good.yaml", 0), ("bad.yaml", 2)])
def test_json_is_for_machines(
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
def test_file_that_is_missing_is_one_sentence(
    has_aws: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.yaml"
    args = ["doctor", str(file), *["--aws"] * has_aws]
    assert cli.main(args) == 2
    sentence = f"{file} cannot be read (No such file or directory)."
    assert sentence in capsys.readouterr().out
    assert cli.main([*args, "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "file": str(file),
        "ok": False,
        "findings": [{"check": "file", "where": str(file), "message": sentence}],
    }


def test_help_names_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "usage: tune-jobs" in out
    assert "doctor  Say what is wrong with a cluster file" in out


def test_help_of_the_doctor_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["doctor", "--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    for words in ("usage: tune-jobs doctor", "`ray up`", "--aws", "--json", "exit code is 0"):
        assert words in out


@pytest.mark.parametrize("args", [[], ["doctor"], ["doktor", "x"], ["doctor", "x", "--jso"]])
def test_what_cannot_be_parsed_exits_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(args)
    assert info.value.code == 2
    assert "tune-jobs" in capsys.readouterr().err


def test_module_runs_without_torch_and_exits_with_the_code(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv[0] = 'tune-jobs'\n"
        "try: runpy.run_module('tune_jobs.cli', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "doctor", str(tmp_path / "none.yaml")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout.endswith("1 to mend before `ray up`.\nFalse\n")
