"""Watch on the other drivers of a shared study, in a thread: what they have ended, what they run, who of them lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.driver.prepare import Prepared
from orchestrator.driver.shards.books import Books
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.meter import Meter
from orchestrator.execution.shared_works import SharedWorks
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.leases import Drivers
from orchestrator.ledger.usage import read_others_usage
from trainables.errors import RobustSweepError, StorageError

_logger = logging.getLogger(__name__)

#: Seconds between two looks at the ledger; in a large study longer, so that looking takes a tenth of the time.
LOOK_SECONDS = 5.0
_SHARE = 0.1


@dataclass(frozen=True)
class Shared:
    """Objects that the drivers of a study have in common: each other, stages and trials, books."""

    drivers: Drivers
    works: SharedWorks
    books: Books


class Watch:
    """Context manager that passes on to the dispatcher what other drivers do, and takes the books if nobody has them.

    Args:
        prepared: the study.
        shared: what its drivers share.
        dispatcher: dispatcher of this driver.
        meter: meter of this driver.
        stop: set if this driver cannot go on.
        show: callback for the number of drivers that live.
    """

    def __init__(
        self,
        prepared: Prepared,
        shared: Shared,
        *,
        dispatcher: Dispatcher,
        meter: Meter,
        stop: threading.Event,
        show: Callable[[int], None],
    ) -> None:
        self._works, self._books, self._drivers, self._show = shared.works, shared.books, shared.drivers, show
        self._dispatcher, self._meter, self._stop = dispatcher, meter, stop
        self._kinds = {work.signature: work.kind for work in prepared.plan.works}
        own = prepared.ledger
        self._ledger = Ledger(own.storage, own.study)  # its own: a ledger remembers what it has looked at
        self._has_budget = prepared.study.execution.budget is not None
        self._over = threading.Event()
        self._problem: RobustSweepError | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self.look()  # before anything is handed out
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raise the error for which this driver cannot go on, if there is one."""
        if self._problem is not None:
            raise self._problem

    def look(self) -> None:
        """Look at leases, claims and states once.

        Raises:
            StorageError: the storage cannot be reached.
            LeaseError: a driver runs the study alone, or a lease is damaged.
        """
        self._show(len(self._drivers.look()))
        taken = self._works.look(self._drivers.lives)  # before the states: what is released by then has ended
        waiting = self._dispatcher.list_waiting()
        if waiting:
            ended = self._works.find_ended(waiting, self._ledger.states())
            self._dispatcher.update(ended, taken)
        if self._books.is_kept or self._books.try_to_take(self._drivers.lives):
            for signature in taken & self._kinds.keys():  # their epochs
                self._books.notify(self._kinds[signature], signature)
        if self._has_budget:
            self._meter.count_others(read_others_usage(self._ledger, self._works.driver))

    def _run(self) -> None:
        pause = LOOK_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                self.look()
            except (StorageError, OSError) as error:
                _logger.warning("could not look at what other drivers do, trying again: %s", error)
            except RobustSweepError as error:
                self._problem = error
                self._stop.set()
                return
            pause = max(LOOK_SECONDS, (time.monotonic() - began) / _SHARE)
