"""What a function reports and returns: `FunctionSession`, without Ray behind it."""

import json
import math
import pickle
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tune_jobs.engine.core.errors import ScoreError
from tune_jobs.engine.core.result import CANNOT_RESUME, EPOCH, RETURNED
from tune_jobs.engine.trainable.internals import RESTORED, TrialSession
from tune_jobs.engine.trainable.reports import Ended, FunctionSession

CHECKPOINT = object()


class Session(FunctionSession):
    """A session whose reports are kept, not given to Tune."""

    def __init__(self, metric: str = "loss", restored: dict[str, Any] | None = None) -> None:
        self._state: dict[str, Any] = {RESTORED: restored}
        self.heard: list[dict[str, Any]] = []
        self.loaded_checkpoint = None
        self.begin(metric)

    @property
    def epochs(self) -> list[int]:
        return [result[EPOCH] for result in self.heard if "loss" in result and EPOCH in result]


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(self: Session, metrics: dict[str, Any], checkpoint: Any = None) -> None:
        self.heard.append(metrics)

    monkeypatch.setattr(TrialSession, "report", report)


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        ([None, None, None], [1, 2, 3]),
        ([1, 2, 3], [1, 2, 3]),
        ([0, 1, 2], [1, 2, 3]),
        ([5, 10, 20], [5, 10, 20]),
        ([1.0, np.int64(2), torch.tensor(3)], [1, 2, 3]),
        ([1, 1, 1, 2, 2], [1, 2, 3, 4, 5]),
        ([0, 0, 1, 1], [1, 2, 3, 4]),
        ([0.5, 1.0, 1.5, 2.0], [1, 2, 3, 4]),
        ([10, 20, 20, 30], [10, 20, 21, 22]),
        ([3, 2, 1], [3, 4, 5]),
        ([-1, 0, 1], [1, 2, 3]),
        ([True, True], [1, 2]),
        (["first", "second"], [1, 2]),
        ([math.nan, math.inf], [1, 2]),
        ([[1, 2], {}], [1, 2]),
    ],
)
def test_session_numbers_epochs(given: list[Any], epochs: list[int]) -> None:
    """Whole, growing epochs are the function's; otherwise reports are counted, and none is lost."""
    session = Session()
    for epoch in given:
        session.report({"loss": 0.5} if epoch is None else {"loss": 0.5, "epoch": epoch})
    assert session.epochs == epochs


def test_session_keeps_users_epoch() -> None:
    session = Session()
    session.report({"loss": 0.5, "epoch": 0.25})
    assert session.heard[0]["epoch"] == 0.25


@pytest.mark.parametrize(
    ("restored", "given", "epochs"),
    [
        ({EPOCH: 4, "epoch": 4}, [5, 6], [5, 6]),
        ({EPOCH: 4, "epoch": 3}, [4, 5], [5, 6]),  # it counts from 0
        ({EPOCH: 4, "epoch": 2.0}, [3, 4], [5, 6]),  # it reports each epoch twice
        ({EPOCH: 4}, [None, None], [5, 6]),
        ({EPOCH: 4, "epoch": 4}, [1, 2], [5, 6]),  # it counts from 1 again
        (None, [1, 2], [1, 2]),
    ],
)
def test_session_numbers_epochs_resumed(
    restored: dict[str, Any] | None, given: list[Any], epochs: list[int]
) -> None:
    session = Session(restored=restored)
    for epoch in given:
        session.report({"loss": 0.5} if epoch is None else {"loss": 0.5, "epoch": epoch})
    assert session.epochs == epochs


SCORES = [
    0.5,
    np.float32(0.5),
    np.array(0.5),
    np.array([0.5]),
    torch.tensor(0.5),
    torch.tensor([[0.5]], requires_grad=True),
    Decimal("0.5"),
    Fraction(1, 2),
    [0.5],
]


@pytest.mark.parametrize("score", SCORES, ids=repr)
@pytest.mark.parametrize("returns", [True, False])
def test_session_takes_number(score: Any, returns: bool) -> None:
    session = Session()
    if returns:
        session.report_returned(score)
        session.report_returned({"loss": score})
    else:
        session.report({"loss": score})
    for result in session.heard:
        assert result["loss"] == 0.5
        assert type(result["loss"]) is float


@pytest.mark.parametrize(("score", "expected"), [(True, 1.0), (3, 3.0), (-0.0, 0.0)])
def test_session_takes_other_number(score: Any, expected: float) -> None:
    session = Session()
    session.report_returned(score)
    assert session.heard == [{"loss": expected, RETURNED: True}]


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        (None, "None"),
        ("0.5", "'0.5'"),
        (b"0.5", "b'0.5'"),
        (np.array([0.5, 0.6]), r"array\(\[0.5, 0.6\]\)"),
        (torch.ones(2), r"tensor\(\[1., 1.\]\)"),
        ([0.5, 0.6], r"\[0.5, 0.6\]"),
        ((), r"\(\)"),
        (1j, "1j"),
        (max, "<built-in function max>"),
        ("x" * 999, r"'xxxx.*\.\.\. \(str\)"),
    ],
)
def test_session_refuses_no_number(score: Any, shown: str) -> None:
    """Neighbors in one sentence: what came, and what may come."""
    with pytest.raises(ScoreError, match=r"the function returned .*; it must|it returned None"):
        Session().report_returned(score)
    with pytest.raises(ScoreError, match=f"tune.report gave 'loss' = {shown}"):
        Session().report({"loss": score})
    if score is not None:
        with pytest.raises(ScoreError, match=f"the function returned 'loss' = {shown}; it must"):
            Session().report_returned({"loss": score})


@pytest.mark.parametrize("value", [0.5, "text", None, [0.5], {1, 2}])
def test_session_report_takes_dict(value: Any) -> None:
    with pytest.raises(ScoreError, match=r"tune.report takes a dict of metrics, got "):
        Session().report(value)


@pytest.mark.parametrize(
    ("metrics", "metric"),
    [
        ({"val": {"loss": torch.tensor(0.5)}}, "val/loss"),
        ({"val/loss": np.float64(0.5)}, "val/loss"),
        ({"a": {"b/c": {"d": 0.5}}}, "a/b/c/d"),
        ({"val": {1: [0.5]}}, "val/1"),
    ],
)
def test_session_nested_metric(metrics: dict[str, Any], metric: str) -> None:
    from ray.tune.utils import flatten_dict

    session = Session(metric)
    session.report(metrics)
    session.report_returned(metrics)
    for result in session.heard:
        assert flatten_dict(result)[metric] == 0.5


def test_session_report_without_metric() -> None:
    """It passes, and is no epoch."""
    session = Session()
    session.report({"step_loss": torch.tensor(0.1), "lr": np.float32(0.5), "epoch": 7})
    session.report({"loss": 0.5})
    expected = {"step_loss": pytest.approx(0.1), "lr": 0.5, "epoch": 7, EPOCH: 0}
    assert session.heard[0] == expected
    assert session.epochs == [1]


def test_session_no_tensor_passes() -> None:
    """Ray refuses a report that holds one."""
    session = Session()
    half = torch.tensor([0.5, 1.5], dtype=torch.bfloat16)
    metrics = {"all": [torch.ones(2), half], "grad": {"a": torch.zeros(1)}, "acc": half[0]}
    session.report({"loss": half[0], **metrics, "sparse": torch.eye(2).to_sparse()})
    (result,) = session.heard
    assert result == {
        "loss": 0.5,
        "all": [[1.0, 1.0], [0.5, 1.5]],
        "grad": {"a": 0.0},
        "acc": 0.5,
        "sparse": [[1.0, 0.0], [0.0, 1.0]],
        EPOCH: 1,
        **no_checkpoint(),
    }


class Local:
    """A class that a driver may lack."""

    def __reduce__(self) -> Any:
        raise ZeroDivisionError


def test_session_what_any_driver_can_read() -> None:
    """Neither an object that cannot be pickled nor one whose class the driver lacks ends it."""
    session = Session()
    path, lock = Path("x.csv"), threading.Lock()
    session.report({"loss": 0.5, "a": Local(), "b": [lock], "c": path, "d": None, "e": "text"})
    kept = {name: session.heard[0][name] for name in "abcde"}
    assert json.loads(json.dumps(kept)) == kept
    assert (kept["c"], kept["d"], kept["e"]) == ("x.csv", None, "text")
    pickle.dumps(session.heard)


def test_session_stopped_once_stops_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report in a `finally` comes after Ray has stopped the trial: Ray would wait forever."""

    def stop(self: Session, metrics: dict[str, Any], checkpoint: Any = None) -> None:
        self.heard.append(metrics)
        raise SystemExit(0)

    monkeypatch.setattr(TrialSession, "report", stop)
    session = Session()
    for _ in range(3):
        with pytest.raises(SystemExit):
            session.report({"loss": 0.5})
    with pytest.raises(SystemExit):
        session.report_returned(0.5)
    assert len(session.heard) == 1


def test_session_metric_never_given() -> None:
    session = Session()
    session.report({"acc": 0.5, "val": {"los": 1}})
    with pytest.raises(ScoreError) as caught:
        session.report_returned(None)
    assert str(caught.value) == (
        "the function never gave 'loss': it returned None, and reported acc, val/los; return a "
        "number or a dict with 'loss', or report it with tune.report({'loss': ...})."
    )
    with pytest.raises(ScoreError, match="it returned a dict with size, and reported nothing"):
        Session().report_returned({"size": 3})


@pytest.mark.parametrize("value", [None, {"size": 3}])
def test_session_metric_reported_before(value: Any) -> None:
    """The best report is the score, also where it was reported before a pause."""
    session = Session()
    session.report({"loss": 0.5})
    session.report_returned(value)
    resumed = Session(restored={EPOCH: 3})
    resumed.report_returned(value)
    assert [RETURNED in result for result in resumed.heard] == ([] if value is None else [True])


def test_session_done_ends_trial() -> None:
    session = Session()
    with pytest.raises(Ended):
        session.report({"loss": 0.5, "done": True})
    assert session.heard[0] == {"loss": 0.5, EPOCH: 1, **no_checkpoint()}


def no_checkpoint() -> dict[str, str]:
    return {CANNOT_RESUME: "the function reports no checkpoint to resume from."}


def test_session_says_whether_it_resumes() -> None:
    session = Session()
    session.report({"loss": 0.5})
    session.report({"loss": 0.5}, checkpoint=CHECKPOINT)
    assert session.loaded_checkpoint is None  # as `tune.get_checkpoint` asks
    session.report({"loss": 0.5}, checkpoint=CHECKPOINT)
    reasons = [result.get(CANNOT_RESUME) for result in session.heard]
    assert reasons[0] == no_checkpoint()[CANNOT_RESUME]
    assert "does not call tune.get_checkpoint()" in str(reasons[1])
    assert reasons[2] is None
