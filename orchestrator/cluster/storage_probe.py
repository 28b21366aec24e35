"""Probe of the storage from every node of a cluster, before anything runs there; later ones: ``late_nodes``."""

from __future__ import annotations

import socket
import uuid
from typing import Any

from orchestrator.cluster.connection import ray
from orchestrator.cluster.ray_thread import RayThread
from trainables.errors import StorageError
from trainables.storage.folder import Folder
from trainables.storage.probe import PROBE, probe_storage, remove_probe

#: How long the nodes may take, all at the same time. An assumption: a store that throttles is asked for 16 s.
TIMEOUT_SECONDS = 120.0


def probe_nodes(root: Folder) -> frozenset[str]:
    """Probe the storage from this machine and from every node on which a trial can run; return the nodes' ids.

    Each node uses the credentials that it has: none are sent to it.

    Args:
        root: folder of the ledger.

    Raises:
        StorageError: a machine cannot use the storage; the message names it, what it tried, and the others that cannot.
        ClusterLostError: the head of the cluster, or the raylet of this machine, is gone.
    """
    probe_storage(root, f"the driver's machine ({socket.gethostname()})")
    expected = f"driver-{uuid.uuid4().hex[:8]}"
    (root / PROBE).write(expected, b"")
    refusals: dict[str, str] = {}
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    asking = RayThread(lambda: refusals.update(_ask_nodes(nodes, root.uri, expected)), name="probe")
    try:
        asking.start()
        asking.wait()
    finally:
        remove_probe(root, expected)
    if refusals:
        (_, said), *others = sorted(refusals.items())
        also = f" The same is true of {len(others)} more: {', '.join(name for name, _ in others)}." if others else ""
        raise StorageError(f"{said.rstrip('.')}.{also}" if also else said)
    return frozenset(node["NodeID"] for node in nodes)


def _ask_nodes(nodes: list[dict[str, Any]], uri: str, expected: str) -> dict[str, str]:
    """Return node → its error, of those that cannot use the storage."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(_probe_here)
    asked: dict[Any, str] = {}
    for node in nodes:
        name = f"the node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[remote.options(scheduling_strategy=where).remote(uri, name, expected)] = name
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=TIMEOUT_SECONDS) if asked else ([], [])
    refusals = {asked[each]: f"{asked[each]} has not answered for {TIMEOUT_SECONDS:.0f} s" for each in silent}
    for each in answered:
        try:
            said = ray.get(each)
        except ray.exceptions.RayError as error:
            said = f"{asked[each]} could not try the storage {uri}: {error}"
        if said is not None:
            refusals[asked[each]] = said
    return refusals


def _probe_here(uri: str, machine: str, expected: str) -> str | None:
    """Return the error of this node, None if it can use the storage; in a worker of the node."""
    root = Folder(uri)
    try:
        probe_storage(root, machine, finds_driver=lambda: (root / PROBE).exists(expected))
    except StorageError as error:
        return str(error)
    return None
