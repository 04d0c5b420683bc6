"""A trial's process: its threads, its share of a GPU, its random states, its storage."""

import os
import random
import socket
from collections.abc import Mapping
from typing import Any

from pyarrow import fs
from ray import tune

from tune_jobs.engine.cluster.slots import Resources
from tune_jobs.engine.core.errors import CheckpointError
from tune_jobs.engine.trainable.internals import end_training_thread, note_restored

__all__ = [
    "OrderlyTrial",
    "check_storage",
    "get_random_states",
    "prepare_device",
    "set_random_states",
]

STOP_PATIENCE_S = 60.0


class OrderlyTrial:
    """Mixin for Ray's function trainable.

    Waits for a stopped trial's thread before its actor is reused, and hides all GPUs from CPU-only
    trials. Ray gives the thread 2 s, then marks the next trial ERROR without telling the searcher,
    which can hang the sweep (ray#29268). It does not wait for the last trial of a slot at all, so
    that loggers lose their end. And it leaves CUDA_VISIBLE_DEVICES alone for a trial without a GPU,
    which then sees all of them.
    """

    def setup(self, config: dict[str, Any]) -> None:
        if not self.trial_resources.required_resources.get("GPU"):  # type: ignore[attr-defined]
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        super().setup(config)  # type: ignore[misc]

    def load_checkpoint(self, checkpoint_result: Any) -> None:
        super().load_checkpoint(checkpoint_result)  # type: ignore[misc]
        note_restored(checkpoint_result.metrics)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end_thread()
        return bool(super().reset_config(new_config))  # type: ignore[misc]

    def cleanup(self) -> None:
        try:
            self._end_thread()
        finally:
            super().cleanup()  # type: ignore[misc]

    def _end_thread(self) -> None:
        if not end_training_thread(STOP_PATIENCE_S):
            # Unlike reset_config's False, an error reaches the searcher and frees the slot.
            raise RuntimeError(f"the previous trial did not stop within {STOP_PATIENCE_S:g} s.")


def prepare_device(resources: Resources) -> None:
    """Limit this process to its share: threads on the CPU, memory on the GPU."""
    import torch

    torch.set_num_threads(resources.num_threads)
    if resources.gpus and torch.cuda.is_available():
        # To Ray, a share is bookkeeping; this limits what torch allocates.
        torch.cuda.set_per_process_memory_fraction(resources.gpus)


def check_storage() -> None:
    """Check that this node sees the sweep's folder, before a trial trains for its first checkpoint.

    Raises:
        CheckpointError: It does not.
    """
    storage = tune.get_context().get_storage()
    path = storage.experiment_fs_path
    try:
        there = storage.storage_filesystem.get_file_info(path).type
    except OSError as error:  # a bucket that may be written to, and not listed
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if there == fs.FileType.NotFound:
        raise CheckpointError(
            f"node {socket.gethostname()} does not see {path}; "
            "--storage-path must be a folder that all nodes mount, or a URL"
        )


def get_random_states() -> dict[str, Any]:
    """The random states of torch, NumPy and Python, in types that `weights_only=True` loads."""
    import numpy as np
    import torch

    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `get_random_states` returned, so that a trial resumes as if never stopped."""
    import numpy as np
    import torch

    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
