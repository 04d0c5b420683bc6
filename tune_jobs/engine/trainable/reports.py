"""What a function reports and returns, made safe and numbered: `FunctionSession`."""

import math
import numbers
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.errors import ScoreError
from tune_jobs.engine.core.readable import readable
from tune_jobs.engine.core.result import CANNOT_RESUME, EPOCH, RETURNED
from tune_jobs.engine.trainable.internals import TrialSession

__all__ = ["Ended", "FunctionSession"]

NUMBERS = (numbers.Number, Decimal)  # `readable` would make text of some
ALLOWED = "it must be one number: Python's, NumPy's or torch's"


class Ended(BaseException):
    """The function has reported `done`, by which Tune's users end a trial."""


class FunctionSession(TrialSession):
    """Stands between a function's `tune.report` and Tune.

    - A report without the metric passes; one whose metric is no number raises in the function, and
      so fails that trial alone. Scalars of NumPy and torch become Python's: Ray refuses tensors.
    - Reports with the metric are numbered: they are the function's epochs, unless it reports
      `epoch` as whole, growing numbers. Those may begin at 0, after the first epoch.
    - Each says whether the trial could be resumed from here.
    """

    def begin(self, metric: str) -> None:
        """Prepare for a trial that starts or resumes."""
        self._metric = metric
        self._epoch = int(self.restored_result.get(EPOCH, 0))
        self._offset: int | None = None  # of the function's own epochs
        self._counts = False  # whether its reports are counted instead
        self._names: set[str] = set()
        self._is_stopped = False
        self.was_asked = False

    @property
    def epoch(self) -> int:
        """The last epoch that was reported."""
        return self._epoch

    def report(self, metrics: Any, checkpoint: Any = None) -> None:
        """Report to Tune, as `tune.report` does.

        Raises:
            ScoreError: The metric is no number.
        """
        result = _to_plain(metrics)
        is_done = result.pop("done", False)
        self._names.update(flatten_dict(result))
        if self._find(result, metrics, "tune.report gave"):
            self._epoch = self._next_epoch(result.get("epoch"))
            self._say_whether_it_resumes(result, checkpoint)
        self._send({**result, EPOCH: self._epoch}, checkpoint)
        if is_done:
            raise Ended

    def _send(self, result: dict[str, Any], checkpoint: Any = None) -> None:
        """Give a result to Tune, which may stop the trial here.

        Once stopped, it is stopped again at every further report, as one in a `finally`: Ray would
        wait there forever.
        """
        if self._is_stopped:
            sys.exit(0)
        try:
            super().report(result, checkpoint=checkpoint)
        except SystemExit:
            self._is_stopped = True
            raise

    def report_returned(self, value: Any) -> None:
        """Report what the function returned.

        Raises:
            ScoreError: It is no number and no dict, or there is no metric to the end.
        """
        if value is None and self._epoch:
            return
        if value is None:
            raise self._no_metric("it returned None")
        if not isinstance(value, Mapping):
            value = {self._metric: self._score_of(value)}
        returned = _to_plain(value)
        if not self._find(returned, value, "the function returned") and not self._epoch:
            raise self._no_metric(f"it returned a dict with {_listed(flatten_dict(returned))}")
        self._send({**returned, RETURNED: True})

    def _score_of(self, value: Any) -> float:
        score = _to_float(_plain(value))
        if score is None:
            raise ScoreError(
                f"the function returned {_shown(value)}; {ALLOWED}, or a dict with "
                f"{self._metric!r}, or None after tune.report."
            )
        return score

    def _find(self, result: dict[str, Any], given: Mapping[Any, Any], said: str) -> bool:
        """Whether a result has the metric; it is made a float."""
        flat = flatten_dict(result)
        if self._metric not in flat:
            return False
        score = _to_float(flat[self._metric])
        if score is None:
            shown = _shown(given.get(self._metric, flat[self._metric]))
            raise ScoreError(f"{said} {self._metric!r} = {shown}; {ALLOWED}.")
        _replace(result, self._metric, score)
        result[self._metric] = score  # Ray looks for it there when it ranks checkpoints
        return True

    def _next_epoch(self, given: Any) -> int:
        epoch = _whole(given)
        if self._offset is None:  # those that begin at 0 are one behind, also after a resume
            self._offset = 1 if epoch == self._epoch else 0
        self._counts |= epoch < 0 or epoch + self._offset <= self._epoch
        return self._epoch + 1 if self._counts else epoch + self._offset

    def _say_whether_it_resumes(self, result: dict[str, Any], checkpoint: Any) -> None:
        if checkpoint is None:
            result[CANNOT_RESUME] = "the function reports no checkpoint to resume from."
        elif not self.was_asked:
            result[CANNOT_RESUME] = (
                "the function reports checkpoints, and does not call tune.get_checkpoint() to "
                "resume from one."
            )

    def _no_metric(self, returned: str) -> ScoreError:
        return ScoreError(
            f"the function never gave {self._metric!r}: {returned}, and reported "
            f"{_listed(self._names)}; return a number or a dict with {self._metric!r}, or report "
            f"it with tune.report({{{self._metric!r}: ...}})."
        )


def _to_float(value: Any) -> float | None:
    """A number as Python's float; None: it is none."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return _to_float(value[0])
    if not isinstance(value, numbers.Real) and not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _whole(value: Any) -> int:
    """A whole number that is not negative; else -1."""
    number = None if isinstance(value, bool) else _to_float(value)
    is_whole = number is not None and math.isfinite(number) and number == int(number)
    return int(number) if is_whole and number >= 0 else -1  # type: ignore[arg-type,operator]


def _to_plain(metrics: Any) -> dict[str, Any]:
    """A copy of metrics without tensors and NumPy scalars."""
    if not isinstance(metrics, Mapping):
        raise ScoreError(f"tune.report takes a dict of metrics, got {_shown(metrics)}.")
    return {str(name): _plain(value) for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    """What any driver can read: it may lack the classes of the trial, or a GPU."""
    if isinstance(value, Mapping):
        return _to_plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().to_dense().cpu()
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        value = value.item()
    is_array = isinstance(value, np.ndarray) and not value.dtype.hasobject
    return value if is_array or isinstance(value, NUMBERS) else readable(value)


def _replace(tree: dict[str, Any], path: str, value: Any) -> None:
    """Replace the value at a flat name in a nested dict."""
    for name in tree:
        if name == path:
            tree[name] = value
        elif path.startswith(f"{name}/") and isinstance(tree[name], dict):
            _replace(tree[name], path.removeprefix(f"{name}/"), value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({type(value).__name__})"


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
