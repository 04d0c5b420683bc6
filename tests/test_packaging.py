"""What a user installs: the wheel beside other people's packages, and a fresh clone.

Each is installed into an empty virtual environment. Its dependencies are those of the environment
that runs the tests, put on its path; the project itself is not found there, because a folder that a
`.pth` file names has its own `.pth` files ignored, and they are what makes an install editable.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.long]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end, without this process's PYTHONPATH, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_clone(folder: Path) -> Path:
    """Copy the files that Git tracks or would add, as they are now."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPO)
    for name in listed.split("\0"):
        if (REPO / name).is_file():  # one that was deleted is listed until that is committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, folder / name)
    return folder


def make_venv(folder: Path) -> Path:
    """Make an empty environment that finds this one's packages; return its site-packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "outer.pth").write_text("\n".join(outer))
    return site


def install(venv: Path, *what: str | Path) -> None:
    # --ignore-installed: pip sees the outer environment's install too, and must leave it alone.
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    run(venv / "bin" / "python", "-m", "pip", "install", *options, *what, cwd=venv)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist of the working tree, and the wheel that was built from this sdist."""
    folder = tmp_path_factory.mktemp("dist")
    clone = copy_clone(tmp_path_factory.mktemp("clone"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, clone, cwd=clone)
    return folder


def test_wheel_holds_engine_and_doctor(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    rooms = [*REPO.glob("tune_jobs/engine/**/*.py"), *REPO.glob("tune_jobs/doctor/**/*.py")]
    expected = {path.relative_to(REPO).as_posix() for path in rooms}
    assert names == expected | {"tune_jobs/__init__.py", "tune_jobs/cli.py"}


def test_wheel_holds_license(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/LICENSE")]
    assert zipfile.ZipFile(wheel).read(name) == (REPO / "LICENSE").read_bytes()


def test_sdist_holds_jobs_and_models(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"LICENSE", "README.md", "constraints.txt", "tests/test_packaging.py"} <= names
    assert {"tune_jobs/mnist.py", "models/mlp.py", "tune_jobs/engine/job.py"} <= names
    assert not {name for name in names if name.startswith(("results/", "data/", ".git/"))}


FOREIGN_MODELS = """
def score(x):
    return 1000 + x
"""

FOREIGN_JOB = """
import json

import models
import tune_jobs
from ray import tune
from tune_jobs.engine import Settings, run_job, run_sweep


def objective(config):
    return models.score(config["x"])


def main(settings):
    return run_sweep(
        settings, space={"x": tune.uniform(0, 1)}, metric="m", mode="max", objective=objective
    )


if __name__ == "__main__":
    print(json.dumps([tune_jobs.__file__, models.__file__]))
    run_job(main, Settings, "A job of another project.")
"""


def test_wheel_beside_foreign_models(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv, project = tmp_path / "venv", tmp_path / "project"
    site = make_venv(venv)
    foreign = site / "models" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text(FOREIGN_MODELS)
    install(venv, wheel)
    project.mkdir()
    (project / "job.py").write_text(FOREIGN_JOB)

    args = ["--num-trials", "2", "--gpus-per-trial", "0", "--name", "w"]
    printed = run(venv / "bin" / "python", "job.py", *args, cwd=project)
    assert json.loads(printed.splitlines()[0]) == [
        str(site / "tune_jobs" / "__init__.py"),
        str(foreign),
    ]
    best = json.loads((project / "results" / "w" / "best.json").read_text())
    assert best["score"] == 1000 + best["config"]["x"]  # in the trials' processes too
    assert foreign.read_text() == FOREIGN_MODELS
    assert "doctor" in run(venv / "bin" / "tune-jobs", "--help", cwd=project)


def test_editable_clone_runs_mnist(tmp_path: Path) -> None:
    clone, venv, elsewhere = tmp_path / "clone", tmp_path / "venv", tmp_path / "elsewhere"
    copy_clone(clone)
    elsewhere.mkdir()
    make_venv(venv)
    install(venv, "--editable", clone)

    where = "import models, tune_jobs; print(models.__path__[0], tune_jobs.__path__[0])"
    found = run(venv / "bin" / "python", "-c", where, cwd=elsewhere)
    assert found.split() == [str(clone / "models"), str(clone / "tune_jobs")]
    args = ["--data", "digits", "--num-trials", "2", "--max-epochs", "1", "--gpus-per-trial", "0"]
    job = clone / "tune_jobs" / "mnist.py"
    run(venv / "bin" / "python", job, *args, "--name", "e", cwd=elsewhere)
    best = json.loads((elsewhere / "results" / "e" / "best.json").read_text())
    assert best["score"] > 0
    assert "doctor" in run(venv / "bin" / "tune-jobs", "--help", cwd=elsewhere)
