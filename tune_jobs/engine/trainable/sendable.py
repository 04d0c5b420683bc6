"""Whether what the trials and Tune need can be pickled: `check_functions`, `sending`."""

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pickle import PickleBuffer
from types import FunctionType, MethodType, ModuleType
from typing import Any

from ray import cloudpickle

from tune_jobs.engine.core.errors import SettingsError

__all__ = ["check_functions", "check_parts", "sending"]

DEPTH = 8  # of the search for the part that cannot be pickled
MAX_MB = 500  # Ray sends a function in one message, of at most 512 MiB


def check_functions(**functions: Any) -> None:
    """Check that the functions that trials call can be sent to them.

    Args:
        functions: Name of the argument of `run_sweep` -> what it was given.

    Raises:
        SettingsError: One cannot, or is too large; the message names what it holds.
    """
    for name, function in functions.items():
        file = _Nowhere()
        error = _try_to_pickle(function, file)
        if file.size > MAX_MB * 1e6:
            raise SettingsError(
                f"{name} holds {file.size / 1e6:.0f} MB, and Ray sends at most {MAX_MB} MB with a "
                "function; load the data in load_data, or inside the function."
            )
        if error is not None:
            reason = _why_unsendable(function)
            raise SettingsError(
                f"{name} cannot be sent to the trials, which run in other processes: {reason}. "
                "Make or open that once the trial runs: inside the function, or in a hook."
            )


def check_parts(**parts: Any) -> None:
    """Check that Tune can pickle its callbacks and its scheduler, which it does as it starts.

    Args:
        parts: Name of the argument of `run_sweep` -> what it was given.

    Raises:
        SettingsError: One cannot be pickled; the message names what it holds.
    """
    for name, part in parts.items():
        if reason := _why_unsendable(part):
            raise SettingsError(
                f"{name} cannot be pickled, as Ray Tune does when it starts: {reason}. "
                "Make or open that later, in a callback's `setup` for example."
            )


@contextmanager
def sending(data: Any) -> Iterator[None]:
    """Explain an error in sending the data to the trials.

    They are not pickled beforehand: that would take as much time and memory again.

    Raises:
        SettingsError: They cannot be pickled; the message names what they hold.
    """
    try:
        yield
    except Exception as error:
        if reason := _why_unsendable(data):
            raise SettingsError(
                "what load_data returns cannot be sent to the trials, which run in other "
                f"processes: {reason}. Return what it is made from, such as a path or an array, "
                "and make it in the functions that get the data."
            ) from error
        raise


class _Nowhere:
    """A file that keeps nothing but its size."""

    size = 0

    def write(self, content: Any) -> int:
        self.size += memoryview(content).nbytes
        return len(content)

    def pass_by(self, buffer: PickleBuffer) -> None:
        """Take in an array, which is not copied."""
        self.size += buffer.raw().nbytes


def _why_unsendable(value: Any) -> str | None:
    found = _find(value, "", ())
    if found is None:
        return None
    path, error = found
    text = str(error).partition("\n")[0]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{path.lstrip('.')}: {said}" if path else said


def _find(value: Any, path: str, around: tuple[int, ...]) -> tuple[str, Exception] | None:
    """The innermost part that cannot be pickled, and the error; None: all of it can.

    Args:
        value: What is searched.
        path: What leads there.
        around: The ids of the values that hold it.
    """
    error = None if id(value) in around else _try_to_pickle(value, _Nowhere())
    if error is None:
        return None
    if len(around) < DEPTH:
        for name, part in _parts_of(value):
            if found := _find(part, path + name, (*around, id(value))):
                return found
    return path, error


def _try_to_pickle(value: Any, file: _Nowhere) -> Exception | None:
    try:
        cloudpickle.CloudPickler(file, protocol=5, buffer_callback=file.pass_by).dump(value)
    except Exception as error:
        return error
    return None


def _parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with the text that leads there."""
    if isinstance(value, FunctionType):
        yield from _named(_variables_of(value))
    elif isinstance(value, MethodType):
        yield from _named(_attributes_of(value.__self__))
        yield "", value.__func__
    elif isinstance(value, functools.partial):
        yield from [
            ("", value.func),
            *_indexed(value.keywords),
            *_indexed(dict(enumerate(value.args))),
        ]
    elif isinstance(value, Mapping):
        yield from _indexed(value)
    elif isinstance(value, (list, tuple)):
        yield from _indexed(dict(enumerate(value)))
    elif not isinstance(value, ModuleType):
        yield from _named(_attributes_of(value))


def _variables_of(function: FunctionType) -> dict[str, Any]:
    variables = inspect.getclosurevars(function)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    return {**variables.globals, **variables.nonlocals, **defaults}


def _attributes_of(value: Any) -> dict[str, Any]:
    return dict(getattr(value, "__dict__", {}))


def _named(parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((f".{name}", part) for name, part in parts.items())


def _indexed(parts: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    return ((f"[{name!r}]", part) for name, part in parts.items())
