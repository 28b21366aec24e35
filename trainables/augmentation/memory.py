"""Reuse of freed memory on the CPU."""

from __future__ import annotations

from functools import cache

import torch

#: Size of a block that is freed unwritten: glibc considers blocks up to 32 MiB only (M_MMAP_THRESHOLD in mallopt(3)).
_BLOCK_BYTES = 2**25 - 2**16


@cache
def keep_freed_memory() -> None:
    """Raise to 64 MiB the freed memory that glibc keeps in this process; other C libraries are not affected.

    glibc returns free memory at the end of the heap to the system once it exceeds twice the largest block that was ever
    freed. A batch then gets all its memory anew, page by page, which takes up to a third of the time of augmenting it.
    """
    torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
