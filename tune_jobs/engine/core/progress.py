"""What a sweep tells its listener while it runs: `Progress`."""

from typing import Protocol

from optuna.trial import FrozenTrial

from tune_jobs.engine.core.goal import Goal

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Listens to a sweep; called in the driver's main thread.

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
        """A trial waits at a rung.

        Args:
            goal: What is optimized.
            trial: The recorded trial.
            best: The best complete trial so far.
        """

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None:
        """A trial has ended; arguments as for `on_trial_pause`."""


class Silent:
    """Hears everything and says nothing."""

    def on_notice(self, text: str) -> None: ...

    def on_start(self, headline: str) -> None: ...

    def on_trial_pause(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None: ...

    def on_trial_end(self, goal: Goal, trial: FrozenTrial, best: FrozenTrial | None) -> None: ...
