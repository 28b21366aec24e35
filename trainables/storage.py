"""A folder on local disk or behind any fsspec URI, with the few operations a ledger needs.

Writes are atomic: a reader sees the old content or the new, never a part (rename on local disk, single PUT on an
object store). A JSON object begins with its seal, a checksum of all that follows: what a failing disk, a full one or an
editor has made of it is noticed. Nothing here knows what the files mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.errors import StorageError

#: How a sealed JSON object begins. The seal is of the bytes behind this, without the last newline.
_SEAL = re.compile(rb'{\n "seal": "([0-9a-f]{64})"[,\n]')


class Folder:
    """One folder; ``folder / "name"`` is a folder below it, created when something is first written.

    Args:
        uri: a local path, or a URI of fsspec (``s3://bucket/prefix``, ``memory://x``).
        guard: called before anything is changed here or below; what it raises keeps the change from being made.
    """

    def __init__(self, uri: str | Path, *, guard: Callable[[], None] = lambda: None) -> None:
        self.uri, self.guard = str(uri), guard
        self.is_local = "://" not in self.uri or self.uri.startswith("file://")
        if self.is_local:
            self.uri = str(Path(self.uri.removeprefix("file://")).expanduser().absolute())

    def __truediv__(self, name: str) -> Folder:
        return Folder(self._at(name), guard=self.guard)

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def _at(self, name: str) -> str:
        parts = name.split("/")
        if not name or name.startswith("/") or ".." in parts or "\\" in name:
            raise StorageError(f"refused to leave {self.uri}: got the name {name!r}, expected a plain relative one")
        return f"{self.uri.rstrip('/')}/{name}"

    def _fs(self) -> Any:
        import fsspec  # imported here: local ledgers never need it

        fs = fsspec.core.url_to_fs(self.uri)[0]
        fs.invalidate_cache()  # listings are cached, and other machines write here too
        return fs

    def exists(self, name: str) -> bool:
        """Return whether the file ``name`` is there."""
        path = self._at(name)
        return os.path.exists(path) if self.is_local else bool(self._fs().exists(path))

    def read(self, name: str) -> bytes:
        """Return the content of ``name``.

        Raises:
            StorageError: it is missing or cannot be read.
        """
        path = self._at(name)
        try:
            return Path(path).read_bytes() if self.is_local else bytes(self._fs().cat_file(path))
        except OSError as error:
            raise StorageError(f"could not read {path}: {error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Replace ``name`` by ``data``, atomically.

        Raises:
            StorageError: the storage refused (disk full, no permission); the old content is untouched.
        """
        self.guard()
        path = self._at(name)
        if not self.is_local:
            try:
                self._fs().pipe_file(path, data)
            except OSError as error:
                raise StorageError(f"could not write {path}: {error}") from error
            return
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):  # there may be no folder to remove it from
                Path(temporary).unlink()
            raise StorageError(f"could not write {path}: {error}; what was there before is unchanged") from error

    def append_line(self, name: str, line: str) -> None:
        """Append one line to ``name``; on an object store the (small) file is rewritten."""
        self.guard()
        data = (line + "\n").encode()
        if not self.is_local:
            self.write(name, (self.read(name) if self.exists(name) else b"") + data)
            return
        path = self._at(name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"could not append to {path}: {error}") from error

    def read_json(self, name: str) -> Any:
        """Return the JSON value in ``name``.

        Raises:
            StorageError: it is missing, or damaged.
        """
        data = self.read(name)
        try:
            value = json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self._at(name)} is damaged, expected JSON: {error}") from error
        if isinstance(value, dict) and value.pop("seal", None) is not None and not is_sealed(data):
            raise StorageError(f"{self._at(name)} is damaged or was changed by hand: its seal does not fit")
        return value

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON, an object with its seal; NaN is refused: it is not JSON, and others choke on it."""
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        if isinstance(value, dict):
            rest = text[1:]
            seal = hashlib.sha256(rest.encode()).hexdigest()
            text = f'{{\n "seal": "{seal}"' + ("," if value else "\n") + rest
        self.write(name, (text + "\n").encode())

    def is_intact(self, name: str) -> bool:
        """Return whether ``name`` is there and a JSON object exactly as ``write_json`` wrote it."""
        return self.exists(name) and is_sealed(self.read(name))

    def size(self, name: str) -> int | None:
        """Return the size of the file in bytes, None when it is missing."""
        path = self._at(name)
        if not self.is_local:
            return int(self._fs().size(path)) if self.exists(name) else None
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None

    def read_lines(self, name: str) -> list[Any]:
        """Return the JSON values of a ``.jsonl`` file, [] when it is missing; a torn last line is left out."""
        if not self.exists(name):
            return []
        lines = self.read(name).split(b"\n")[:-1]  # what follows the last newline was never finished
        try:
            return [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            raise StorageError(f"{self._at(name)} is damaged, expected one JSON value a line: {error}") from error

    def children(self) -> Iterator[str]:
        """Yield the names of files and folders directly below, sorted; nothing when the folder is missing."""
        if self.is_local:
            if os.path.isdir(self.uri):
                yield from sorted(os.listdir(self.uri))
            return
        fs = self._fs()
        if fs.exists(self.uri):
            yield from sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(self.uri, detail=False)})

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file, replacing what had the new name."""
        self.guard()
        old, new = self._at(name), self._at(new_name)
        try:
            if self.is_local:
                os.replace(old, new)
            else:
                self._fs().mv(old, new)
        except OSError as error:
            raise StorageError(f"could not rename {old} to {new_name}: {error}") from error

    def remove(self, name: str) -> None:
        """Remove the file or folder ``name`` if it is there."""
        self.guard()
        path = self._at(name)
        if not self.is_local:
            if self._fs().exists(path):
                self._fs().rm(path, recursive=True)
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def is_sealed(data: bytes) -> bool:
    """Return whether these are the bytes of a JSON object as ``Folder.write_json`` writes it."""
    head = _SEAL.match(data)
    if head is None or not data.endswith(b"\n"):
        return False
    return hashlib.sha256(data[head.end() : -1]).hexdigest().encode() == head.group(1)
