"""What the user's code raised: in one line, and with the user's own frames."""

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from traceback import TracebackException

import ray
from ray.exceptions import RayTaskError

from tune_jobs.engine.core.memory import is_out_of_memory
from tune_jobs.engine.core.outcome import Cause, Kind, Outcome

__all__ = ["HIDDEN", "one_line", "outcome_of_raised"]

# Whose frames are not shown: the engine's and Ray's.
HIDDEN = (f"{Path(__file__).parents[1]}{os.sep}", f"{Path(ray.__file__).parent}{os.sep}")


def outcome_of_raised(error: BaseException) -> Outcome:
    """The outcome of a trial whose code raised.

    An error that hides another, as one in a `finally` does, is shown with it.
    """
    kind = Kind.OUT_OF_MEMORY if is_out_of_memory(error) else type(error).__name__
    shown = TracebackException.from_exception(error)
    for part in _chain(shown):
        own = [frame for frame in part.stack if not frame.filename.startswith(HIDDEN)]
        part.stack = traceback.StackSummary.from_list(own)
    text = "".join(shown.format()).rstrip()
    return Outcome(kind, Cause.TRIAL, _printable(_message_of(error)), _printable(text))


def _printable(text: str) -> str:
    """Without lone surrogates, as undecodable file names have them: nothing can write those."""
    return text.encode("utf-8", "backslashreplace").decode()


def _chain(shown: TracebackException) -> Iterator[TracebackException]:
    """An error, and those that it hides: its cause, and what was handled when it was raised."""
    yield shown
    for hidden in filter(None, [shown.__cause__, shown.__context__, *(shown.exceptions or ())]):
        yield from _chain(hidden)


def _message_of(error: BaseException) -> str:
    message = one_line(error)
    hidden = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return message if hidden is None else f"{message} (after {one_line(hidden)})"


def one_line(error: BaseException) -> str:
    """The name of an error's class, and the first line of its text."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return f"SystemExit: the code called sys.exit({'' if error.code is None else error.code})"
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be made"
    lines = text.strip().splitlines()
    if isinstance(error, RayTaskError):  # of a task of the user's own: its text is a traceback
        lines = lines[-1:]
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
