"""What a sweep tells its listener while it runs: `Progress`."""

import warnings
from typing import Any, Protocol

from optuna.trial import FrozenTrial

from tune_jobs.engine.core.goal import Goal

__all__ = ["Guarded", "Progress", "Silent"]


class Progress(Protocol):
    """Listens to a sweep; called in the thread that called `run_sweep`.

    In the order in which they fire: notices before the first trial (another driver's lock taken
    over, workers that are waited for), `on_start`, then for each trial any number of
    `on_trial_pause` and one `on_trial_end`, between notices about nodes and interruptions. Each is
    called after the record holds what it tells.
    """

    def on_notice(self, text: str) -> None:
        """Something that concerns the whole sweep, in one line."""

    def on_start(self, headline: str) -> None:
        """The trials are about to start or to resume."""

    def on_trial_pause(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """A trial pauses at a rung.

        Args:
            goal: What is optimized.
            trial: The recorded trial.
            best: The best complete trial so far.
        """

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """A trial has ended; arguments as for `on_trial_pause`."""


class Silent:
    """A listener that ignores all events."""

    def on_notice(self, text: str) -> None: ...

    def on_start(self, headline: str) -> None: ...

    def on_trial_pause(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None: ...

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None: ...


class Guarded:
    """Keeps a listener's errors out of the sweep: after the first, it is no longer called.

    Tune would take the error for a failure of the trial that was about to end.

    Args:
        listener: Any listener; one whose method raises causes a warning.
    """

    def __init__(self, listener: Progress) -> None:
        self._listener = listener

    def on_notice(self, text: str) -> None:
        self._call("on_notice", text)

    def on_start(self, headline: str) -> None:
        self._call("on_start", headline)

    def on_trial_pause(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        self._call("on_trial_pause", goal, trial, best)

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        self._call("on_trial_end", goal, trial, best)

    def _call(self, event: str, *args: Any) -> None:
        try:
            getattr(self._listener, event)(*args)
        except Exception as error:
            name = f"{type(self._listener).__name__}.{event}"
            self._listener = Silent()
            warnings.warn(f"{name} raised {error!r}; the sweep continues silently", stacklevel=3)
