"""The machinery: `run_sweep` from Python, `run_job` for a script."""

from tune_jobs.engine.core.settings import LightningSettings, Settings, SettingsError
from tune_jobs.engine.job import run_job
from tune_jobs.engine.report.results import Sweep, SweepFailedError
from tune_jobs.engine.store.study import load_study
from tune_jobs.engine.sweep import run_sweep

__all__ = [
    "LightningSettings",
    "Settings",
    "SettingsError",
    "Sweep",
    "SweepFailedError",
    "load_study",
    "run_job",
    "run_sweep",
]
