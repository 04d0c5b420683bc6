"""The private names of Ray that the queue of trials needs.

Each has a canary in `tests/test_internals.py`, which fails on an upgrade before a sweep does.
"""

from typing import Any

from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial

__all__ = ["keep_running", "register_checkpoint", "stop_waiting_for_reset"]


def register_checkpoint(trial: Trial, checkpoint: Checkpoint, result: dict[str, Any]) -> None:
    """Give a trial a checkpoint that is there already; it resumes from the last one.

    Args:
        trial: Tune's trial.
        checkpoint: The checkpoint, in a folder with Ray's name for it.
        result: The result that was reported with it.
    """
    manager = trial.run_metadata.checkpoint_manager
    manager.register_checkpoint(_TrainingResult(checkpoint, result))
    # Ray numbers further checkpoints from here.
    trial.storage.current_checkpoint_index = int(checkpoint.path.rpartition("_")[-1])


def stop_waiting_for_reset(controller: Any, trial: Trial) -> None:
    """Let the controller no longer wait for a dead process to be handed over to a trial."""
    controller._resetting_trials.discard(trial)


def keep_running(controller: Any, trial: Trial) -> None:
    """Mark a trial as running, so that the controller recovers it."""
    controller._set_trial_status(trial, Trial.RUNNING)
