"""The code that is sent to the nodes of a cluster: our packages, and the modules beside the job."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.runtime_env.packaging import create_package

import tune_jobs
from tune_jobs.engine.cluster.runtime_env import check_kept, code_to_ship
from tune_jobs.engine.core.errors import SettingsError

REPO = Path(__file__).parents[1]


def submit_with(monkeypatch: pytest.MonkeyPatch, **runtime_env: str) -> None:
    """Set what `ray job submit` sets for a job."""
    config = json.dumps({"runtime_env": runtime_env})
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, config)


def write(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")


OWN = [f"{REPO}/tune_jobs", f"{REPO}/models"]


def test_own_packages_sent(tmp_path: Path) -> None:
    assert code_to_ship(tmp_path)["py_modules"] == OWN
    assert code_to_ship(REPO / "tune_jobs")["py_modules"] == OWN


def test_installed_wheel_sends_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `models` beside an installed tune_jobs belongs to another distribution."""
    write(tmp_path, "site/tune_jobs/__init__.py", "site/models/__init__.py", "own/job.py")
    monkeypatch.setattr(tune_jobs, "__file__", f"{tmp_path}/site/tune_jobs/__init__.py")
    sent = [f"{tmp_path}/site/tune_jobs", f"{tmp_path}/own/job.py"]
    assert code_to_ship(tmp_path / "own")["py_modules"] == sent


def test_modules_beside_job_sent(tmp_path: Path) -> None:
    write(
        tmp_path, "job.py", "nets/__init__.py", "plain/nets.py", ".venv/x.py", "data/x.csv", "n.md"
    )
    sent = code_to_ship(tmp_path)["py_modules"][2:]
    assert sent == [f"{tmp_path}/job.py", f"{tmp_path}/nets", f"{tmp_path}/plain"]


def test_job_in_package_sends_package(tmp_path: Path) -> None:
    write(tmp_path, "own/__init__.py", "own/jobs/__init__.py", "own/jobs/job.py", "other.py")
    assert code_to_ship(tmp_path / "own" / "jobs")["py_modules"][2:] == [f"{tmp_path}/own"]


def test_job_package_replaces_own(tmp_path: Path) -> None:
    """Of two packages with one name the job's is sent: the driver, too, finds it first."""
    write(tmp_path, "models/__init__.py")
    assert code_to_ship(tmp_path)["py_modules"] == [f"{REPO}/tune_jobs", f"{tmp_path}/models"]


def test_secrets_and_weights_not_sent(tmp_path: Path) -> None:
    write(tmp_path, "own/__init__.py", "own/data/x.py", "own/.env", "own/.git/x", "own/a.pem")
    write(tmp_path, "own/last.ckpt", "own/__pycache__/x.pyc")
    excludes = code_to_ship(tmp_path)["excludes"]
    create_package(str(tmp_path / "own"), tmp_path / "own.zip", False, True, excludes)
    assert sorted(ZipFile(tmp_path / "own.zip").namelist()) == ["own/__init__.py", "own/data/x.py"]


def test_notebook_sends_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "beside.py")
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/beside.py" in code_to_ship(None)["py_modules"]


def test_submitted_folder_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit --working-dir` has sent the folder already."""
    submit_with(monkeypatch, working_dir="gcs://_ray_pkg_1.zip")
    assert code_to_ship(tmp_path) == {}


def test_submitted_command_sends_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit` without a working directory sends nothing by itself."""
    submit_with(monkeypatch)
    assert len(code_to_ship(tmp_path)["py_modules"]) == 2


def test_results_in_submitted_folder_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray deletes its copy of the working directory after the job."""
    monkeypatch.chdir(tmp_path)
    check_kept(f"{tmp_path}/results")  # no job of Ray's: the user's own folder
    submit_with(monkeypatch, working_dir="gcs://_ray_pkg_1.zip")
    with pytest.raises(SettingsError, match="which Ray deletes after the job; name another with"):
        check_kept(f"{tmp_path}/results")
    check_kept("/mnt/sweeps")
    check_kept("s3://bucket/sweeps")
