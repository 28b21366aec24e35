"""Count the CPU cores that this process may use: SLURM and containers give it fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Control groups of this process, and where Linux shows their limits.
_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def count_cpus(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """Return how many cores this process may use: its affinity and the limits of its control groups, at least 1.

    Args:
        groups: control groups of the process, as in ``/proc/self/cgroup``.
        mount: folder that shows their limits. A limit of 1.5 cores counts as 2.
    """
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([number, *(math.ceil(limit) for limit in _find_limits(groups, mount))]))


def _find_limits(groups: Path, mount: Path) -> Iterator[float]:
    """Yield the limits, in cores, of every group of the process and the groups above it.

    Inside a container the path of a group may be that of the host: then only the topmost group is there, its own.
    """
    for line in _read(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            folders = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            folders = [mount / "cpu"]
        else:
            continue
        for folder in folders:
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield from _read_limit(folder / group.relative_to("/"))


def _read_limit(group: Path) -> Iterator[float]:
    words = _read(group / "cpu.max").split()  # version 2
    words = words or [*_read(group / "cpu.cfs_quota_us").split(), *_read(group / "cpu.cfs_period_us").split()]
    if len(words) == 2 and words[0] != "max" and int(words[0]) > 0:
        yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system, another version, or a group that this container does not show
        return ""
