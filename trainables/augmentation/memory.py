"""Reuse of freed memory on the CPU."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

import torch

#: Size of a block that is freed unwritten: glibc considers blocks up to 32 MiB only (M_MMAP_THRESHOLD in mallopt(3)).
_BLOCK_BYTES = 2**25 - 2**16

#: Parameters of glibc's ``mallopt`` (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

#: Blocks up to this size, a batch of activations among them, come from the heap; the largest int ends its trimming.
_HEAP_BLOCK_BYTES, _NEVER = 2**30, 2**31 - 1


@cache
def keep_freed_memory() -> None:
    """Raise to 64 MiB the freed memory that glibc keeps in this process; other C libraries are not affected.

    glibc returns free memory at the end of the heap to the system once it exceeds twice the largest block that was ever
    freed. A batch then gets all its memory anew, page by page, which takes up to a third of the time of augmenting it.
    """
    torch.empty(_BLOCK_BYTES, dtype=torch.uint8)


@cache
def keep_all_freed_memory() -> None:
    """Keep all memory that is freed in blocks up to 1 GiB, for a process that trains until it ends.

    Activations of a segmentation are larger than what :func:`keep_freed_memory` keeps: every step gets them anew, page
    by page, in a tenth of its time (``benchmarks/segmentation_training.py``). Other C libraries are not affected.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
