from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainables.cpus import count_cpus

#: More than any machine has.
MANY = 10**6


def count(folder: Path, groups: str, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Count on a machine with many cores, whose control groups look as in these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(MANY), raising=False)
    (folder / "groups").write_text(groups)
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return count_cpus(folder / "groups", folder / "mount")


V1 = "9:name=systemd:/\n4:memory:/deep/m\n2:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, MANY),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/a.slice/b.scope\n", {"a.slice/b.scope/cpu.max": "max 100000\n", "a.slice/cpu.max": "300000 100000\n"}, 3),
        ("0::/a.slice/b.scope\n", {"a.slice/b.scope/cpu.max": "200000 100000", "a.slice/cpu.max": "300000 100000"}, 2),
        ("0::/of/the/host\n", {"cpu.max": "400000 100000\n"}, 4),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, MANY),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "250000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 1),
    ],
)
def test_limits_of_control_groups_count(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count(tmp_path, groups, files, monkeypatch) == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert count_cpus(tmp_path / "none", tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system with CPU affinity")
def test_a_process_that_may_use_one_core_has_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from trainables.cpus import count_cpus\n"
        "print(count_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
