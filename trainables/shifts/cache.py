"""Shifted copies of a test set on disk, built once per node and memory-mapped by every process that evaluates on them.

    <cache_dir>/shifts/<key>.u8    CRC-32 of what follows (4 bytes), then uint8 (n, channels, height, width)
    <cache_dir>/shifts/<key>.tmp   a copy that is being written; never read

A process holds an exclusive lock on a file while it writes it and a shared lock while it uses it, so that no two
processes build the same copy and no copy in use is evicted. The kernel releases the locks of a killed process. Copies
only save time: if one is missing, for whatever reason, the shift is computed, with the same result.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.data.cache import CACHE_VERSION
from trainables.data.feed import ImageFeed, split_sizes
from trainables.data.table import hash_json
from trainables.shifts import strong
from trainables.shifts.medmnist_c import STAIN
from trainables.shifts.operations import OPERATIONS
from trainables.shifts.shift import IDENTITY, Shift

_LOG = logging.getLogger(__name__)
#: Size of the CRC-32 that is checked whenever a copy is used; SHA-256 takes three times as long (1.6, 5.4 GiB/s).
_CHECK_BYTES = 4
#: Disk space that copies leave free for checkpoints and results. An assumption.
MIN_FREE_BYTES = 2 * 2**30
#: Finding room takes milliseconds.
_LOCK_SECONDS = 5.0
#: Operations that are computed on the CPU wherever the images are. For images on a GPU only their copies are worth
#: reading, because the other operations run on the GPU. An assumption: not measured.
ON_CPU = ("jpeg", "strong_jpeg")


@cache
def digest_operations() -> str:
    """Return a digest of the code of the operations and of ``seeding``, and of the versions of their libraries.

    The digest is part of a copy's key, so that copies from before a change of an operation are no longer found and no
    version number has to be raised by hand.
    """
    digest = hashlib.sha256()
    for package in ("trainables.ops", "trainables.shifts", "trainables"):
        for file in sorted(files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py") and (package != "trainables" or file.name == "seeding.py"):
                digest.update(file.read_bytes())
    for library in ("torch", "numpy", "pillow"):
        digest.update(version(library).encode())
    return digest.hexdigest()


def name_operation(shift: Shift) -> str | None:
    """Return the name of the operation that a shift applies; None for compositions and operations of other packages.

    The effect of these is not known from outside, so no copies of them are kept.
    """
    if shift.operation is None:
        return shift.name
    known = OPERATIONS | strong.OPERATIONS | {"stain": STAIN}
    return next((name for name, operation in known.items() if operation is shift.operation), None)


def describe_device(device: torch.device) -> list[str]:
    """Return the properties that decide how a device rounds: its type, and CPU instructions or GPU model."""
    if device.type == "cuda":
        return ["cuda", torch.cuda.get_device_name(device)]
    return [device.type, torch.backends.cpu.get_cpu_capability()]


class ShiftedCopies:
    """Shifted copies of one image set, as a context manager; copies found or built are not evicted until it exits.

    Args:
        folder: folder of all copies of a node.
        budget_bytes: limit on the size of all copies; the least recently used are evicted. 0: no copies are kept.
        feed: images of the set, on the device on which they are shifted.
        seeds: seeds of ``Shift.apply``, one per image.
        content: identity of images and seeds: fingerprint of the data, name of the set, seed of the shifts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        budget_bytes: int,
        feed: ImageFeed,
        seeds: Int64[Tensor, " n"],
        content: Sequence[str | int],
    ) -> None:
        self._folder, self._budget_bytes, self._feed, self._seeds = folder, budget_bytes, feed, seeds
        self._content = [CACHE_VERSION, *content, *describe_device(feed.device), digest_operations()]
        self._shape = feed.images.images.shape
        self._size_bytes = _CHECK_BYTES + int(np.prod(self._shape))
        self._held: dict[Path, IO[bytes]] = {}
        self._files = ExitStack()

    def __enter__(self) -> ShiftedCopies:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        self._files.close()

    # ------------------------------------------------------------------ called by evaluations

    def build(self, shifts: Iterable[Shift], *, batch_size: int, on_built: Callable[[], None] = lambda: None) -> None:
        """Build the missing copies as long as there is room. Copies that another process is building are skipped.

        Existing copies of ``shifts`` are held first, so that none of them is evicted for another one.

        Args:
            shifts: shifts in the order in which they are needed.
            batch_size: images per call of an operation.
            on_built: callback after every copy that was built.
        """
        wanted = {shift: path for shift in shifts if (path := self._locate(shift)) is not None}
        try:
            missing = [(shift, path) for shift, path in wanted.items() if not self._hold(path)]
            if missing:
                self._folder.mkdir(parents=True, exist_ok=True)
            lacking = 0
            for shift, path in missing:
                outcome = self._build(shift, path, batch_size)
                lacking += outcome == "no room"
                if outcome == "built":
                    on_built()
        except OSError as error:  # a full disk, too many open files, a file system without locks
            _LOG.warning("no more shifted copies are kept in %s (%s): shifts are computed instead", self._folder, error)
            return
        if lacking:
            _LOG.info(
                "%d of %d shifted copies do not fit into %s (execution.shift_cache_gib, or the free disk): "
                "these shifts are computed for every trial",
                lacking,
                len(wanted),
                self._folder,
            )

    def transform(self, shift: Shift) -> Callable[[UInt8[Tensor, "m c *space"], slice], UInt8[Tensor, "m c *space"]]:
        """Return a function from images and their rows to the shifted images, read from the copy if there is one.

        Calls must go through the set from the first row to the last, any number of times. The copy is looked up at
        the start of each pass.
        """
        mapped: UInt8[np.ndarray, "n c *space"] | None = None

        def apply(images: UInt8[Tensor, "m c *space"], rows: slice) -> UInt8[Tensor, "m c *space"]:
            nonlocal mapped
            if rows.start == 0:
                mapped = self._map(shift)
            if mapped is None:
                return shift.apply(images, self._seeds[rows])
            shifted = torch.from_numpy(np.array(mapped[rows])).to(images.device)
            if rows.stop == len(self._feed):
                mapped = None  # mapped pages count as memory of this process
            return shifted

        return apply

    # ------------------------------------------------------------------ one copy

    def _locate(self, shift: Shift) -> Path | None:
        """Return the path of the copy of a shift, whether or not it exists; None if no copy of this shift is kept."""
        name = name_operation(shift)
        is_worth_it = self._feed.device.type == "cpu" or name in ON_CPU
        if name is None or shift == IDENTITY or not is_worth_it or self._budget_bytes < self._size_bytes:
            return None
        key: list[Any] = [*self._content, shift.name, name, shift.strength]
        return self._folder / f"{hash_json(key)[:32]}.u8"

    def _hold(self, path: Path) -> bool:
        """Protect a copy from eviction; return whether it exists."""
        if path in self._held:
            return True
        try:
            file = self._files.enter_context(path.open("rb"))
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # another process renames or removes it, or was suspended while it did
            return False
        if os.fstat(file.fileno()).st_size != self._size_bytes:
            self._discard(path)
            return False
        os.utime(path)
        self._held[path] = file
        return True

    def _discard(self, path: Path) -> None:
        _LOG.warning("the shifted copy %s is damaged: it was removed, to be built again", path)
        self._held.pop(path, None)
        path.unlink(missing_ok=True)

    def _map(self, shift: Shift) -> UInt8[np.ndarray, "n c *space"] | None:
        """Return the memory-mapped copy after checking every byte; None if it is missing, damaged or unreadable."""
        path = self._locate(shift)
        try:
            if path is None or not self._hold(path):
                return None
            file = self._held[path]
            mapped = np.memmap(file, np.uint8, "r", offset=_CHECK_BYTES, shape=self._shape)
            file.seek(0)
            if file.read(_CHECK_BYTES) == _checksum(mapped.data):
                return mapped
            self._discard(path)
        except OSError as error:
            _LOG.warning("could not read the shifted copy %s (%s): the shift is computed instead", path, error)
        return None

    def _build(self, shift: Shift, path: Path, batch_size: int) -> Literal["built", "left to another", "no room"]:
        temporary = path.with_suffix(".tmp")
        with ExitStack() as files:
            file = files.enter_context(open(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644), "r+b"))
            if not _lock_exclusively(file) or not _is_at(temporary, file):
                return "left to another"
            try:
                # Another process has just finished it, and may not hold it shared yet.
                if self._hold(path) or path.exists():
                    return "left to another"
                file.truncate(0)  # the content that a killed process has left
                if not self._reserve(file):
                    return "no room"
                self._write(shift, file, batch_size)
                temporary.replace(path)
            finally:
                if _is_at(temporary, file):
                    temporary.unlink()
            fcntl.flock(file, fcntl.LOCK_SH)
            self._held[path] = file
            self._files.push(files.pop_all())
        return "built"

    def _write(self, shift: Shift, file: IO[bytes], batch_size: int) -> None:
        check, start = _checksum(b""), 0
        file.seek(_CHECK_BYTES)
        count = len(self._feed)
        for images in self._feed.batches(np.arange(count), split_sizes(count, batch_size)):
            shifted = shift.apply(images, self._seeds[start : start + len(images)])
            pixels = shifted.contiguous().cpu().numpy().data
            check = _checksum(pixels, check)
            file.write(pixels)
            start += len(images)
        file.seek(0)
        file.write(check)
        file.flush()  # not synced: a file damaged by a crash of the machine fails the checksum

    # ------------------------------------------------------------------ disk space

    def _reserve(self, file: IO[bytes]) -> bool:
        """Reserve space for one copy in ``file`` from the budget of all processes; return whether there was enough."""
        with (self._folder / "room.lock").open("w") as lock:
            if not _lock_soon(lock):  # another process was suspended while it looked for room
                return False
            if not self._evict_copies():
                return False
            if hasattr(os, "posix_fallocate"):  # other processes see at once that the space is used
                os.posix_fallocate(file.fileno(), 0, self._size_bytes)
            else:
                file.truncate(self._size_bytes)
        return True

    def _evict_copies(self) -> bool:
        copies = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # another process has finished or removed it
                if entry.name.endswith((".u8", ".tmp")):
                    stat = entry.stat()
                    copies.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        used = sum(size for _, size, _ in copies)
        free = shutil.disk_usage(self._folder).free - MIN_FREE_BYTES
        lacking = self._size_bytes + max(used - self._budget_bytes, -free)
        others = sorted(copy for copy in copies if copy[2] not in self._held)
        if sum(size for _, size, _ in others) < lacking:
            return False  # evicting all of them would not suffice
        for _, size, path in others:
            if lacking > 0 and _evict(path):
                lacking -= size
        return lacking <= 0


def _checksum(content: bytes | memoryview, before: bytes = bytes(_CHECK_BYTES)) -> bytes:
    """Return the checksum of ``content`` appended to data whose checksum is ``before``."""
    return zlib.crc32(content, int.from_bytes(before, "big")).to_bytes(_CHECK_BYTES, "big")


def _lock_soon(file: IO[Any]) -> bool:
    """Return whether the lock was free within ``_LOCK_SECONDS``."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while not _lock_exclusively(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _lock_exclusively(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Return whether an open file is still at ``path``; another process may have finished or removed it meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Remove a copy unless another process uses or writes it; return whether it is gone."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        if not _lock_exclusively(file):
            return False
        path.unlink()
    return True
