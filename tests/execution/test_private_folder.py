"""Folders that are passed over: a link of somebody else, one in which others may write, one that is too long."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from orchestrator.execution.private_folder import find_private_folder

NAME = f"robustsweep-{os.getuid()}"


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp())  # pytest's own folders are long
    return Path(tempfile.gettempdir())


def test_the_folder_for_temporary_files_is_taken_where_it_is_short_enough(first: Path) -> None:
    folder = find_private_folder(room=100, purpose="x")
    assert folder == first / NAME
    assert folder.stat().st_mode & 0o777 == 0o700
    assert find_private_folder(room=100, purpose="x") == folder
    assert find_private_folder(room=len(str(folder)) - 1, purpose="x") == Path("/tmp") / NAME


def test_a_link_is_passed_over(first: Path, tmp_path: Path) -> None:
    (first / NAME).symlink_to(tmp_path)
    assert find_private_folder(room=100, purpose="x") == Path("/tmp") / NAME


def test_a_folder_in_which_others_may_write_is_passed_over(first: Path) -> None:
    (first / NAME).mkdir()
    (first / NAME).chmod(0o777)
    assert find_private_folder(room=100, purpose="x") == Path("/tmp") / NAME
