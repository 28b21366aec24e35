"""What a finished stage or trial consists of, and whether all of it is still there.

``result.json`` is written last and lists the other files with size and checksum. Damage is looked for where it costs
nothing (the seal of ``result.json``, sizes) whenever a study is looked up, and in every byte where a file is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from trainables.storage import Folder, is_sealed

RESULT = "result.json"
EPOCHS = "epochs.jsonl"


def describe_files(folder: Folder, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name → ``bytes`` and ``sha256`` of files in ``folder``.

    Raises:
        StorageError: one is missing.
    """
    content = {name: folder.read(name) for name in names}
    return {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()}


def find_damage(folder: Folder) -> str | None:
    """Return what is wrong with a folder that has a ``result.json``, in words with the file's name; None when nothing.

    Looks at sizes, not at content. Only on a disk: an object store never holds a part of a file.
    """
    if not folder.is_local:
        return None
    data = folder.read(RESULT)
    if not is_sealed(data):
        return f"{folder.uri}/{RESULT} is damaged or was changed by hand"
    for name, expected in _parse_files(data).items():
        size = folder.size(name)
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, {expected['bytes']} were written"
            return f"{folder.uri}/{name} {found}"
    return None


def _parse_files(data: bytes) -> dict[str, dict[str, Any]]:
    """Return ``files`` of a sealed result, without parsing the rest: a study has thousands of results of 30 KB."""
    key = b'\n "files": '
    start = data.find(key)
    if start < 0:
        return {}
    start += len(key)
    end = start + 2 if data.startswith(b"{}", start) else data.index(b"\n }", start) + len(b"\n }")
    files: dict[str, dict[str, Any]] = json.loads(data[start:end])
    return files


def is_finished(folder: Folder) -> bool:
    """Return whether the stage or trial is complete and none of its files is known to be damaged."""
    return folder.exists(RESULT) and find_damage(folder) is None
