"""Threads for decoding and hashing: PIL, hashing and NumPy release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

#: Decoding one image takes milliseconds; more threads than this only compete for memory bandwidth.
MAX_THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function(item)`` for all items in order, computed in threads."""
    with ThreadPoolExecutor(min(MAX_THREADS, _count_cores())) as pool:
        return list(pool.map(function, items))


def _count_cores() -> int:
    """Return how many cores this process may run on, without the imports that knowing a container's limit takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
