"""Tells whether an error means that the memory is used up: `is_out_of_memory`."""

from ray.exceptions import OutOfMemoryError

__all__ = ["is_out_of_memory"]

OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "running low on memory",  # Ray's own guard of a node
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine, or of a GPU, was used up."""
    if isinstance(error, (MemoryError, OutOfMemoryError)):
        return True
    # By name: torch's own is a RuntimeError, and this process need not have imported torch.
    if any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__):
        return True
    try:
        text = str(error)
    except Exception:  # of the user's own class
        return False
    return any(known in text for known in OUT_OF_MEMORY_TEXTS) or (
        "CUDA" in text and "out of memory" in text
    )
