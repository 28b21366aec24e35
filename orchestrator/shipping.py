"""Ships the ledger to MLflow: in the background while a study runs, in the foreground on request.

Nothing here can fail a trial. While MLflow is away the ledger keeps everything, and what was noticed waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.ledger import Ledger
from orchestrator.reconcile import COMPLETE, FAILED
from orchestrator.tracking_store import RefusedError, TrackingError
from trainables.errors import StorageError

if TYPE_CHECKING:
    from orchestrator.tracking import Tracker

_logger = logging.getLogger(__name__)

#: Longest pause between two attempts while MLflow is away.
MAX_BACKOFF_SECONDS = 60.0
#: The same once the study has ended and somebody waits.
_LAST_BACKOFF_SECONDS = 1.0
#: A record that MLflow refuses this often, its state read anew in between, is given up.
_MAX_REFUSALS = 2

#: (kind, signature) of a record.
Key = tuple[str, str]


@dataclass(frozen=True)
class SyncResult:
    """What a sync did, in records."""

    shipped: int
    #: Were there already.
    skipped: int


def sync(ledger: Ledger, tracking_uri: str) -> SyncResult:
    """Ship every record of ``ledger``; what never finished becomes KILLED. Hold the ledger's lease meanwhile.

    Raises:
        TrackingError: MLflow cannot be reached; what has been shipped stays, call it again.
        StorageError: the ledger cannot be read.
        StudyError: the study has never been run with this storage.
    """
    from orchestrator.tracking import Tracker  # importing it imports MLflow: 2 s

    plan = ledger.read_plan()
    tracker = Tracker(tracking_uri, ledger, about=plan)
    tracker.open(look_at_all=True)
    sent = [tracker.ship(record) for kind in ("stage", "trial") for record in ledger.records(kind)]
    tracker.close_interrupted()
    states = ledger.states()
    tracker.close(is_complete=all(states.get(trial["signature"]) == COMPLETE for trial in plan["trials"]))
    return SyncResult(shipped=sum(sent), skipped=len(sent) - sum(sent))


class Shipper:
    """One background thread that brings noticed records to MLflow.

    Args:
        make_tracker: called in this thread once there is something to ship: it imports MLflow. The tracker is opened
            here, and again after every failure.
        ledger: of the study.
        resumed: signatures that this driver will run; runs of others that a crash left RUNNING are closed.
        interval_seconds: how long notices are collected before they are shipped; a trial that is over sooner is
            shipped once.
    """

    def __init__(
        self,
        make_tracker: Callable[[], Tracker],
        ledger: Ledger,
        *,
        resumed: Collection[str] = (),
        interval_seconds: float = 5.0,
    ) -> None:
        self._make_tracker = make_tracker
        self._ledger = ledger
        self._resumed = frozenset(resumed)
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        #: Record → number of notices so far; a notice that comes while it is shipped is not lost.
        self._pending: dict[Key, int] = {}
        self._refusals: dict[Key, int] = {}
        self._refused: set[Key] = set()
        self._unreadable: set[Key] = set()
        self._num_shipped = 0
        self._num_failures = 0  # in a row
        self._has_failed = False
        self._has_caught_up = False
        self._ended = threading.Event()
        self._given_up = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="mlflow-shipper", daemon=True)

    @cached_property
    def tracker(self) -> Tracker:
        """The tracker, as this shipper left it."""
        return self._make_tracker()

    def notice(self, kind: str, signature: str) -> None:
        """Remember that a record has changed; returns at once, from any thread."""
        with self._lock:
            self._pending[kind, signature] = self._pending.get((kind, signature), 0) + 1

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def finish(self, timeout_seconds: float) -> int:
        """Ship what is left and close the runs of whatever was interrupted.

        Call it when nothing runs any more. Returns the number of records that MLflow does not show yet, 0 when all is
        well; ``robustsweep sync`` ships them later.

        Args:
            timeout_seconds: give up when no record has been shipped for so long.
        """
        self._ended.set()
        num_shipped, last_moment = -1, time.monotonic()
        while self._thread.is_alive() and time.monotonic() < last_moment + timeout_seconds:
            if num_shipped != self._num_shipped:
                num_shipped, last_moment = self._num_shipped, time.monotonic()
            self._thread.join(min(timeout_seconds, 0.5))
        self._given_up.set()
        with self._lock:
            num_left = len(self._pending) + len(self._refused)
        # closing counts as one: everything may be there, and a run still say RUNNING
        return num_left if num_left or self._is_closed else 1

    def _run(self) -> None:
        while not self._given_up.is_set():
            self._ended.wait(self._pause_seconds())
            is_last = self._ended.is_set()
            if not (is_last or self._pending or "tracker" in vars(self)):
                continue  # trials are starting, and importing MLflow would take 2 s from them
            if self._attempt(is_last) and is_last:
                return
            if is_last:
                self._given_up.wait(min(self._pause_seconds(), _LAST_BACKOFF_SECONDS))

    def _pause_seconds(self) -> float:
        return min(self._interval_seconds * 2.0**self._num_failures, MAX_BACKOFF_SECONDS)

    def _attempt(self, is_last: bool) -> bool:
        """Ship what is pending; return whether nothing is left to be done."""
        try:
            self._prepare()
            with self._lock:
                batch = dict(self._pending)
            for key, num_notices in batch.items():
                if self._given_up.is_set():
                    return False
                self._ship(key, num_notices)
            if is_last and not self._pending:
                self._close()
        except (StorageError, OSError) as error:  # of MLflow, or of the ledger's storage
            if self._num_failures == 0:
                _logger.warning("shipping to MLflow pauses, the study goes on: %s", error)
            self._num_failures = min(self._num_failures + 1, 10)
            self._has_failed = True
            return False
        if self._num_failures:
            _logger.warning("shipping to MLflow goes on")
        self._num_failures = 0
        return self._is_closed

    def _prepare(self) -> None:
        """After a failure nothing that was known of the server counts."""
        if self._num_failures or not self.tracker.is_open:
            self.tracker.open()
        if not self._has_caught_up:
            self.tracker.close_interrupted(self._resumed)
            self._catch_up()
            self._has_caught_up = True

    def _catch_up(self) -> None:
        """Notice what finished before this driver started and never reached MLflow."""
        states = self._ledger.states()
        for kind in ("stage", "trial"):
            for signature in (self._ledger.root / f"{kind}s").children():
                state = states.get(signature)
                if state in (COMPLETE, FAILED) and not self.tracker.has_shipped(signature, state):
                    self.notice(kind, signature)

    def _ship(self, key: Key, num_notices: int) -> None:
        try:
            self.tracker.ship(self._ledger.read(*key))
        except RefusedError as error:
            self._refusals[key] = self._refusals.get(key, 0) + 1
            if self._refusals[key] < _MAX_REFUSALS:
                raise  # its run may have been deleted meanwhile: look again, then try once more
            _logger.warning("%s %s is not in MLflow: %s", *key, error)
            self._refused.add(key)
        except TrackingError:
            raise
        except StorageError as error:
            if key not in self._unreadable:
                _logger.warning("%s %s could not be read for MLflow, trying again: %s", *key, error)
            self._unreadable.add(key)
            return
        else:
            self._refused.discard(key)
            self._num_shipped += 1
        with self._lock:
            if self._pending.get(key) == num_notices:
                del self._pending[key]

    def _close(self) -> None:
        if self._has_failed:
            # A create_run without an answer may have been carried out late: opening removes the second run.
            self.tracker.open()
        self.tracker.close_interrupted()
        self._is_closed = True
