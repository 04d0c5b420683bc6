"""The code that the workers of a cluster need: our package, and the modules beside the job.

`ray job submit --working-dir .` sends a folder by itself. A job that is started on a node of the
cluster finds its code there, but its trials on other nodes would not.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tune_jobs
from tune_jobs.engine.cluster.internals import RAY_JOB_CONFIG_JSON_ENV_VAR
from tune_jobs.engine.core.errors import SettingsError

__all__ = ["check_kept", "code_to_ship"]

# Ray leaves some of these out by itself, but only of a `working_dir`.
NO_CODE = ["__pycache__", "*.pyc", ".?*", "venv", "*.pem", "*.key", "*.ckpt"]


def code_to_ship(job: Path | None) -> dict[str, Any]:
    """A runtime environment with our package, and the modules and packages beside the job.

    They are sent as `py_modules`: a `working_dir` would change what relative paths mean.

    Args:
        job: The folder of the job's file; None, in a notebook: the working directory.

    Returns:
        The environment; empty if Ray has sent the whole folder already.
    """
    if _has_working_dir():
        return {}
    own = Path(tune_jobs.__file__).parent
    modules = [own]
    if (own.parent / "pyproject.toml").exists():  # a checkout, whose jobs use its `models`
        modules.append(own.parent / "models")
    modules += _modules_beside(job or Path.cwd())
    # Of two with one name the job's is sent: the driver, too, finds it first.
    by_name = {path.name: path for path in modules if path.exists()}
    return {"py_modules": [str(path) for path in by_name.values()], "excludes": NO_CODE}


def check_kept(folder: str) -> None:
    """Check that a folder outlives the job: Ray deletes its copy of the working directory.

    Raises:
        SettingsError: It is inside that copy.
    """
    if _has_working_dir() and Path(folder).is_relative_to(Path.cwd()):
        raise SettingsError(
            f"storage_path {folder} is in the copy of the working directory, which Ray deletes "
            "after the job; name another with --storage-path or TUNE_JOBS_STORAGE_PATH."
        )


def _has_working_dir() -> bool:
    config = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}")
    return "working_dir" in (config.get("runtime_env") or {})


def _modules_beside(job: Path) -> Iterator[Path]:
    """Modules and packages that the job may import: those of its folder, or its whole package."""
    if (job / "__init__.py").exists():
        while (job.parent / "__init__.py").exists():
            job = job.parent
        yield job
        return
    for path in sorted(job.iterdir()):
        is_package = path.is_dir() and any(path.glob("*.py"))
        if not path.name.startswith(".") and (is_package or path.suffix == ".py"):
            yield path
