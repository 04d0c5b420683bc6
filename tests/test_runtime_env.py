"""What is sent to the nodes of a cluster: our packages, and what lies beside the job."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.runtime_env.packaging import create_package

from tune_jobs.engine.cluster.runtime_env import check_kept, code_to_ship
from tune_jobs.engine.core.settings import SettingsError

REPO = Path(__file__).parents[1]


def submit_with(monkeypatch: pytest.MonkeyPatch, **runtime_env: str) -> None:
    """As `ray job submit` starts a job."""
    config = json.dumps({"runtime_env": runtime_env})
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, config)


def write(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")


def test_our_packages_are_sent(tmp_path: Path) -> None:
    assert code_to_ship(tmp_path)["py_modules"] == [f"{REPO}/tune_jobs", f"{REPO}/models"]
    assert code_to_ship(REPO / "tune_jobs")["py_modules"] == [
        f"{REPO}/tune_jobs",
        f"{REPO}/models",
    ]


def test_modules_and_packages_beside_the_job_are_sent(tmp_path: Path) -> None:
    write(
        tmp_path, "job.py", "nets/__init__.py", "plain/nets.py", ".venv/x.py", "data/x.csv", "n.md"
    )
    sent = code_to_ship(tmp_path)["py_modules"][2:]
    assert sent == [f"{tmp_path}/job.py", f"{tmp_path}/nets", f"{tmp_path}/plain"]


def test_job_inside_a_package_sends_the_whole_package(tmp_path: Path) -> None:
    write(tmp_path, "own/__init__.py", "own/jobs/__init__.py", "own/jobs/job.py", "other.py")
    assert code_to_ship(tmp_path / "own" / "jobs")["py_modules"][2:] == [f"{tmp_path}/own"]


def test_package_beside_the_job_wins_over_ours_as_in_the_driver(tmp_path: Path) -> None:
    write(tmp_path, "models/__init__.py")
    assert code_to_ship(tmp_path)["py_modules"] == [f"{REPO}/tune_jobs", f"{tmp_path}/models"]


def test_code_is_sent_and_neither_secrets_nor_weights(tmp_path: Path) -> None:
    write(tmp_path, "own/__init__.py", "own/data/x.py", "own/.env", "own/.git/x", "own/a.pem")
    write(tmp_path, "own/last.ckpt", "own/__pycache__/x.pyc")
    excludes = code_to_ship(tmp_path)["excludes"]
    create_package(str(tmp_path / "own"), tmp_path / "own.zip", False, True, excludes)
    assert sorted(ZipFile(tmp_path / "own.zip").namelist()) == ["own/__init__.py", "own/data/x.py"]


def test_notebook_sends_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "beside.py")
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/beside.py" in code_to_ship(None)["py_modules"]


def test_nothing_is_sent_with_a_submitted_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_with(monkeypatch, working_dir="gcs://_ray_pkg_1.zip")
    assert code_to_ship(tmp_path) == {}


def test_submitted_command_without_its_folder_is_sent_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_with(monkeypatch)
    assert len(code_to_ship(tmp_path)["py_modules"]) == 2


def test_results_in_the_copy_of_a_submitted_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_kept(f"{tmp_path}/results")  # no job of Ray's: the user's own folder
    submit_with(monkeypatch, working_dir="gcs://_ray_pkg_1.zip")
    with pytest.raises(SettingsError, match="which Ray deletes after the job; name another with"):
        check_kept(f"{tmp_path}/results")
    check_kept("/mnt/sweeps")
    check_kept("s3://bucket/sweeps")
