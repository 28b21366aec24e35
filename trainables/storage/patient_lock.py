"""Lock on a file for work that should be done once, which never waits for a process that has stopped working."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOG = logging.getLogger(__name__)
#: Seconds between two signs of life of the holder.
HEARTBEAT_SECONDS = 5.0
#: Nobody waits longer than this without a sign of life: the holder is suspended, or its machine is cut off.
PATIENCE_SECONDS = 60.0


@contextmanager
def locked(path: Path | str, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the lock ``path``, so that others wait; a holder that gives no sign of life is not waited for.

    Then two processes may do the same work at once: its last step has to be one that replaces the result as a whole.

    Args:
        path: file of the lock.
        patience_seconds: how long the holder may be silent. Only changes are looked at, since clocks may differ.
    """
    lock = FileLock(path)
    is_held = _acquire(lock, Path(path), patience_seconds)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(Path(path), stop), name="lock", daemon=True)
    if is_held:
        beat.start()
    try:
        yield
    finally:
        stop.set()
        if is_held:
            beat.join()
            lock.release()


def _acquire(lock: FileLock, path: Path, patience_seconds: float) -> bool:
    """Return whether the lock was acquired, False once its holder has been silent for too long."""
    last, since = _read_time(path), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=min(1.0, patience_seconds))
            return True
        except Timeout:
            now = _read_time(path)
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > patience_seconds:
                _LOG.warning("the holder of %s gave no sign of life for %.1f s: not waiting", path, patience_seconds)
                return False


def _read_time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # of a full disk: then others do the work again
            os.utime(path)
