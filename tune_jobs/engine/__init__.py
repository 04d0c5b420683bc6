"""The machinery: `run_sweep` from Python, `run_job` for a script.

The public names are imported when they are first used, so that `--help` of a job need not wait for
Optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_jobs.engine.core.errors import SettingsError, SweepFailedError
    from tune_jobs.engine.core.loaded import Loaded
    from tune_jobs.engine.core.progress import Progress
    from tune_jobs.engine.core.settings import (
        EpochSettings,
        LightningSettings,
        Settings,
        fixed,
        momentary,
    )
    from tune_jobs.engine.job import run_job
    from tune_jobs.engine.report.result import SweepResult
    from tune_jobs.engine.store.study import load_study
    from tune_jobs.engine.sweep import run_sweep

__all__ = [
    "EpochSettings",
    "LightningSettings",
    "Loaded",
    "Progress",
    "Settings",
    "SettingsError",
    "SweepFailedError",
    "SweepResult",
    "fixed",
    "load_study",
    "momentary",
    "run_job",
    "run_sweep",
]

_MODULES = {
    "EpochSettings": "core.settings",
    "LightningSettings": "core.settings",
    "Loaded": "core.loaded",
    "Progress": "core.progress",
    "Settings": "core.settings",
    "SettingsError": "core.errors",
    "SweepFailedError": "core.errors",
    "SweepResult": "report.result",
    "fixed": "core.settings",
    "load_study": "store.study",
    "momentary": "core.settings",
    "run_job": "job",
    "run_sweep": "sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
