"""Slots on nodes that join a cluster while a study runs: the storage is tried there before the first trial.

A slot whose node cannot use the storage gives its chunk back and stays where it is, so that Tune starts nothing else
there. It tries the storage again from time to time: a mount may come late.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.cluster.connection import ray
from orchestrator.execution.chunk_runner import ChunkRunner
from orchestrator.ledger.lease import read_lease
from trainables.errors import LeaseError, StorageError
from trainables.storage.folder import Folder
from trainables.storage.probe import probe_storage

#: Seconds after which a node that could not use the storage is tried again.
RETRY_SECONDS = 60.0


class RefusedSlot:
    """Takes the place of a ``ChunkRunner`` where the storage cannot be used; ends once it can.

    Args:
        chunk: chunk that another slot should run.
        refusal: error of this node.
    """

    def __init__(self, chunk: dict[str, Any], refusal: str) -> None:
        self.refusal: str | None = refusal
        self._chunk, self._left = chunk, list(chunk["works"])
        self._tried = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether this node can use the storage now."""
        return self.refusal is None

    def step(self) -> list[dict[str, Any]]:
        """Return the chunk, as ``returned`` events; later wait, and now and then try the storage again."""
        if self._left:
            left, self._left = self._left, []
            return [
                {"signature": work["record"]["signature"], "event": "returned", "busy_seconds": 0.0} for work in left
            ]
        time.sleep(2 * self._chunk["report_seconds"])
        if time.monotonic() - self._tried >= RETRY_SECONDS:
            self.refusal, self._tried = try_storage(self._chunk["lease"]), time.monotonic()
        return []

    def disconnect_if_orphaned(self) -> None:
        """Do nothing: no process runs."""

    def close(self) -> None:
        """Do nothing: no process runs."""


def make_runner(chunk: dict[str, Any], probed: Collection[str] | None) -> ChunkRunner | RefusedSlot:
    """Return what runs the chunks of a slot on this node, after trying the storage if the node joined late.

    Args:
        chunk: first chunk.
        probed: ids of the nodes that can use the storage; None: the storage is not tried.
    """
    if probed is None or chunk["lease"] is None or ray.get_runtime_context().get_node_id() in probed:
        return ChunkRunner(chunk)
    refusal = try_storage(chunk["lease"])
    return ChunkRunner(chunk) if refusal is None else RefusedSlot(chunk, refusal)


def try_storage(lease: Mapping[str, str]) -> str | None:
    """Return the error of this machine, None if it can use the storage on which the driver holds its lease."""
    root = Folder(lease["root"])

    def finds_driver() -> bool:
        holder = read_lease(root, lease["name"])
        return holder is not None and holder["token"] == lease["token"]

    try:
        probe_storage(root, f"the node {socket.gethostname()}", finds_driver=finds_driver)
    except (LeaseError, StorageError) as error:
        return str(error)
    return None
