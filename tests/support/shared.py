"""Folders that are made once in a test run, whichever of its processes needs them first. Tests only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name``, filled by ``make``; other processes of pytest-xdist wait for it and take it as it is.

    Args:
        factory: pytest's factory of temporary folders.
        name: name of the folder, unique in a test run.
        make: fills an empty folder. If it fails, the next process tries again.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
