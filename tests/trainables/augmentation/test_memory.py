"""Freed memory is kept, so that the next batch does not fetch its own page by page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from trainables.augmentation.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fill():
    blocks = [torch.ones(10 * 2**20, dtype=torch.uint8) for _ in range(5)]
for _ in range(3):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def count_faults(what: str) -> int:
    return int(subprocess.run([sys.executable, "-c", COUNT_FAULTS, what], check=True, capture_output=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_what_was_freed_is_used_again() -> None:
    # 50 MiB are 12,800 pages; otherwise 7,680 or more of them are fetched anew. One block at the heap's edge may be.
    # On a busy machine the kernel may take pages away meanwhile: then a second look finds them kept.
    assert min(count_faults("keep") for _ in range(3)) < 5_000
