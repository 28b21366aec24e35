"""Files of a finished stage or trial, and checks that they are complete and undamaged.

``result.json`` is written last and lists the other files with size and checksum. Looking up a study runs only cheap
checks: the seal of ``result.json``, sizes, and the content of files written later. Every byte is checked where a file
is used, or on request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from trainables.storage.folder import Folder, is_sealed

CONFIG = "config.json"
RESULT = "result.json"
#: Written from outside into the folder of a trial that is not to be trained any further.
STOP = "stop.json"
EPOCHS = "epochs.jsonl"
#: Rows of failure and out-of-distribution detection.
DETECTION = "detection.json"
#: Spectra of layers, and their similarity to the initial weights.
REPRESENTATION = "representation.json"
#: Relevance on lesions: scores per image and lesion, and some maps; only with ``evaluation.attribution``.
ATTRIBUTION = "attribution.npz"


def describe_files(folder: Folder, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name → ``bytes`` and ``sha256`` of files in ``folder``.

    Raises:
        StorageError: a file is missing.
    """
    digests = {name: folder.sha256(name) for name in names}
    return {name: {"bytes": (folder.stat(name) or (0, 0))[0], "sha256": digest} for name, digest in digests.items()}


def find_change(
    folder: Folder, files: Mapping[str, Mapping[str, Any]], *, since: str, every_byte: bool = False
) -> str | None:
    """Return a message about the first of ``files`` that has changed, None if none has.

    Args:
        folder: folder of the files, on a disk unless ``every_byte`` is set.
        files: result of ``describe_files``.
        since: name of the file that was written after all ``files``; the content of newer files is compared.
        every_byte: whether to compare the content of all files.
    """
    _, written = folder.stat(since) or (0, 0)
    for name, expected in files.items():
        size, changed = folder.stat(name) or (None, 0)
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, {expected['bytes']} were written"
            return f"{folder.uri}/{name} {found}"
        if (every_byte or changed > written) and folder.sha256(name) != expected["sha256"]:
            return f"{folder.uri}/{name} has another content than was written"
    return None


def find_damage(folder: Folder, *, every_byte: bool = False) -> str | None:
    """Return a message about the first damaged file of a folder that has a ``result.json``, None if there is none.

    Without ``every_byte``, only folders on a disk are checked: an object store never holds part of a file.

    Args:
        folder: folder of a stage or trial.
        every_byte: whether to compare the content of all files; otherwise sizes, and the content of files written
            after ``result.json``.
    """
    if not folder.is_local and not every_byte:
        return None
    data = folder.read(RESULT)
    if not is_sealed(data):
        return f"{folder.uri}/{RESULT} is damaged or was changed by hand"
    return find_change(folder, _parse_files(data), since=RESULT, every_byte=every_byte)


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


def is_stopped(folder: Folder) -> bool:
    """Return whether the trial was stopped early: it has an intact ``stop.json`` and no ``result.json``."""
    return folder.is_intact(STOP) and not folder.exists(RESULT)


def is_finished(folder: Folder) -> bool:
    """Return whether the stage or trial is complete and none of its files is known to be damaged."""
    return folder.exists(RESULT) and find_damage(folder) is None
