"""Thread whose body calls Ray, with a watch over Ray from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orchestrator.cluster.connection import PATIENCE_SECONDS, check_reachable, find_peers
from trainables.errors import ClusterLostError

#: Seconds between two checks of the head and of this machine's raylet.
CHECK_SECONDS = 3.0


class RayThread(threading.Thread):
    """Thread that calls Ray: a Ray that has lost its head blocks its caller, and no signal helps.

    Args:
        body: what the thread does.
        name: name of the thread.
    """

    def __init__(self, body: Callable[[], object], *, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._body = body
        self._error: Exception | None = None

    def run(self) -> None:
        """Run the body to its end; keep its error for ``wait``."""
        try:
            self._body()
        except Exception as error:  # noqa: BLE001 - the thread's boundary: ``wait`` raises it where it is waited for
            self._error = error

    def wait(self) -> None:
        """Wait until the body has ended; raise its error, if any.

        Raises:
            ClusterLostError: the head or this machine's raylet does not answer, so that the body may never end.
        """
        answered = dict.fromkeys(find_peers(), time.monotonic())
        while self.is_alive():
            self.join(CHECK_SECONDS)
            for peer, last in answered.items():
                try:
                    check_reachable(peer)
                    answered[peer] = time.monotonic()
                except OSError as error:
                    if time.monotonic() - last > PATIENCE_SECONDS:
                        raise ClusterLostError(
                            f"lost Ray: {peer} has not answered for {PATIENCE_SECONDS:.0f} s ({error}); what is "
                            "finished is in the ledger, and what ran goes on from its last epoch"
                        ) from error
        if self._error is not None:
            raise self._error
