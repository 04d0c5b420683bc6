"""For objects that Tune pickles and nobody reads back: `Transient`."""

from typing import Any

__all__ = ["Transient"]


class Transient:
    """Mixin for objects given to Tune, which pickles them into `tuner.pkl` and its snapshots.

    Nothing of ours is restored from there, and studies, locks and processes cannot be pickled.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {}
