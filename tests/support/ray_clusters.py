"""A Ray cluster of several nodes on this machine, each of which can be lost. Tests only."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.support.processes import find_marked, wait_until


@dataclass
class Node:
    """One raylet and all that runs under it, with a temporary folder of its own, as a machine has one."""

    raylet: Any
    marker: str
    tmp: Path

    def processes(self) -> dict[int, str]:
        """Return pid → command line of what runs there: raylet, agents, actors, fork server, trials."""
        return find_marked(self.marker)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_raylet(self) -> None:
        """Kill the raylet alone."""
        os.kill(self.raylet.all_processes["raylet"][0].process.pid, signal.SIGKILL)


@dataclass
class Machines:
    """A head without CPUs, and workers; see ``running_cluster``."""

    cluster: Cluster
    marker: str
    head: Node = field(init=False)
    workers: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.head = self._add(num_cpus=0, include_dashboard=False)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_worker(self, *, num_cpus: int = 1) -> Node:
        """Start a node that runs trials."""
        self.workers.append(self._add(num_cpus=num_cpus))
        return self.workers[-1]

    def lose(self, node: Node) -> None:
        """Kill the raylet of a worker; what runs under it has to notice by itself."""
        self.cluster.remove_node(node.raylet, allow_graceful=False)

    def _add(self, **options: Any) -> Node:
        marker, tmp = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="node-"))
        before = dict(os.environ)
        os.environ.update(ROBUSTSWEEP_TEST=f"{self.marker} {marker}", TMPDIR=str(tmp))
        try:
            return Node(self.cluster.add_node(**options), marker, tmp)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def end(self) -> None:
        """Kill whatever is left."""
        for node in (*self.workers, self.head):
            node.send(signal.SIGKILL)
            node.raylet.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)  # they are our children
            wait_until(lambda: not node.processes(), "the node is gone")  # noqa: B023 – called at once
            shutil.rmtree(node.tmp, ignore_errors=True)


@contextmanager
def running_cluster(marker: str, *, num_workers: int = 2) -> Iterator[Machines]:
    """Yield a cluster; its processes, and those that it starts, carry ``marker`` in their environment."""
    machines = Machines(Cluster(shutdown_at_exit=False), marker)
    try:
        for _ in range(num_workers):
            machines.add_worker()
        yield machines
    finally:
        machines.end()
