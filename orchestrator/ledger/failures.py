"""Reasons for which a stage or trial ends without a result, and the record of an exception."""

from __future__ import annotations

import errno
import traceback

#: Reason of a trial that ended because the disk was full: it has not failed, and continues later.
DISK_FULL = "disk full"
#: Reason of a trial that a newer attempt has taken over: it has not failed, and is being run there.
SUPERSEDED = "superseded"
#: Reason of a trial that ended because nobody had asked for its events for long: its machine was cut off.
ORPHANED = "orphaned"
#: Reasons of a trial whose process was lost in every attempt.
CRASHED, HUNG, OUT_OF_MEMORY, OUT_OF_GPU_MEMORY = "crashed", "hung", "out of memory", "out of GPU memory"
LOST = (CRASHED, HUNG, OUT_OF_MEMORY, OUT_OF_GPU_MEMORY)
#: Words of the errors of CUDA and its libraries when a GPU has no memory left, which torch raises as RuntimeError.
_GPU_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return class, reason, message and traceback of an exception that a trial raised."""
    from trainables.errors import CollapsedError, DivergedError, OrphanedError, RobustSweepError, SupersededError
    from trainables.storage.folder import is_disk_full

    reason = "diverged" if isinstance(error, DivergedError) else DISK_FULL if is_disk_full(error) else "error"
    reason = "collapsed" if isinstance(error, CollapsedError) else reason
    reason = OUT_OF_MEMORY if is_out_of_memory(error) else reason
    reason = OUT_OF_GPU_MEMORY if is_out_of_gpu_memory(error) else reason
    reason = SUPERSEDED if isinstance(error, SupersededError) else reason
    reason = ORPHANED if isinstance(error, OrphanedError) else reason
    message = str(error) if isinstance(error, RobustSweepError) else f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "reason": reason, "message": message, "traceback": text}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, the system, or torch's allocator for CPUs had no more memory to give."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # c10/core/impl/alloc_cpu.cpp
    )


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Return whether torch's allocator for GPUs, or CUDA itself, had no more memory to give."""
    return type(error).__name__ == "OutOfMemoryError" or (  # torch's; importing torch for it would take seconds
        isinstance(error, RuntimeError) and any(words in str(error) for words in _GPU_OUT_OF_MEMORY)
    )
