"""A folder on local disk or behind any fsspec URI, with the few operations a ledger needs.

Writes are atomic: a reader sees the old content or the new, never a part (rename on local disk, single PUT on an
object store). A JSON object begins with its seal, a checksum of all that follows: what a failing disk, a full one or an
editor has made of it is noticed. Nothing here knows what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trainables.errors import ConfigError, DiskFullError, StorageError, redact

#: How a sealed JSON object begins. The seal is of the bytes behind this, without the last newline.
_SEAL = re.compile(rb'{\n "seal": "([0-9a-f]{64})"[,\n]')
#: ``user:password@`` in a URI.
_PASSWORD = re.compile(r"://[^/@]*:[^/]*@")
#: How a system says that a disk, or somebody's share of it, is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
            try:
                self.uri = str(Path(self.uri.removeprefix("file://")).expanduser().absolute())
            except RuntimeError as error:  # ~nobody/…
                raise StorageError(f"looked for the folder {self.uri}: {error}; give another one") from error
        elif _PASSWORD.search(self.uri):
            raise ConfigError(
                f"got the storage {redact(self.uri)} with a password in it, which every file that names the storage "
                "would show; give it in the environment (FSSPEC_<PROTOCOL>_PASSWORD) or in fsspec's configuration"
            )

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
        if not name or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise StorageError(f"refused to leave {self.uri}: got the name {name!r}, expected a plain relative one")
        return f"{self.uri.rstrip('/')}/{name}"

    @contextmanager
    def _fs(self, attempt: str) -> Iterator[Any]:
        """Yield fsspec's file system; whatever goes wrong is a ``StorageError`` that says what was attempted."""
        try:
            import fsspec  # imported here: local ledgers never need it

            fs = fsspec.core.url_to_fs(self.uri)[0]
            fs.invalidate_cache()  # listings are cached, and other machines write here too
            yield fs
        except OSError as error:
            raise explain_failure(f"could not {attempt}", error) from error
        except Exception as error:  # the seam: every file system has errors of its own, without a common base
            raise StorageError(f"could not {attempt}: {type(error).__name__}: {error}") from error

    def exists(self, name: str) -> bool:
        """Return whether the file ``name`` is there."""
        path = self._at(name)
        if self.is_local:
            return os.path.exists(path)
        with self._fs(f"look for {path}") as fs:
            return bool(fs.exists(path))

    def read(self, name: str) -> bytes:
        """Return the content of ``name``.

        Raises:
            StorageError: it is missing or cannot be read.
        """
        path = self._at(name)
        if not self.is_local:
            with self._fs(f"read {path}") as fs:
                return bytes(fs.cat_file(path))
        try:
            with open(path, "rb") as file:
                return file.read()
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
            with self._fs(f"write {path}") as fs:
                fs.pipe_file(path, data)
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
            raise explain_failure(f"could not write {path}", error) from error

    def create(self, name: str, data: bytes) -> bool | None:
        """Write ``name`` unless it is there, in one step; return whether it was written.

        Of several who try at once one succeeds. None where fsspec's library for this storage has no such step.

        Raises:
            StorageError: the storage refused.
        """
        self.guard()
        path = self._at(name)
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb") as file:
                    file.write(data)
                return True
            with self._fs(f"create {path}") as fs:
                if not _creates_in_one_step(type(fs)):
                    return None
                with suppress(FileExistsError):
                    fs.pipe_file(path, data, mode="create")
                    return True
                return False
        except FileExistsError:
            return False
        except OSError as error:
            raise explain_failure(f"could not create {path}", error) from error

    def append_line(self, name: str, line: str) -> None:
        """Append one line to ``name``; on an object store the (small) file is rewritten.

        What a full disk or a kill has left of a line is cut off first: nobody has read it (``read_lines``).

        Raises:
            StorageError: the storage refused; all lines before are there.
        """
        self.guard()
        data = (line + "\n").encode()
        if not self.is_local:
            before = self.read(name) if self.exists(name) else b""
            self.write(name, before[: before.rfind(b"\n") + 1] + data)
            return
        path = self._at(name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a+b") as file:
                _cut_torn_line(file)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_failure(f"could not append to {path}", error) from error

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

    def stat(self, name: str) -> tuple[int, int] | None:
        """Return the size of a file in bytes and when it was last written (ns), None when it is missing.

        On an object store the time is 0: nothing is changed in place there.
        """
        path = self._at(name)
        if not self.is_local:
            with self._fs(f"look at {path}") as fs:
                return (int(fs.size(path)), 0) if fs.exists(path) else None
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns

    def sha256(self, name: str) -> str:
        """Return the checksum of a file, read in pieces on a disk.

        Raises:
            StorageError: it is missing or cannot be read.
        """
        if not self.is_local:
            return hashlib.sha256(self.read(name)).hexdigest()
        path = self._at(name)
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StorageError(f"could not read {path}: {error}") from error

    def read_lines(self, name: str) -> list[Any]:
        """Return the JSON values of a ``.jsonl`` file, [] when it is missing; a torn last line is left out."""
        if not self.exists(name):
            return []
        whole = self.read(name).rpartition(b"\n")[0]  # what follows the last newline was never finished
        try:
            return [json.loads(line) for line in whole.decode().split("\n") if line.strip()]
        except ValueError as error:
            raise StorageError(f"{self._at(name)} is damaged, expected one JSON value a line: {error}") from error

    def children(self) -> Iterator[str]:
        """Yield the names of files and folders directly below, sorted; nothing when the folder is missing."""
        if self.is_local:
            if os.path.isdir(self.uri):
                yield from sorted(os.listdir(self.uri))
            return
        with self._fs(f"list {self.uri}") as fs:
            paths = fs.ls(self.uri, detail=False) if fs.exists(self.uri) else []
        yield from sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths})

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file, replacing what had the new name."""
        self.guard()
        old, new = self._at(name), self._at(new_name)
        if not self.is_local:
            with self._fs(f"rename {old} to {new_name}") as fs:
                fs.mv(old, new)
            return
        try:
            os.replace(old, new)
        except OSError as error:
            raise explain_failure(f"could not rename {old} to {new_name}", error) from error

    def remove(self, name: str) -> None:
        """Remove the file or folder ``name`` if it is there."""
        self.guard()
        path = self._at(name)
        if not self.is_local:
            with self._fs(f"remove {path}") as fs:
                if fs.exists(path):
                    fs.rm(path, recursive=True)
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def _creates_in_one_step(file_system: type) -> bool:
    """Return whether the library implements exclusive creation itself; fsspec's own looks first, and writes then."""
    method = getattr(file_system, "_pipe_file", None) or file_system.pipe_file  # type: ignore[attr-defined]
    return "mode" in inspect.signature(method).parameters and not method.__module__.startswith(
        ("fsspec.spec", "fsspec.asyn")
    )


def _cut_torn_line(file: IO[bytes]) -> None:
    """Cut off what follows the last newline."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def is_disk_full(error: BaseException) -> bool:
    """Return whether something failed because there was no room for it, whoever tried to write."""
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _FULL)


def explain_failure(attempt: str, error: OSError) -> StorageError:
    """Return what to raise when something could not be written.

    Args:
        attempt: what was to be done, with the file's name.
        error: of the system.
    """
    if is_disk_full(error):
        return DiskFullError(
            f"{attempt}: the disk is full ({error.strerror}). Nothing that was complete is harmed: make room, and run "
            "the same command again to go on"
        )
    return StorageError(f"{attempt}: {error}; what was there before is unchanged")


def is_sealed(data: bytes) -> bool:
    """Return whether these are the bytes of a JSON object as ``Folder.write_json`` writes it."""
    head = _SEAL.match(data)
    if head is None or not data.endswith(b"\n"):
        return False
    return hashlib.sha256(data[head.end() : -1]).hexdigest().encode() == head.group(1)
