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
CRASHED, HUNG, OUT_OF_MEMORY = "crashed", "hung", "out of memory"
LOST = (CRASHED, HUNG, OUT_OF_MEMORY)


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return class, reason, message and traceback of an exception that a trial raised."""
    from trainables.errors import CollapsedError, DivergedError, OrphanedError, RobustSweepError, SupersededError
    from trainables.storage.folder import is_disk_full

    reason = "diverged" if isinstance(error, DivergedError) else DISK_FULL if is_disk_full(error) else "error"
    reason = "collapsed" if isinstance(error, CollapsedError) else reason
    reason = OUT_OF_MEMORY if is_out_of_memory(error) else reason
    reason = SUPERSEDED if isinstance(error, SupersededError) else reason
    reason = ORPHANED if isinstance(error, OrphanedError) else reason
    message = str(error) if isinstance(error, RobustSweepError) else f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "reason": reason, "message": message, "traceback": text}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, the system, or torch's allocator for CPUs or GPUs had no more memory to give."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU; importing torch for it would take seconds
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # c10/core/impl/alloc_cpu.cpp
    )
