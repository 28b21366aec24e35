"""Memory of a CPU: keeping what was freed."""

from __future__ import annotations

from functools import cache

import torch

#: glibc looks at blocks up to 32 MiB only (M_MMAP_THRESHOLD in mallopt(3)); this one is not written to.
_BLOCK_BYTES = 2**25 - 2**16


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB that it has freed; other C libraries than glibc are not changed.

    glibc gives free memory at the end of the heap back to the system once it is twice the largest block that was ever
    freed. A batch then gets all its memory anew, page by page, which takes up to a third of the time of augmenting it.
    """
    torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
