"""Two processes train one trial in one folder: whatever the older is doing, the newer completes and nothing changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempt_race import OTHER, REFUSED
from tests.support.object_stores import connect, serve_s3
from tests.support.paths import ROOT

#: Changes of the folder before which the older attempt is suspended: one attempt makes 50 or so.
POINTS = [1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43]


def race(root: str, cache: Path, *points: int, environment: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return what happened at each point."""
    cache.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "tests.support.attempt_race", root, str(cache), *map(str, points)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: dict[str, Any], alone: dict[str, Any], *, may_leave: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Check that the newer attempt has completed undisturbed, and that the older was refused."""
    assert found["newer"] == 0
    assert found["older"] == REFUSED != OTHER
    assert {name: found["files"][name] for name in found["before"]} == found["before"]
    assert found["files"].keys() - found["before"].keys() <= may_leave
    assert found["damage"] is None
    assert found["epochs"] == alone["epochs"]
    assert found["result"] == alone["result"]
    assert found["weights"] == alone["weights"]


@pytest.mark.long
def test_a_suspended_attempt_changes_nothing_on_a_disk(tmp_path: Path) -> None:
    alone, *found = race(str(tmp_path / "r"), tmp_path / "cache", 0, *POINTS)
    assert [each["suspended"] for each in found] == [True] * 20
    for each in found:
        check(each, alone)


@contextmanager
def _mounted_again(folder: Path, place: Path) -> Iterator[Path]:
    """Yield a second mount of a folder, as another machine has it."""
    place.mkdir()
    done = subprocess.run(["mount", "--bind", folder, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine allows no mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.long
def test_an_attempt_that_sees_the_folder_through_another_mount_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    with _mounted_again(tmp_path / "shared", tmp_path / "mount") as mount:
        alone, *found = race(f"{tmp_path}/shared|{mount}", tmp_path / "cache", 0, 3, 9, 20, 30, 41)
    for each in found:
        assert each["suspended"]
        check(each, alone)


@pytest.mark.long
def test_a_suspended_attempt_changes_nothing_on_an_object_store(tmp_path: Path) -> None:
    with serve_s3() as environment:
        connect(environment).mkdir("ledgers")
        alone, *found = race("s3://ledgers/r", tmp_path / "cache", 0, *range(1, 41, 2), environment=environment)
    assert sum(each["suspended"] for each in found) >= 15
    for each in found:
        if each["suspended"]:
            # What the newer attempt has removed, an older one can put back: nothing reads it any more.
            check(each, alone, may_leave={"checkpoint.safetensors", "checkpoint.previous.safetensors"} | BEST)


BEST = {f"best-{epoch}.safetensors" for epoch in range(4)}
