"""What the user's code raises in a trial, whatever its class: `run_users_code`, without Ray."""

import errno
import pickle
import sys
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import optuna
import pytest
import ray
from ray import tune
from ray.exceptions import ActorDiedError, RayTaskError

from tune_jobs.engine.core.errors import CheckpointError, MetricNotLoggedError, TrialFailedError
from tune_jobs.engine.core.result import PRUNED
from tune_jobs.engine.trainable.users_code import run_users_code


class TwoWordsError(Exception):
    """An exception that cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.stream = sys.stdout  # nor be pickled


class MuteError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def raising(error: BaseException) -> Callable[[], Any]:
    def train() -> None:
        raise error

    return train


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no such layer"), "ValueError", "ValueError: no such layer"),
        (ValueError("two\nlines"), "ValueError", "ValueError: two"),
        (KeyError("lr"), "KeyError", "KeyError: 'lr'"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (StopIteration("the end"), "StopIteration", "StopIteration: the end"),
        (StopAsyncIteration(), "StopAsyncIteration", "StopAsyncIteration"),
        (GeneratorExit("g"), "GeneratorExit", "GeneratorExit: g"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
        (SystemExit("units must be even"), "SystemExit", "SystemExit: units must be even"),
        (SystemExit(1), "SystemExit", "SystemExit: the code called sys.exit(1)"),
        (SystemExit(0), "SystemExit", "SystemExit: the code called sys.exit(0)"),
        (SystemExit(), "SystemExit", "SystemExit: the code called sys.exit()"),
        (BaseException("rare"), "BaseException", "BaseException: rare"),
        (TwoWordsError("a", "b"), "TwoWordsError", "TwoWordsError: a b"),
        (MuteError(), "MuteError", "MuteError: its text cannot be made"),
        (MemoryError(), "oom", "MemoryError"),
        (FileNotFoundError(2, "No such file", "x.csv"), "FileNotFoundError", "FileNotFoundError"),
        (ActorDiedError(), "ActorDiedError", "ActorDiedError: The actor died"),
        (HTTPError("u", 404, "not there", None, None), "HTTPError", "HTTPError: HTTP Error 404"),
        (ValueError("bad \udce9"), "ValueError", "ValueError: bad \\udce9"),
        (RayTaskError("f", "Traceback:\nKeyError: 'a'", KeyError("a")), "RayTaskError", "RayTask"),
        (ExceptionGroup("several", [KeyError("a")]), "ExceptionGroup", "ExceptionGroup: several"),
    ],
)
def test_error_of_users_code(error: BaseException, kind: str, message: str) -> None:
    """It comes as one exception that can be pickled, with the user's frames alone."""
    with pytest.raises(TrialFailedError) as caught:
        run_users_code(raising(error))
    failure = pickle.loads(pickle.dumps(caught.value))
    assert failure.kind == kind
    assert failure.message.startswith(message)
    assert "in train" in failure.traceback
    assert "users_code.py" not in failure.traceback.replace("test_users_code.py", "")


def test_error_that_hides_another() -> None:
    """In a `finally`, in an `except`, and as a cause: both are shown."""

    def in_finally() -> None:
        try:
            raise ValueError("no such layer")
        finally:
            {}["file"]

    def as_cause() -> None:
        try:
            raise ValueError("no such layer")
        except ValueError as error:
            raise KeyError("file") from error

    def deliberately() -> None:
        try:
            raise ValueError("no such layer")
        except ValueError:
            raise KeyError("file") from None

    for code in (in_finally, as_cause):
        with pytest.raises(TrialFailedError) as caught:
            run_users_code(code)
        assert caught.value.message == "KeyError: 'file' (after ValueError: no such layer)"
        text = caught.value.traceback
        assert text.index("ValueError: no such layer") < text.index("KeyError: 'file'")
    with pytest.raises(TrialFailedError) as caught:
        run_users_code(deliberately)
    assert "no such layer" not in caught.value.message + caught.value.traceback


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("cannot be stored"),
        MetricNotLoggedError("the model never logs 'x'"),
    ],
)
def test_error_that_the_driver_knows(error: Exception) -> None:
    """It passes as it is: what ended is not the trial's code."""
    with pytest.raises(type(error)) as caught:
        run_users_code(raising(error))
    assert caught.value is error


class FullError(OSError):
    """An error of the storage that cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(errno.ENOSPC, f"{first} {second}")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no room"), FullError("no", "room")])
def test_error_of_storage(error: OSError) -> None:
    """The driver tells it by its number."""
    with pytest.raises(OSError, match="no room") as caught:
        run_users_code(raising(error))
    known = pickle.loads(pickle.dumps(caught.value))
    assert (type(known), known.errno) == (OSError, errno.ENOSPC)


def test_rays_stop_passes() -> None:
    """Ray stops a trial with a SystemExit inside `tune.report`."""
    code = compile("def report(): raise SystemExit(0)", f"{ray.__path__[0]}/session.py", "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    with pytest.raises(SystemExit) as caught:
        run_users_code(lambda: names["report"]())
    assert caught.value.code == 0


def test_pruned_by_users_code(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Any] = []
    monkeypatch.setattr(tune, "report", reports.append)
    assert run_users_code(raising(optuna.TrialPruned("makes no sense"))) is None
    assert reports == [{PRUNED: "makes no sense"}]


def test_value_of_users_code() -> None:
    assert run_users_code(lambda: 0.5) == 0.5
