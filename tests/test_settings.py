"""The settings: their rules, the command line, and what happens to each on resume."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.core.settings import (
    EpochSettings,
    LightningSettings,
    OnResume,
    Settings,
    fixed,
    momentary,
    on_resume,
    parse_settings,
)
from tune_jobs.mnist import MNISTSettings


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("num_trials", 0, "0"),
        ("num_trials", -3, "-3"),
        ("max_concurrent", 0, "0"),
        ("cpus_per_trial", 0.0, "0.0"),
        ("cpus_per_trial", math.inf, "inf"),
        ("cpus_per_trial", math.nan, "nan"),
        ("time_budget_s", -1.5, "-1.5"),
        ("time_budget_s", math.nan, "nan"),
        ("keep_checkpoints", 0, "0"),
        ("gpus_per_trial", 1.5, "1.5"),
        ("gpus_per_trial", -0.25, "-0.25"),
        ("gpus_per_trial", math.nan, "nan"),
        ("stop_at", math.nan, "nan"),
        ("stop_at", math.inf, "inf"),
        ("seed", -1, "-1"),
        ("seed", 2**32, "4294967296"),
        ("name", "a/b", "'a/b'"),
        ("name", "..", "'..'"),
        ("name", "", "''"),
        ("name", "two words", "'two words'"),
        ("name", "line\n", r"'line\n'"),
        ("max_epochs", 0, "0"),
        ("grace_epochs", 0, "0"),
        ("reduction_factor", 1.0, "1"),
        ("reduction_factor", 0.5, "0.5"),
        ("reduction_factor", math.inf, "inf"),
        ("reduction_factor", math.nan, "nan"),
    ],
)
def test_settings_broken_rule_refused(name: str, value: Any, shown: str) -> None:
    """The message has the name of the setting, its rule and the value given."""
    with pytest.raises(SettingsError) as info:
        LightningSettings(**{name: value})
    verb = "consist of" if name == "name" else "be"
    assert str(info.value).startswith(f"{name} must {verb} ")
    assert f"got {shown}" in str(info.value)


def test_settings_grace_exceeds_max_refused() -> None:
    with pytest.raises(SettingsError, match="must not exceed max_epochs, got 5 and 4"):
        LightningSettings(max_epochs=4, grace_epochs=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpus_per_trial", 0),
        ("gpus_per_trial", 1),
        ("gpus_per_trial", "auto"),
        ("cpus_per_trial", 0.5),
        ("stop_at", -2.0),
        ("seed", 2**32 - 1),
        ("name", "sweep_1.a+b-c"),
        ("reduction_factor", 1.5),
        ("grace_epochs", 10),
    ],
)
def test_settings_accept_bounds(name: str, value: Any) -> None:
    assert getattr(LightningSettings(**{name: value}), name) == value


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1  # type: ignore[misc]


def test_parse_no_arguments() -> None:
    assert parse_settings(MNISTSettings, "a job", []) == MNISTSettings()
    assert parse_settings(LightningSettings, "a job", []) == LightningSettings()
    assert parse_settings(Settings, "a job", []) == Settings()


def test_parse_every_setting() -> None:
    wanted = MNISTSettings(
        num_trials=7,
        max_concurrent=3,
        cpus_per_trial=0.5,
        gpus_per_trial=0.25,
        time_budget_s=12.5,
        stop_at=-0.5,
        seed=42,
        storage_path="s3://bucket/results",
        name="mine",
        keep_checkpoints=2,
        resume=True,
        retry_failed=True,
        max_failures=0,
        warm_start="other",
        enqueue="configs.json",
        address="ray://head:10001",
        max_epochs=9,
        grace_epochs=2,
        asha="stopping",
        reduction_factor=2.5,
        data="digits",
        data_dir="/data",
    )
    values = dataclasses.asdict(wanted)
    assert all(values[known.name] != known.default for known in dataclasses.fields(wanted))
    args = [
        text
        for name, value in values.items()
        for text in ("--" + name.replace("_", "-"), str(value))
        if text != "True"  # a flag stands alone
    ]
    assert parse_settings(MNISTSettings, "a job", args) == wanted


def test_parse_gpus_per_trial() -> None:
    assert parse_settings(Settings, "", ["--gpus-per-trial", "auto"]).gpus_per_trial == "auto"
    assert parse_settings(Settings, "", ["--gpus-per-trial", "0.4"]).gpus_per_trial == 0.4


PRINT_DATA_DIR = """
from tune_jobs.engine.core.settings import parse_settings
from tune_jobs.mnist import MNISTSettings
print(parse_settings(MNISTSettings, "", []).data_dir)
"""


@pytest.mark.parametrize(
    ("env", "data_dir"), [({"TUNE_JOBS_DATA_DIR": "/elsewhere"}, "/elsewhere"), ({}, "data")]
)
def test_mnist_data_dir_from_environment(env: dict[str, str], data_dir: str) -> None:
    own = {name: text for name, text in os.environ.items() if name != "TUNE_JOBS_DATA_DIR"}
    command = [sys.executable, "-c", PRINT_DATA_DIR]
    done = subprocess.run(command, env={**own, **env}, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{data_dir}\n"


def test_parse_broken_rule_refused() -> None:
    with pytest.raises(SettingsError, match="num_trials must be positive and finite, got 0"):
        parse_settings(Settings, "a job", ["--num-trials", "0"])


def test_parse_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 2, and the message names the nearest option."""
    with pytest.raises(SystemExit) as info:
        parse_settings(LightningSettings, "a job", ["--num-trial", "3"])
    assert info.value.code == 2
    captured = capsys.readouterr()
    assert "--num-trials" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "args", [["--num-trials", "many"], ["--data", "cifar"], ["--seed"], ["--gpus-per-trial", "all"]]
)
def test_parse_bad_value(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        parse_settings(MNISTSettings, "a job", args)
    assert info.value.code == 2
    assert args[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings_type", [Settings, EpochSettings, LightningSettings, MNISTSettings]
)
def test_help_names_every_setting(
    settings_type: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 0."""
    with pytest.raises(SystemExit) as info:
        parse_settings(settings_type, "a job of mine", ["--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "a job of mine" in out
    for known in dataclasses.fields(settings_type):
        assert "--" + known.name.replace("_", "-") + " " in out


def test_settings_unknown_asha_refused() -> None:
    with pytest.raises(SettingsError, match="asha must be 'promotion' or 'stopping', got 'Stop'"):
        LightningSettings(asha="Stop")  # type: ignore[arg-type]


def test_help_names_no_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The engine knows no data set; the help of a copied job has only the job's own options."""
    with pytest.raises(SystemExit):
        parse_settings(LightningSettings, "a job", ["--help"])
    out = capsys.readouterr().out
    assert not re.search("mnist|digits|--data|median", out, re.IGNORECASE)


def test_help_points_to_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    """What both kinds of ASHA do at length is in the file that the help names."""
    with pytest.raises(SystemExit):
        parse_settings(LightningSettings, "a job", ["--help"])
    (named,) = re.findall(r"docs/\S+\.md", capsys.readouterr().out)
    text = (Path(__file__).parents[1] / named).read_text()
    assert "- **promotion** " in text
    assert "- **stopping** " in text


def names_of(settings_type: type[Settings], rule: OnResume) -> set[str]:
    return {f.name for f in dataclasses.fields(settings_type) if on_resume(f) == rule}


def test_on_resume_of_each_setting() -> None:
    """What must not change, and what is not recorded, is marked at the field."""
    fixed_names = {"seed", "max_epochs", "grace_epochs", "asha", "reduction_factor", "warm_start"}
    momentary_names = {"name", "storage_path", "address", "resume", "retry_failed", "enqueue"}
    assert names_of(LightningSettings, OnResume.FIXED) == fixed_names
    assert names_of(LightningSettings, OnResume.MOMENTARY) == momentary_names
    assert names_of(Settings, OnResume.FIXED) == {"seed", "warm_start"}
    assert names_of(MNISTSettings, OnResume.FIXED) == fixed_names | {"data"}


@dataclass(frozen=True)
class MarkedSettings(Settings):
    """A job's own settings of each kind."""

    plain: int = 1
    kept: list[int] = field(default_factory=lambda: [1])
    same: tuple[int, ...] = fixed((1, 2))
    same_list: list[int] = fixed(factory=lambda: [1, 2])  # noqa: RUF009
    once: str = momentary("a")
    once_list: list[int] = momentary(factory=lambda: [3])  # noqa: RUF009


def test_own_settings_marks() -> None:
    own = MarkedSettings()
    assert (own.plain, own.kept, own.same, own.once) == (1, [1], (1, 2), "a")
    assert (own.same_list, own.once_list) == ([1, 2], [3])
    assert MarkedSettings().same_list is not own.same_list
    inherited = names_of(Settings, OnResume.FIXED)
    assert names_of(MarkedSettings, OnResume.FIXED) - inherited == {"same", "same_list"}
    inherited = names_of(Settings, OnResume.MOMENTARY)
    assert names_of(MarkedSettings, OnResume.MOMENTARY) - inherited == {"once", "once_list"}


def test_parse_over_recorded_settings() -> None:
    """On resume, options that are left out have the recorded values, whatever their type."""
    recorded = MarkedSettings(plain=2, kept=[4, 5], same=(6,), same_list=[7], num_trials=8)
    parsed = parse_settings(MarkedSettings, "", ["--plain", "3"], default=recorded)
    assert parsed == dataclasses.replace(recorded, plain=3)


def test_storage_path_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNE_JOBS_STORAGE_PATH", raising=False)
    assert Settings().storage_path == "./results"
    monkeypatch.setenv("TUNE_JOBS_STORAGE_PATH", "s3://bucket/sweeps")
    assert Settings().storage_path == "s3://bucket/sweeps"
    monkeypatch.setenv("TUNE_JOBS_STORAGE_PATH", "")
    assert Settings().storage_path == "./results"
