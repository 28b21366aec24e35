"""A folder on local disk or behind any fsspec URI, with the few operations a ledger needs.

Writes are atomic: a reader sees the old content or the new, never a part (rename on local disk, single PUT on an
object store). A JSON object begins with its seal, a checksum of everything after it, which reveals changes by a failing
disk, a full disk or an editor. This module does not know the meaning of the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic_core import from_json

from trainables.errors import ConfigError, DiskFullError, StorageError, redact
from trainables.storage import object_store

T = TypeVar("T")

#: Beginning of a sealed JSON object. The seal is the checksum of the bytes after it, without the last newline.
_SEAL = re.compile(rb'{\n "seal": "([0-9a-f]{64})"[,\n]')
#: ``user:password@`` in a URI.
_PASSWORD = re.compile(r"://[^/@]*:[^/]*@")
#: Error numbers for a full disk or an exhausted quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Folder:
    """One folder; ``folder / "name"`` is a folder below it. Folders are created by the first write.

    Args:
        uri: a local path, or a URI of fsspec (``s3://bucket/prefix``, ``memory://x``).
        guard: called before every change here or below; an exception from it prevents the change.
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

    def _ask(self, attempt: str, question: Callable[[Any], T]) -> T:
        """Return the answer of fsspec's file system to ``question``, see ``object_store.ask``."""
        return object_store.ask(self.uri, attempt, question, explain_failure)

    def exists(self, name: str) -> bool:
        """Return whether the file or folder ``name`` exists."""
        path = self._at(name)
        if self.is_local:
            return os.path.exists(path)
        return self._ask(f"look for {path}", lambda fs: bool(fs.exists(path)))

    def read(self, name: str) -> bytes:
        """Return the content of ``name``.

        Raises:
            StorageError: the file is missing or cannot be read.
        """
        path = self._at(name)
        if not self.is_local:
            return self._ask(f"read {path}", lambda fs: bytes(fs.cat_file(path)))
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise StorageError(f"could not read {path}: {error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` to ``name`` atomically, replacing old content.

        Raises:
            StorageError: the storage refused the write (disk full, no permission); the old content is unchanged.
        """
        self.guard()
        path = self._at(name)
        if not self.is_local:
            self._ask(f"write {path}", lambda fs: fs.pipe_file(path, data))
            return
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            replace_synced(temporary, path, data)
        except OSError as error:
            with suppress(OSError):  # there may be no folder to remove it from
                Path(temporary).unlink()
            raise explain_failure(f"could not write {path}", error) from error

    def create(self, name: str, data: bytes) -> bool | None:
        """Write ``name`` in one step unless it exists; return whether it was written.

        If several processes try at once, exactly one succeeds. Returns None, and writes nothing, if fsspec's library
        for this storage has no such operation.

        Raises:
            StorageError: the storage refused the write.
        """
        self.guard()
        path = self._at(name)
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb") as file:
                    file.write(data)
                return True
            return self._create_object(path, data)
        except FileExistsError:
            return False
        except OSError as error:
            raise explain_failure(f"could not create {path}", error) from error

    def _create_object(self, path: str, data: bytes) -> bool | None:
        tries = 0

        def create(fs: Any) -> bool | None:
            nonlocal tries
            if not object_store.can_create(fs):
                return None
            tries += 1
            with suppress(FileExistsError):
                fs.pipe_file(path, data, mode="create")
                return True
            # The answer to the try before may have been lost: it exists because of that one.
            return tries > 1 and bytes(fs.cat_file(path)) == data

        return self._ask(f"create {path}", create)

    def append_line(self, name: str, line: str) -> None:
        """Append one line to ``name``; on an object store the (small) file is rewritten.

        An incomplete last line, left by a full disk or a kill, is cut off first; ``read_lines`` never returns it.

        Raises:
            StorageError: the storage refused the write; all earlier lines are kept.
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
            StorageError: the file is missing or damaged.
        """
        data = self.read(name)
        try:
            value = parse_json(data)
        except ValueError as error:
            raise StorageError(f"{self._at(name)} is damaged, expected JSON: {error}") from error
        if isinstance(value, dict) and value.pop("seal", None) is not None and not is_sealed(data):
            raise StorageError(f"{self._at(name)} is damaged or was changed by hand: its seal does not fit")
        return value

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON, with a seal if it is an object.

        NaN raises ValueError: it is not JSON, and other parsers fail on it.
        """
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        if isinstance(value, dict):
            rest = text[1:]
            seal = hashlib.sha256(rest.encode()).hexdigest()
            text = f'{{\n "seal": "{seal}"' + ("," if value else "\n") + rest
        self.write(name, (text + "\n").encode())

    def is_intact(self, name: str) -> bool:
        """Return whether ``name`` exists and is a JSON object exactly as ``write_json`` wrote it."""
        try:
            return is_sealed(self.read(name))
        except StorageError as error:
            # No check beforehand: that is one more request, and others remove files.
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return False
            raise

    def stat(self, name: str) -> tuple[int, int] | None:
        """Return the size (bytes) and modification time (ns) of a file, None if it is missing.

        On an object store the time is 0: files are never changed in place there.
        """
        path = self._at(name)
        if not self.is_local:
            return self._ask(f"look at {path}", lambda fs: (int(fs.size(path)), 0) if fs.exists(path) else None)
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file in hexadecimal; a file on disk is read in pieces.

        Raises:
            StorageError: the file is missing or cannot be read.
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
        """Return the JSON values of a ``.jsonl`` file, [] if it is missing; an incomplete last line is left out."""
        try:
            whole = self.read(name).rpartition(b"\n")[0]  # the rest is an incomplete line
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        try:
            return [parse_json(line) for line in whole.split(b"\n") if line.strip()]
        except ValueError as error:
            raise StorageError(f"{self._at(name)} is damaged, expected one JSON value a line: {error}") from error

    def children(self) -> Iterator[str]:
        """Yield the sorted names of files and folders directly below; none if the folder is missing."""
        if self.is_local:
            try:
                names = sorted(os.listdir(self.uri))
            except (FileNotFoundError, NotADirectoryError):  # no check beforehand: others remove folders
                return
            yield from names
            return
        paths = self._ask(f"list {self.uri}", self._list_object_store)
        yield from sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths})

    def _list_object_store(self, fs: Any) -> list[Any]:
        try:
            found: list[Any] = fs.ls(self.uri, detail=False)
        except FileNotFoundError:
            return []
        return found

    def grandchildren(self, beginnings: str) -> dict[str, set[str]]:
        """Return name of each folder directly below → names of the files and folders directly in it.

        On an object store this takes one request per thousand files at any depth, not one per folder.

        Args:
            beginnings: characters with which the names of the folders begin; others are left out on an object store.
                Each is listed by itself, all at the same time.
        """
        if self.is_local:
            return {name: set((self / name).children()) for name in self.children()}
        found: dict[str, set[str]] = {}
        for name in self._find_below(beginnings):
            child, _, rest = name.partition("/")
            if child[:1] in beginnings:
                found.setdefault(child, set()).update([rest.partition("/")[0]] if rest else [])
        return dict(sorted(found.items()))

    def _find_below(self, beginnings: str) -> list[str]:
        def look(beginning: str) -> list[str]:
            attempt = f"list {self.uri}/{beginning}*"
            return self._ask(attempt, lambda fs: object_store.find_below(fs, self.uri, beginning))

        if not self._ask(f"list {self.uri}", object_store.lists_by_beginning):
            return look("")
        with ThreadPoolExecutor(len(beginnings)) as pool:
            return [name for names in pool.map(look, beginnings) for name in names]

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file, replacing a file of the new name."""
        self.guard()
        old, new = self._at(name), self._at(new_name)
        if not self.is_local:
            self._ask(f"rename {old} to {new_name}", lambda fs: fs.cp_file(old, new))
            self._ask(f"remove {old} after copying it to {new_name}", lambda fs: _remove_object(fs, old))
            return
        try:
            os.replace(old, new)
        except OSError as error:
            raise explain_failure(f"could not rename {old} to {new_name}", error) from error

    def remove(self, name: str) -> None:
        """Remove the file or folder ``name`` if it exists."""
        self.guard()
        path = self._at(name)
        if not self.is_local:
            self._ask(f"remove {path}", lambda fs: _remove_object(fs, path))
        elif os.path.isdir(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def parse_json(data: bytes) -> Any:
    """Return the JSON value in ``data``, as ``json.loads`` does, in half of its time or less.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return from_json(data)
    except ValueError:
        return json.loads(data)  # takes half of a surrogate pair (an undecodable file name in a message) as well


def replace_synced(temporary: str, path: str, data: bytes) -> None:
    """Write ``data`` to ``temporary`` and, once it is on the disk, rename that to ``path``."""
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _remove_object(fs: Any, path: str) -> None:
    with suppress(FileNotFoundError):  # a try before may have removed it, and its answer been lost
        if fs.exists(path):
            fs.rm(path, recursive=True)


def _cut_torn_line(file: IO[bytes]) -> None:
    """Cut off everything after the last newline."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def is_disk_full(error: BaseException) -> bool:
    """Return whether ``error`` means a full disk or an exhausted quota, whichever library raised it."""
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in _FULL)


def explain_failure(attempt: str, error: OSError) -> StorageError:
    """Return the StorageError to raise after a failed write; a DiskFullError if the disk is full.

    Args:
        attempt: description of the failed operation, with the file's name.
        error: error of the operating system.
    """
    if is_disk_full(error):
        return DiskFullError(
            f"{attempt}: the disk is full ({error.strerror}). Nothing that was complete is harmed: make room, and run "
            "the same command again to go on"
        )
    return StorageError(f"{attempt}: {error}; what was there before is unchanged")


def is_sealed(data: bytes) -> bool:
    """Return whether ``data`` is a JSON object with an intact seal, as ``Folder.write_json`` writes it."""
    head = _SEAL.match(data)
    if head is None or not data.endswith(b"\n"):
        return False
    return hashlib.sha256(data[head.end() : -1]).hexdigest().encode() == head.group(1)
