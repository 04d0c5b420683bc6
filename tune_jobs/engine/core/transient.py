"""What Tune pickles and nobody reads: `Transient`."""

from typing import Any

__all__ = ["Transient"]


class Transient:
    """Mixed into what is handed to Tune, which pickles it into `tuner.pkl` and its snapshots.

    Nothing of ours is restored from there, and studies, locks and processes cannot be pickled.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}
