"""Notes on images in the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger.annotations import ANNOTATIONS, MAX_NOTE, annotate, read_annotations
from trainables.errors import StorageError, StudyError
from trainables.storage.folder import Folder


def test_what_is_said_last_stands_and_nothing_said_removes_it(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    assert read_annotations(root) == []
    annotate(root, "test", "b", note="a first note", label_is_wrong=False)
    annotate(root, "test", "a", note="", label_is_wrong=True)
    annotate(root, "test", "b", note="another", label_is_wrong=True)
    found = read_annotations(root)
    assert [(each.image, each.note, each.label_is_wrong) for each in found] == [("a", "", True), ("b", "another", True)]
    assert [each.image for each in annotate(root, "test", "a", note=" ", label_is_wrong=False)] == ["b"]


def test_a_note_of_any_length_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="at most"):
        annotate(Folder(tmp_path), "test", "a", note="x" * (MAX_NOTE + 1), label_is_wrong=False)


def test_a_damaged_file_is_an_error_and_is_not_overwritten(tmp_path: Path) -> None:
    root = Folder(tmp_path)
    annotate(root, "test", "a", note="kept", label_is_wrong=False)
    text = (tmp_path / ANNOTATIONS).read_text().replace("kept", "bent")
    (tmp_path / ANNOTATIONS).write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        annotate(root, "test", "b", note="new", label_is_wrong=False)
    assert (tmp_path / ANNOTATIONS).read_text() == text
