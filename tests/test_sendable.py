"""What cannot be sent to the trials: named before anything is spent."""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tune_jobs.engine.core.errors import SettingsError
from tune_jobs.engine.trainable.sendable import (
    MAX_MB,
    check_functions,
    check_parts,
    sending,
)

LOCK = "TypeError: cannot pickle '_thread.lock' object"


class Holder:
    def __init__(self) -> None:
        self.parts = {"a": [1, threading.Lock()]}
        self.itself = self

    def score(self, config: dict[str, Any]) -> float:
        return 1.0


def closing_over(held: Any) -> Callable[[dict[str, Any]], float]:
    return lambda config: 0.0 if held is None else 1.0


def with_default(config: Any, lock: Any = threading.Lock()) -> float:  # noqa: B008
    return 1.0


with_default.__module__ = "__main__"  # as in a script, whose functions are sent by value


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (closing_over(threading.Lock()), f"held: {LOCK}"),
        (closing_over({"b": (threading.Lock(),)}), rf"held\['b'\]\[0\]: {LOCK}"),
        (closing_over(x for x in [1]), "held: TypeError: cannot pickle 'generator' object"),
        (closing_over(Holder()), rf"held.parts\['a'\]\[1\]: {LOCK}"),
        (Holder().score, rf"parts\['a'\]\[1\]: {LOCK}"),
        (functools.partial(closing_over(None), threading.Lock()), rf"\[0\]: {LOCK}"),
        (functools.partial(closing_over(None), key=threading.Lock()), rf"\['key'\]: {LOCK}"),
        (with_default, f"lock: {LOCK}"),
    ],
)
def test_check_functions_names_part(function: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"objective cannot be sent .* processes: {reason}. M"):
        check_functions(make_model=None, objective=function)


def test_check_functions_open_file(tmp_path: Path) -> None:
    with (
        (tmp_path / "log.txt").open("w") as file,
        pytest.raises(SettingsError, match="held: PicklingError: Cannot pickle files that are not"),
    ):
        check_functions(objective=closing_over(file))


def test_check_functions_trainer_kwargs() -> None:
    with pytest.raises(SettingsError, match=r"trainer_kwargs cannot .*\['callbacks'\]\[0\].parts"):
        check_functions(trainer_kwargs={"precision": 16, "callbacks": [Holder()]})


def test_check_functions_sendable() -> None:
    """What Ray sends today is not refused: arrays, lambdas, functions of functions."""
    check_functions(
        objective=closing_over(closing_over(np.zeros((1000, 1000)))),
        make_model=len,
        make_data=functools.partial(closing_over(print), 3),
        trainer_kwargs=None,
    )


def test_check_functions_too_large() -> None:
    """Ray's own error comes after the sweep has begun; arrays are not copied to be counted."""
    array = np.empty(MAX_MB * 10**6 + 1, dtype=np.uint8)
    with pytest.raises(SettingsError, match="objective holds 500 MB, and Ray sends at most 500 MB"):
        check_functions(objective=closing_over({"images": array}))


def test_check_parts_names_part() -> None:
    with pytest.raises(SettingsError, match=r"callbacks cannot be pickled, .*: \[0\].parts\['a'"):
        check_parts(scheduler=None, callbacks=[Holder()])


def test_sending_names_part() -> None:
    data = {"train": np.zeros(3), "lock": threading.Lock()}
    with (
        pytest.raises(SettingsError, match=rf"what load_data returns .*: \['lock'\]: {LOCK}. Retu"),
        sending(data),
    ):
        raise TypeError("Could not serialize the put value")


def test_sending_other_error() -> None:
    """An error that has nothing to do with the data is shown as it is."""
    with pytest.raises(MemoryError), sending({"train": np.zeros(3)}):
        raise MemoryError
