"""Where a job's own code is found, and what its `--help` costs."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tune_jobs.engine.cluster.script import script_of
from tune_jobs.engine.job import _own_command

REPO = Path(__file__).parents[1]

PROBE = """
from tune_jobs.engine.cluster.script import script_of
from shelf.made import make_model
print(script_of(make_model))
"""


def run(*command: str, cwd: Path) -> str:
    env = {"PYTHONPATH": f"{REPO}:{cwd}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose job is in one folder, and its model in another."""
    for name in ("shelf", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "shelf" / "made.py").write_text("def make_model(config, data): ...\n")
    (tmp_path / "jobs" / "train.py").write_text(PROBE)
    (tmp_path / "jobs" / "__main__.py").write_text(PROBE)
    return tmp_path


def test_script_is_what_runs(folder: Path) -> None:
    assert run("jobs/train.py", cwd=folder) == str(folder / "jobs" / "train.py")


def test_script_run_as_module(folder: Path) -> None:
    assert run("-m", "jobs.train", cwd=folder) == str(folder / "jobs" / "train.py")
    assert run("-m", "jobs", cwd=folder) == str(folder / "jobs" / "__main__.py")


def test_script_under_installed_launcher() -> None:
    """pytest runs here: the job's code is where the function is."""

    def make_model() -> None: ...

    assert script_of(make_model) == Path(__file__)


def test_script_at_prompt(folder: Path) -> None:
    assert run("-c", PROBE, cwd=folder) == "None"


def test_script_of_unreadable_function() -> None:
    assert script_of(len) is None


@pytest.mark.parametrize("job", ["garden", "mnist"])
def test_job_help_imports(job: str, tmp_path: Path) -> None:
    """`--help` waits for neither torch, Lightning nor Optuna."""
    command = [sys.executable, "-X", "importtime", str(REPO / "tune_jobs" / f"{job}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    imported = {line.rpartition("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "ray.tune" in imported
    assert not imported & {"torch", "optuna", "lightning", "pytorch_lightning"}
    assert ("--data" in done.stdout) == (job == "mnist")


def test_copied_job_knows_no_mnist() -> None:
    """A job copied from mnist.py brings its own settings: the engine's name no data set."""
    from tune_jobs.engine.core.settings import LightningSettings, parse_settings

    with pytest.raises(SystemExit):
        parse_settings(LightningSettings, "A job.", ["--data", "digits"])
    words = [path.read_text().lower() for path in (REPO / "tune_jobs" / "engine").rglob("*.py")]
    assert not any("mnist" in text for text in words)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        (None, ["python", "jobs/train.py"]),
        ("jobs.train", ["python", "-m", "jobs.train"]),
        ("jobs.__main__", ["python", "-m", "jobs"]),
    ],
)
def test_resume_command_starts_job(
    module: str | None, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--seed", "1"])
    assert _own_command() == command
