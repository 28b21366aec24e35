"""Digests of files, remembered by their stamps, so that a file is read again only if it may have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from trainables.data.decoding.threads import map_threads
from trainables.storage.folder import Folder


@dataclass(frozen=True)
class FileDigests:
    """Digests of files, remembered in a folder with the stamps (``_read_stamp``) of the files.

    Args:
        folder: cache folder.
        verify: whether to read every file, whatever its stamp: a restored snapshot may keep them.
    """

    folder: Path
    verify: bool = False

    def read(self, paths: Sequence[Path], *, of: str) -> list[str]:
        """Return the sha256 of every file, "" for a file that cannot be read.

        Args:
            paths: files to read.
            of: name of what the files belong to; its digests are remembered together.
        """
        memory = self.folder / "digests" / f"{hashlib.sha256(of.encode()).hexdigest()[:24]}.json"
        known = _read_memory(memory)
        stamps = [_read_stamp(path) for path in paths]
        entries = {
            str(path): known[str(path)]
            for path, stamp in zip(paths, stamps, strict=True)
            if not self.verify and stamp and known.get(str(path), [None])[:-1] == stamp
        }
        stamped = [(path, stamp) for path, stamp in zip(paths, stamps, strict=True) if stamp]
        changed = [(path, stamp) for path, stamp in stamped if str(path) not in entries]
        digests = map_threads(lambda item: _digest_file(item[0]), changed)
        fresh = {str(path): [*stamp, digest] for (path, stamp), digest in zip(changed, digests, strict=True) if digest}
        if fresh:
            Folder(memory.parent).write(memory.name, json.dumps(known | fresh).encode())
        entries |= fresh
        return [entries[str(path)][-1] if str(path) in entries else "" for path in paths]


def _read_memory(memory: Path) -> dict[str, list[Any]]:
    try:
        return json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):  # missing or damaged: all files are read again
        return {}


def _read_stamp(path: Path) -> list[int] | None:
    """Return size (bytes), modification and change time (ns) and inode, None if it is no readable file.

    Archives and tools for data versions set modification times, so that two swapped files can have the same. The kernel
    sets the change time, and a renamed file keeps its inode. Decoding reports unreadable files.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    if not S_ISREG(stat.st_mode):
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # decoding reports the file
        return ""
