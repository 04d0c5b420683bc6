"""What a function reports and returns, made safe and numbered: `FunctionSession`."""

import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any

from ray.tune.utils import flatten_dict

from tune_jobs.engine.core.errors import ScoreError
from tune_jobs.engine.core.result import CANNOT_RESUME, EPOCH, RETURNED
from tune_jobs.engine.trainable.internals import TrialSession

__all__ = ["Ended", "FunctionSession"]

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
        restored = self.restored_result
        self._metric = metric
        self._epoch = int(restored.get(EPOCH, 0))
        offset = self._epoch - _whole(restored.get("epoch")) if self._epoch else None
        self._offset = offset if offset in (0, 1) else None  # of the function's own epochs
        self._counts = self._epoch > 0 and self._offset is None
        self._names: set[str] = set()
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
        if self._find(result, "tune.report gave"):
            result[EPOCH] = self._next_epoch(result.get("epoch"))
            self._say_whether_it_resumes(result, checkpoint)
        super().report(result, checkpoint=checkpoint)
        if is_done:
            raise Ended

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
        if not self._find(returned, "the function returned") and not self._epoch:
            raise self._no_metric(f"it returned a dict with {_listed(flatten_dict(returned))}")
        super().report({**returned, RETURNED: True})

    def _score_of(self, value: Any) -> float:
        score = _to_float(_plain(value))
        if score is None:
            raise ScoreError(
                f"the function returned {_shown(value)}; {ALLOWED}, or a dict with "
                f"{self._metric!r}, or None after tune.report."
            )
        return score

    def _find(self, result: dict[str, Any], said: str) -> bool:
        """Whether a result has the metric; it is made a float."""
        flat = flatten_dict(result)
        if self._metric not in flat:
            return False
        value = flat[self._metric]
        score = _to_float(value)
        if score is None:
            raise ScoreError(f"{said} {self._metric!r} = {_shown(value)}; {ALLOWED}.")
        _replace(result, self._metric, score)
        return True

    def _next_epoch(self, given: Any) -> int:
        epoch = _whole(given)
        if self._offset is None:
            self._offset = 1 if epoch == 0 else 0
        self._counts |= epoch < 0 or epoch + self._offset <= self._epoch
        self._epoch = self._epoch + 1 if self._counts else epoch + self._offset
        return self._epoch

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
    if isinstance(value, Mapping):
        return _to_plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    is_scalar = hasattr(value, "item") and getattr(value, "size", 0) == 1
    return value.item() if is_scalar else value


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
