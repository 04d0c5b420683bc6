"""What the workers of a cluster import, sent along: our packages, and the job's folder.

`ray job submit --working-dir .` sends a folder by itself; a job that is run on a node of the
cluster would find its code there, and its trials on the other nodes would not.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

import tune_jobs
from tune_jobs.engine.core.settings import SettingsError

__all__ = ["check_kept", "code_to_ship"]

# Ray leaves out some of it by itself, but only of a `working_dir`.
NO_CODE = ["__pycache__", "*.pyc", ".?*", "venv", "*.pem", "*.key", "*.ckpt"]
OWN_PACKAGES = ("tune_jobs", "models")  # what this distribution installs, side by side


def code_to_ship(job: Path | None) -> dict[str, Any]:
    """A runtime environment with our packages, and the modules and packages beside the job.

    They come as `py_modules`: a `working_dir` would change where relative paths lead.

    Args:
        job: The folder of the job's file; None, in a notebook: the working directory.

    Returns:
        It; empty where Ray has sent the whole folder already.
    """
    if _has_working_dir():
        return {}
    home = Path(tune_jobs.__file__).parents[1]
    own = [home / name for name in OWN_PACKAGES]
    # Of two with one name the job's is sent: in the driver, too, it is found first.
    modules = {path.name: path for path in [*own, *_modules_beside(job or Path.cwd())]}
    return {
        "py_modules": [str(path) for path in modules.values() if path.exists()],
        "excludes": NO_CODE,
    }


def check_kept(folder: str) -> None:
    """Check that a folder outlives the job: Ray deletes its copy of the working directory.

    Raises:
        SettingsError: It lies in there.
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
