"""What `--help` of a job looks like: short, and fitted to the terminal."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from tune_jobs.engine.core.command_line import parse
from tune_jobs.engine.core.settings import LightningSettings, Settings

REPO = Path(__file__).parents[1]


def help_of_job(job: str, columns: int, **env: str) -> str:
    own = {name: text for name, text in os.environ.items() if not name.startswith("TUNE_JOBS_")}
    own |= {"COLUMNS": str(columns), "PYTHONPATH": str(REPO), "PYTHONUTF8": "1", **env}
    command = [sys.executable, f"tune_jobs/{job}.py", "--help"]
    done = subprocess.run(
        command, cwd=REPO, env=own, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.parametrize(("job", "num_lines"), [("garden", 40), ("mnist", 60)])
def test_help_lines_at_100_columns(job: str, num_lines: int) -> None:
    """As a terminal shows them: tyro leaves it to the terminal to break the description."""
    lines = help_of_job(job, 100).splitlines()
    assert sum(max(1, math.ceil(len(line) / 100)) for line in lines) <= num_lines


@pytest.mark.parametrize("job", ["garden", "mnist"])
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}])
def test_help_fits_80_columns(job: str, env: dict[str, str]) -> None:
    """No line of the options is broken by the terminal; redirected, there are no colors."""
    text = help_of_job(job, 80, **env)
    _, _, options = text.partition(" options ")
    assert max(map(len, options.splitlines())) <= 80
    assert "\x1b" not in text
    assert text.isascii() == ("LC_ALL" in env)


def test_help_in_terminal_has_colors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    text = shown(Settings, capsys)
    assert "\x1b[" in text


def shown(kind: type, capsys: pytest.CaptureFixture[str], description: str = "") -> str:
    with pytest.raises(SystemExit) as info:
        parse(kind, description, ["--help"], None)
    assert info.value.code == 0
    return capsys.readouterr().out


class Size(Enum):
    SMALL = 1
    LARGE = 2


@dataclass(frozen=True)
class Group:
    depth: int | None = None
    """Depth."""


@dataclass(frozen=True)
class Options:
    """A job's own options, one of each kind."""

    count: int | None = None
    """How many."""
    pair: tuple[int, int] | None = None
    layers: list[int] | None = None
    kind: Literal["x", "y"] | None = None
    size: Size = Size.SMALL
    a_number_or: float | Literal["auto"] = "auto"
    """Either,
    or."""
    quiet: bool = False
    loud: bool = True
    own: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    by_name: dict[str, int] = field(default_factory=lambda: {"k": 1})
    group: Group = Group()


@pytest.mark.parametrize(
    "line",
    [
        "--count INT How many.",
        "--pair INT INT",
        "--layers [INT [INT ...]]",
        "--kind {x,y}",
        "--size {SMALL,LARGE} (default: SMALL)",
        "--a-number-or VALUE Either, or. (FLOAT, auto; default: auto)",
        "--quiet",
        "--no-loud (default: True)",
        "--own N (default: None)",
        "--by-name.k INT (default: 1)",
        "--group.depth {None}|INT Depth. (default: None)",
    ],
)
def test_help_of_own_option(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither None nor its default is shown, and all choices are, whatever the type."""
    monkeypatch.setenv("COLUMNS", "120")
    words = [" ".join(row.strip("│ \n").split()) for row in shown(Options, capsys).splitlines()]
    assert line in words


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([], Options()),
        (["--count", "None", "--kind", "None", "--pair", "None"], Options()),
        (["--count", "3", "--pair", "1", "2"], Options(count=3, pair=(1, 2))),
        (["--layers", "1", "2", "--kind", "y"], Options(layers=[1, 2], kind="y")),
        (["--a-number-or", "0.5", "--quiet"], Options(a_number_or=0.5, quiet=True)),
        (["--no-loud", "--size", "LARGE"], Options(loud=False, size=Size.LARGE)),
        (["--group.depth", "2", "--by-name.k", "2"], Options(group=Group(2), by_name={"k": 2})),
    ],
)
def test_parse_own_options(args: list[str], options: Options) -> None:
    assert parse(Options, "", args, None) == options


def test_parse_bad_choice(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the choices that the placeholder does not."""
    with pytest.raises(SystemExit) as info:
        parse(LightningSettings, "", ["--asha", "median"], None)
    assert info.value.code == 2
    captured = capsys.readouterr()
    assert "promotion" in captured.err
    assert captured.out == ""


def test_help_without_description(capsys: pytest.CaptureFixture[str]) -> None:
    usage, empty, box, *_ = shown(Options, capsys).splitlines()
    assert (usage[:6], empty, box.split()[0]) == ("usage:", "", "options")
