"""What /proc says about processes. Tests only, Linux only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
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


def find_descendants(pid: int) -> dict[int, str]:
    """Return pid → command line of the processes that a process has started, and of those that they have started."""
    found: dict[int, str] = {}
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                with suppress(FileNotFoundError, ProcessLookupError):
                    found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
                    found |= find_descendants(child)
    return found


def find_listening(pids: Iterable[int]) -> set[str]:
    """Return the addresses (TCP, without port) at which these processes listen."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):  # it has ended
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(os.readlink(file))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                words = bytes.fromhex(columns[1].partition(":")[0])
                # Words of 32 bits in the order of this machine.
                octets = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                found.add(str(ip_address(octets)))
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
