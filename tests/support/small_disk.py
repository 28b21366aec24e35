"""A small disk of its own that can be filled: a tmpfs, mounted in a namespace of its own. Tests only, Linux only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Mounts, says so, and keeps the mount alive until its standard input is closed.
_KEEPER = 'mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2" && echo mounted && exec cat'


@dataclass(frozen=True)
class SmallDisk:
    """The disk; everybody of this user reaches it under ``root`` while the test runs."""

    root: Path

    def fill(self) -> None:
        """Write until there is no room for another page, whatever others write and remove meanwhile."""
        with (self.root / "ballast").open("ab", buffering=0) as file:
            for piece in (bytes(2**20), bytes(2**12)):
                with suppress(OSError):
                    while file.write(piece):
                        pass

    def make_room(self) -> None:
        """Take the ballast away."""
        (self.root / "ballast").unlink()


@contextmanager
def small_disk(folder: Path, *, mebibytes: int) -> Iterator[SmallDisk]:
    """Yield a disk of this size, mounted on ``folder`` in its own namespace; skip where the kernel refuses."""
    folder.mkdir()
    keeper = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", _KEEPER, "sh", f"{mebibytes}m", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert keeper.stdout is not None
    try:
        if keeper.stdout.readline() != "mounted\n":
            keeper.kill()
            pytest.skip(f"no small disk can be mounted here: {keeper.communicate()[1].strip()}")
        yield SmallDisk(Path(f"/proc/{keeper.pid}/cwd"))
    finally:
        keeper.communicate()
