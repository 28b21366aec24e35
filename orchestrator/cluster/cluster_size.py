"""Number of trials, or of stages of several processes, that fit on the cluster as it is now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from orchestrator.cluster.connection import ray

#: Seconds between two looks at the size of the cluster; a node takes as long to join.
RESIZE_SECONDS = 5.0


class ClusterSize:
    """Number that fits on the cluster at once, which changes as nodes join and are lost.

    Args:
        fit: returns the number for the resources of the cluster.
    """

    def __init__(self, fit: Callable[[Mapping[str, float]], int]) -> None:
        self._fit, self._number, self._looked = fit, 1, -RESIZE_SECONDS

    def count(self) -> int:
        """Return the number, at most ``RESIZE_SECONDS`` old."""
        now = time.monotonic()
        if now - self._looked >= RESIZE_SECONDS:
            self._number, self._looked = self._fit(ray.cluster_resources()), now
        return self._number
