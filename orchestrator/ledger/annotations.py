"""Notes on single images, written by people: kept in the ledger beside what was measured, and never part of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger.derived import invalidate
from trainables.errors import StudyError
from trainables.storage.folder import Folder

ANNOTATIONS = "annotations.json"
#: Longest note, in characters.
MAX_NOTE = 4_000


@dataclass(frozen=True)
class Annotation:
    """Note and mark of people on one image."""

    #: Name of its set, and its id there.
    set_name: str
    image: str
    note: str
    #: Whether its label is thought to be wrong.
    label_is_wrong: bool
    #: When it was last changed, ms since 1970.
    changed_ms: int

    def as_json(self) -> dict[str, Any]:
        """Return the entry in the file."""
        return {
            "set": self.set_name,
            "id": self.image,
            "note": self.note,
            "label_is_wrong": self.label_is_wrong,
            "changed_ms": self.changed_ms,
        }


def read_annotations(root: Folder) -> list[Annotation]:
    """Return all annotations of a study, sorted by set and id.

    Args:
        root: folder of the ledger.

    Raises:
        StorageError: the file is damaged.
    """
    if not root.exists(ANNOTATIONS):
        return []
    entries = root.read_json(ANNOTATIONS)["annotations"]
    return [
        Annotation(each["set"], each["id"], each["note"], each["label_is_wrong"], each["changed_ms"])
        for each in entries
    ]


def annotate(root: Folder, set_name: str, image: str, *, note: str, label_is_wrong: bool) -> list[Annotation]:
    """Write what is said about one image in place of what was, and return all annotations; nothing said removes it.

    Raises:
        StudyError: the note is too long.
        StorageError: the storage refused the write, or the file is damaged.
    """
    if len(note) > MAX_NOTE:
        raise StudyError(f"got a note of {len(note)} characters on {image}; expected at most {MAX_NOTE}")
    kept = {(each.set_name, each.image): each for each in read_annotations(root)}
    kept.pop((set_name, image), None)
    if note.strip() or label_is_wrong:
        now = int(time.time() * 1000)
        kept[set_name, image] = Annotation(set_name, image, note.strip(), label_is_wrong, now)
    found = [kept[key] for key in sorted(kept)]
    invalidate(root)  # the report shows results without images whose label is marked
    root.write_json(ANNOTATIONS, {"annotations": [each.as_json() for each in found]})
    return found
