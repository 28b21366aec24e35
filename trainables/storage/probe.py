"""Probe of a storage from one machine: whatever a trial does with it, once, in a folder that is removed again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress

from trainables.errors import StorageError
from trainables.storage.claims import ClaimedFolder, release_claim, take_claim
from trainables.storage.folder import Folder

#: Folder of a ledger in which machines try what they can do.
PROBE = ".probe"


def probe_storage(root: Folder, machine: str, *, finds_driver: Callable[[], bool] | None = None) -> None:
    """Write, read back, overwrite conditionally and remove an object below ``<root>/.probe``, as a trial does.

    Args:
        root: folder of a ledger.
        machine: name of this machine, for the folder and for the error.
        finds_driver: returns whether this machine sees what the driver has written; None: it is the driver's.

    Raises:
        StorageError: this machine cannot do one of that; the message names the machine, the step and the error.
    """
    folder = root / PROBE / f"{''.join(filter(str.isalnum, machine))}-{uuid.uuid4().hex[:8]}"
    step = "find what the driver has written"
    try:
        if finds_driver is not None and not finds_driver():
            raise StorageError("there is nothing. Is this storage shared by all machines, mounted at the same place?")
        step = "write a claim"
        claims = folder / "claims"
        claim = take_claim(claims, 1)
        trial = ClaimedFolder((folder / "trial").uri, claims=claims, claim=claim, guard=root.guard)
        step = "write an object"
        trial.write("probe", b"1")
        step = "overwrite it on condition that it is unchanged"
        trial.write("probe", b"2")
        step = "read it back"
        if (found := trial.read("probe")) != b"2":
            raise StorageError(f"found {found!r}, expected b'2' as written before")
        step = "remove it"
        release_claim(claims, claim)
        remove_probe(root, folder.name)
    except StorageError as error:
        raise StorageError(
            f"the storage {root.uri} cannot be used from {machine}: tried to {step}: {error}. Give that machine access "
            "(credentials or a role of its own, the mount, permissions) or take it out of the cluster"
        ) from error


def remove_probe(root: Folder, name: str) -> None:
    """Remove a file or folder below ``.probe``, and that if it is empty now."""
    (root / PROBE).remove(name)
    if root.is_local:
        with suppress(OSError):  # another machine is at it
            os.rmdir((root / PROBE).uri)
