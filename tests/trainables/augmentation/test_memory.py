"""Freed memory is kept, so that the next batch does not fetch its own page by page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from trainables.augmentation import memory
def fill():
    blocks = [torch.ones(int(sys.argv[2]) * 2**20, dtype=torch.uint8) for _ in range(5)]
def count():
    for _ in range(3):
        fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    fill()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = count()
getattr(memory, sys.argv[1])()
print(before, count())
"""


def count_faults(function: str, block_mib: int) -> tuple[int, int]:
    """Return the page faults of five blocks of memory, before ``function`` is called and afterwards."""
    command = [sys.executable, "-c", COUNT_FAULTS, function, str(block_mib)]
    before, after = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(before), int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
@pytest.mark.parametrize(("function", "block_mib"), [("keep_freed_memory", 10), ("keep_all_freed_memory", 40)])
def test_what_was_freed_is_used_again(function: str, block_mib: int) -> None:
    pages = 5 * block_mib * 256
    # Without it two to five of the five blocks are fetched anew, by where the heap begins; with it none, but for one at
    # the heap's edge, and for pages that the kernel of a busy machine takes away: then another look finds them kept.
    looks = (count_faults(function, block_mib) for _ in range(5))
    assert any(before > 0.3 * pages and after < 0.5 * before for before, after in looks)
