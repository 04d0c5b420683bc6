"""The settings: their rules, and the command line that they make."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from tune_jobs.engine.core.settings import (
    LightningSettings,
    Settings,
    SettingsError,
    parse_settings,
)


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
def test_broken_rule_names_setting_and_value(name: str, value: Any, shown: str) -> None:
    with pytest.raises(SettingsError) as info:
        LightningSettings(**{name: value})
    assert str(info.value).startswith(f"{name} must be ")
    assert f"got {shown}" in str(info.value)


def test_grace_epochs_beyond_max_epochs_are_refused_with_both_values() -> None:
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
def test_value_at_its_bound_is_accepted(name: str, value: Any) -> None:
    assert getattr(LightningSettings(**{name: value}), name) == value


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1  # type: ignore[misc]


def test_no_arguments_give_the_defaults() -> None:
    assert parse_settings(LightningSettings, "a job", []) == LightningSettings()
    assert parse_settings(Settings, "a job", []) == Settings()


def test_every_setting_round_trips_through_the_command_line() -> None:
    wanted = LightningSettings(
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
    assert all(values[field.name] != field.default for field in dataclasses.fields(wanted))
    args = [
        text
        for name, value in values.items()
        for text in ("--" + name.replace("_", "-"), str(value))
        if text != "True"  # a flag stands alone
    ]
    assert parse_settings(LightningSettings, "a job", args) == wanted


def test_gpus_per_trial_takes_auto_and_a_number() -> None:
    assert parse_settings(Settings, "", ["--gpus-per-trial", "auto"]).gpus_per_trial == "auto"
    assert parse_settings(Settings, "", ["--gpus-per-trial", "0.4"]).gpus_per_trial == 0.4


def test_data_dir_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_JOBS_DATA_DIR", "/elsewhere")
    assert parse_settings(LightningSettings, "", []).data_dir == "/elsewhere"
    monkeypatch.delenv("TUNE_JOBS_DATA_DIR")
    assert parse_settings(LightningSettings, "", []).data_dir == "data"


def test_broken_rule_on_the_command_line_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="num_trials must be positive and finite, got 0"):
        parse_settings(Settings, "a job", ["--num-trials", "0"])


def test_unknown_option_exits_2_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        parse_settings(LightningSettings, "a job", ["--num-trial", "3"])
    assert info.value.code == 2
    captured = capsys.readouterr()
    assert "--num-trials" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "args", [["--num-trials", "many"], ["--data", "cifar"], ["--seed"], ["--gpus-per-trial", "all"]]
)
def test_value_that_cannot_be_parsed_exits_2(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        parse_settings(LightningSettings, "a job", args)
    assert info.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_help_exits_0_and_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        parse_settings(LightningSettings, "a job of mine", ["--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "a job of mine" in out
    for field in dataclasses.fields(LightningSettings):
        assert "--" + field.name.replace("_", "-") + " " in out


def test_unknown_kind_of_asha_is_refused() -> None:
    with pytest.raises(SettingsError, match="asha must be 'promotion' or 'stopping', got 'Stop'"):
        LightningSettings(asha="Stop")  # type: ignore[arg-type]


def test_help_has_the_medians_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(LightningSettings, "a job", ["--help"])
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    section = readme.split("## How it decides")[1].split("\n## ")[0]
    explained = {name: cells for name, *cells in read_rows(section)}
    shown = {name: cells for name, *cells in read_rows(capsys.readouterr().out)}
    assert shown.pop("slots") == ["1", "4", "16", "64"]
    assert shown
    for name, medians in shown.items():
        for median, cell in zip(medians, explained[name], strict=True):
            assert cell.replace("over 3,000", ">3000").startswith(median)


def read_rows(text: str) -> list[list[str]]:
    """The cells of tables that have five columns."""
    lines = [line.strip(" │").split("|") for line in text.splitlines()]
    return [[cell.strip() for cell in line[1:-1]] for line in lines if len(line) == 7]


def test_storage_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNE_JOBS_STORAGE_PATH", raising=False)
    assert Settings().storage_path == "./results"
    monkeypatch.setenv("TUNE_JOBS_STORAGE_PATH", "s3://bucket/sweeps")
    assert Settings().storage_path == "s3://bucket/sweeps"
    monkeypatch.setenv("TUNE_JOBS_STORAGE_PATH", "")
    assert Settings().storage_path == "./results"
