"""What /proc says about processes. Tests only, Linux only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def find_marked(marker: str) -> dict[int, str]:
    """Return pid → command line of all processes that have ``marker`` in their environment, this one excepted."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid() and is_running(int(folder.name)):
            try:
                if marker.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s until {what}"
        time.sleep(0.05)


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of its standard output, and read no byte ahead: ``communicate`` would not see it."""
    assert process.stdout is not None
    line = b""
    while byte := os.read(process.stdout.fileno(), 1):
        line += byte
        if byte == b"\n":
            yield line.decode()
            line = b""
    if line:
        yield line.decode()
