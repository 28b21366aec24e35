"""Threads for decoding and hashing: PIL, hashing and NumPy release the GIL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from trainables.cpus import count_cpus

#: Decoding one image takes milliseconds; more threads than this only compete for memory bandwidth.
MAX_THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function(item)`` for all items in order, computed in threads."""
    with ThreadPoolExecutor(min(MAX_THREADS, count_cpus())) as pool:
        return list(pool.map(function, items))
