"""Slots on nodes that join a cluster while a study runs: the storage is tried there before the first trial.

A slot whose node cannot use the storage gives its chunk back and stays where it is, so that Tune starts nothing else
there. It tries the storage again from time to time: a mount may come late.
"""

from __future__ import annotations

import math
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


class LateSlot:
    """A ``ChunkRunner`` that tries the storage first; where it cannot be used, it ends once it can.

    The first step does so, not the constructor: Tune ends an actor that takes long to start as soon as another is free.

    Args:
        chunk: first chunk.
    """

    def __init__(self, chunk: dict[str, Any]) -> None:
        #: Error of this node, None if it can use the storage or has not tried it.
        self.refusal: str | None = None
        self._runner: ChunkRunner | None = None
        self.begin(chunk)

    def begin(self, chunk: dict[str, Any]) -> None:
        """Start the next chunk."""
        self._chunk, self._tried = chunk, -math.inf
        if self._runner is not None:
            self._runner.begin(chunk)

    @property
    def is_done(self) -> bool:
        """Whether no stage or trial of the chunk is left, and this node can use the storage."""
        if self._runner is not None:
            return self._runner.is_done
        return self.refusal is None and self._tried > -math.inf

    def step(self) -> list[dict[str, Any]]:
        """Return the new events, see ``ChunkRunner.step``.

        Where the storage cannot be used: at first give the chunk back, as ``returned`` events; later wait, and now and
        then try again.
        """
        if self._runner is not None:
            return self._runner.step()
        is_first = self._tried == -math.inf
        if not is_first:
            time.sleep(2 * self._chunk["report_seconds"])
        if time.monotonic() - self._tried >= RETRY_SECONDS:
            self.refusal, self._tried = try_storage(self._chunk["lease"]), time.monotonic()
        if not is_first:
            return []
        if self.refusal is None:
            self._runner = ChunkRunner(self._chunk)
            return self._runner.step()
        signatures = [work["record"]["signature"] for work in self._chunk["works"]]
        return [{"signature": each, "event": "returned", "busy_seconds": 0.0} for each in signatures]

    def disconnect_if_orphaned(self) -> None:
        """End the fork server if nobody asks for events (``ChunkRunner.disconnect_if_orphaned``)."""
        if self._runner is not None:
            self._runner.disconnect_if_orphaned()

    def close(self) -> None:
        """End the running process, if any."""
        if self._runner is not None:
            self._runner.close()


def make_runner(chunk: dict[str, Any], probed: Collection[str] | None) -> ChunkRunner | LateSlot:
    """Return what runs the chunks of a slot on this node.

    Args:
        chunk: first chunk.
        probed: ids of the nodes that can use the storage; None: the storage is not tried.
    """
    if probed is None or chunk["lease"] is None or ray.get_runtime_context().get_node_id() in probed:
        return ChunkRunner(chunk)
    return LateSlot(chunk)


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
