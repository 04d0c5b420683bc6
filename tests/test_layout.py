"""Who may import whom: the models know no engine, the engine knows no job."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def imports(source: str, package: str) -> set[str]:
    """Full names of everything that a file of this package imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def forbidden(folder: str, *modules: str) -> list[str]:
    files = sorted((REPO / folder).rglob("*.py"))
    assert files, f"{folder} holds no Python file"
    return [
        f"{file.relative_to(REPO)} imports {name}"
        for file in files
        for name in imports(file.read_text(), ".".join(file.relative_to(REPO).parent.parts))
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    ]


def test_models_import_neither_ray_nor_tune_jobs() -> None:
    assert forbidden("models", "ray", "tune_jobs") == []


def test_engine_imports_neither_models_nor_jobs() -> None:
    assert forbidden("tune_jobs/engine", "models", "tune_jobs.garden", "tune_jobs.mnist") == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import models.mlp", "models.mlp"),
        ("from tune_jobs import garden", "tune_jobs.garden"),
        ("def f():\n    from .. import mnist", "tune_jobs.mnist"),
        ("from ..garden import run", "tune_jobs.garden"),
        ("from .job import x", "tune_jobs.engine.job"),
    ],
)
def test_every_way_to_import_is_seen(source: str, name: str) -> None:
    assert name in imports(source, "tune_jobs.engine")


@pytest.mark.slow
def test_wheel_holds_tune_jobs_and_models_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(REPO, source, ignore=shutil.ignore_patterns(".*", "build", "results", "data"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    folders = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {
        "tune_jobs",
        "models",
    }


@pytest.mark.parametrize(
    "job", sorted((REPO / "tune_jobs").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_job_is_short_enough_to_copy(job: Path) -> None:
    assert len(job.read_text().splitlines()) <= 90
    assert forbidden(str(job.relative_to(REPO).parent), "argparse") == []
