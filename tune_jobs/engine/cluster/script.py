"""The script that a job is: `script_of`."""

import inspect
import site
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["script_of"]


def script_of(function: Callable[..., Any]) -> Path | None:
    """The file of the script that runs; None in a notebook or at a prompt.

    If an installed launcher runs (pytest, `accelerate`), it is the file of the function, since the
    job's code is there.

    Args:
        function: One that the job gave to the sweep.
    """
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is None:
        return None
    script = Path(main).resolve()
    if script.suffix == ".py" and not _is_installed(script):
        return script
    try:
        file = Path(inspect.getfile(inspect.unwrap(function))).resolve()
    except (TypeError, OSError):
        return None
    return file if file.is_file() else None


def _is_installed(script: Path) -> bool:
    folders = [sysconfig.get_path(name) for name in ("scripts", "purelib", "platlib", "stdlib")]
    folders.append(site.getusersitepackages())
    return any(script.is_relative_to(Path(folder).resolve()) for folder in folders)
