"""Shipping of the ledger to MLflow: in the background while a study runs, in the foreground on request.

Nothing here can fail a trial. While MLflow cannot be reached the ledger keeps everything, and changed records wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.ledger.derived import PAGE, TABLES, Report, compute_state, find_report, read_verdicts, stops_early
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, STOPPED
from orchestrator.tracking.addresses import DeniedError, RefusedError, TrackingError
from trainables.errors import LeaseError, StorageError

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

_logger = logging.getLogger(__name__)

#: Longest pause between two attempts while MLflow cannot be reached.
MAX_BACKOFF_SECONDS = 60.0
#: Longest such pause after the study has ended, when the user waits.
_LAST_BACKOFF_SECONDS = 1.0
#: A record is given up after this many refusals; MLflow's state is read anew in between.
_MAX_REFUSALS = 2
#: At the end of a study: longest wait for MLflow without an arriving record, and longest wait in all.
PATIENCE_SECONDS = 60.0
MAX_WAIT_SECONDS = 600.0
#: Shortest time between two updates of the runs of arms while a study runs.
SHOW_SECONDS = 30.0
#: A longer wait at the end of a study is logged with its reason.
_SILENT_SECONDS = 10.0

#: (kind, signature) of a record.
Key = tuple[str, str]


@dataclass(frozen=True)
class SyncResult:
    """Numbers of records that a sync has shipped and skipped."""

    shipped: int
    #: Records that MLflow showed already.
    skipped: int


def sync(ledger: Ledger, tracking_uri: str) -> SyncResult:
    """Ship every record of ``ledger`` and its report; unfinished records become KILLED. The caller holds the lease.

    Raises:
        TrackingError: MLflow cannot be reached, or not everything arrived. Shipped records stay; call it again.
        StorageError: the ledger cannot be read.
        StudyError: the study has never been run with this storage.
    """
    from orchestrator.tracking.tracker import Tracker  # importing it imports MLflow: 2 s

    plan = ledger.read_plan()
    tracker = Tracker(tracking_uri, ledger, about=plan)
    tracker.open(query_all=True)
    states = ledger.states()
    shipper = Shipper(lambda: tracker, ledger, resumed=states)  # closed when everything has been shipped
    for kind in ("stage", "trial"):
        for signature in (ledger.root / f"{kind}s").children():
            if states.get(signature, ABSENT) != ABSENT:
                shipper.notify(kind, signature)
    shipper.start()
    num_left = shipper.finish(PATIENCE_SECONDS)
    if num_left:
        raise TrackingError(f"{num_left} records did not reach MLflow. {shipper.problem}")
    settled = {COMPLETE, STOPPED} if stops_early(plan) else {COMPLETE}
    is_complete = all(states.get(trial["signature"]) in settled for trial in plan["trials"])
    shipper.conclude(find_report(ledger.root, compute_state(plan, states)), is_complete=is_complete)
    return SyncResult(shipper.num_shipped, shipper.num_skipped)


class Shipper:
    """Background thread that ships changed records to MLflow.

    Args:
        make_tracker: factory of the tracker, called in this thread once there is something to ship, because it imports
            MLflow. The tracker is opened here, and again after every failure.
        ledger: ledger of the study.
        resumed: signatures that this driver will run; other runs that a crash left RUNNING are closed.
        interval_seconds: how long notices are collected before they are shipped; a trial that ends sooner is shipped
            once.
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
        #: Record → number of notices so far, so that a notice that comes while the record is shipped is not lost.
        self._pending: dict[Key, int] = {}
        self._refusals: dict[Key, int] = {}
        self._refused: set[Key] = set()
        self._unreadable: set[Key] = set()
        #: Numbers of records of which something had to be sent, and of which nothing had to be.
        self.num_shipped, self.num_skipped = 0, 0
        #: Message of the last error.
        self.problem = ""
        self._num_failures = 0  # in a row
        self._is_denied = False
        self._has_failed = False
        self._has_caught_up = False
        self._next_show = 0.0
        self._ended = threading.Event()
        self._given_up = threading.Event()
        self._is_closed = False
        self._left_open: Collection[str] = ()
        self._thread = threading.Thread(target=self._run, name="mlflow-shipper", daemon=True)

    @cached_property
    def tracker(self) -> Tracker:
        """Tracker of this shipper, made at the first use."""
        return self._make_tracker()

    def notify(self, kind: str, signature: str) -> None:
        """Mark a record as changed. Returns at once, and may be called from any thread."""
        with self._lock:
            self._pending[kind, signature] = self._pending.get((kind, signature), 0) + 1

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def finish(
        self, timeout_seconds: float, *, max_seconds: float = float("inf"), left_open: Collection[str] = ()
    ) -> int:
        """Ship the remaining records and close interrupted runs; return the number of records that MLflow lacks.

        Call it when nothing runs any more. ``robustsweep sync`` ships lacking records later.

        Args:
            timeout_seconds: longest wait without an arriving record.
            max_seconds: longest wait in all.
            left_open: signatures that other drivers go on with; their runs stay open.
        """
        self._left_open = left_open
        self._ended.set()
        started = last_moment = time.monotonic()
        num_arrived, is_told = -1, False
        while self._thread.is_alive() and time.monotonic() < min(last_moment + timeout_seconds, started + max_seconds):
            if num_arrived != self._num_arrived:
                num_arrived, last_moment = self._num_arrived, time.monotonic()
            if not is_told and time.monotonic() > started + _SILENT_SECONDS:
                _logger.warning("waiting until MLflow has the last %d records", max(1, len(self._find_left())))
                is_told = True
            self._thread.join(min(timeout_seconds, 0.5))
        self._given_up.set()
        # closing counts as one record: all records may be there while a run is still RUNNING
        return len(self._find_left()) or int(not self._is_closed)

    def conclude(self, report: Report | None, *, is_complete: bool) -> None:
        """Attach the report to the study's run, close it, and record that MLflow shows everything; after ``finish``.

        Args:
            report: report of the study's present state; None if there is none.
            is_complete: whether nothing failed and nothing is missing.

        Raises:
            TrackingError: MLflow could not be reached for ``PATIENCE_SECONDS``.
            StorageError: the ledger cannot be read or written.
        """
        deadline, has_failed = time.monotonic() + PATIENCE_SECONDS, False
        while True:
            try:
                if has_failed:
                    self.tracker.open()
                self._conclude(report, is_complete)
                return
            except TrackingError as error:
                is_refused = isinstance(error, RefusedError)
                is_denied = isinstance(error, DeniedError)
                if time.monotonic() > deadline or is_denied or (is_refused and has_failed):
                    raise
                has_failed = True
                if not is_refused:  # else the study's run has been deleted meanwhile: opening restores it
                    time.sleep(_LAST_BACKOFF_SECONDS)

    def _conclude(self, report: Report | None, is_complete: bool) -> None:
        if report is None:
            self.tracker.close(is_complete=is_complete)
            return
        plan = self._ledger.read_plan()
        summary = report.counts | {"skipped_arms": len(plan["skipped"])}
        root = self._ledger.root
        self.tracker.log_report(
            root.read(PAGE),
            summary=summary,
            is_complete=is_complete,
            verdicts=read_verdicts(root),
            text=report.summary,
            tables={name: root.read(f"report/{name}") for name in TABLES},
        )
        state = compute_state(plan, self._ledger.states())
        self.tracker.write_shipped(state=state, page_sha256=report.page_sha256)

    @property
    def _num_arrived(self) -> int:
        return self.num_shipped + self.num_skipped

    def _find_left(self) -> set[Key]:
        """Return the records that MLflow does not show yet: all finished ones before it could be queried."""
        with self._lock:
            left = set(self._pending) | self._refused
        return left if self._has_caught_up else left | set(self._find_finished(lambda signature, state: False))

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
        """Ship pending records; return whether nothing is left to be done."""
        try:
            self._prepare()
            with self._lock:
                batch = dict(self._pending)
            for key, num_notices in batch.items():
                if self._given_up.is_set():
                    return False
                self._ship(key, num_notices)
            if time.monotonic() > self._next_show:
                self._show_arms()
            if is_last and not self._pending:
                self._close()
        except LeaseError as error:  # another driver ships the study now
            self.problem = str(error)
            self._given_up.set()
            return False
        except (StorageError, OSError) as error:  # of MLflow, or of the ledger's storage
            was_denied, self._is_denied = self._is_denied, isinstance(error, DeniedError)
            if self._num_failures == 0 or (self._is_denied and not was_denied):
                _logger.warning("shipping to MLflow pauses%s: %s", "" if is_last else ", the study goes on", error)
            if is_last and self._is_denied:  # waiting does not help
                self._given_up.set()
            self._num_failures = min(self._num_failures + 1, 10)
            self._has_failed, self.problem = True, str(error)
            return False
        if self._num_failures:
            _logger.warning("shipping to MLflow goes on")
        self._num_failures, self._is_denied = 0, False
        return self._is_closed

    def _prepare(self) -> None:
        """Open the tracker, and mark records that finished before this driver started; after a failure open it anew."""
        self._ledger.root.guard()
        if self._num_failures or not self.tracker.is_open:
            self.tracker.open()
        if not self._has_caught_up:
            self.tracker.close_interrupted(self._resumed)
            for key in self._find_finished(self.tracker.has_shipped):  # before this driver started
                self.notify(*key)
            self._has_caught_up = True

    def _find_finished(self, is_shown: Callable[[str, str], bool]) -> Iterator[Key]:
        """Yield the finished records for whose signature and state ``is_shown`` is false."""
        states = self._ledger.states()
        for kind in ("stage", "trial"):
            for signature in (self._ledger.root / f"{kind}s").children():
                state = states.get(signature)
                if state in (COMPLETE, FAILED, STOPPED) and not is_shown(signature, state):
                    yield kind, signature

    def _ship(self, key: Key, num_notices: int) -> None:
        self._ledger.root.guard()
        try:
            has_sent = self.tracker.ship(self._ledger.read(*key))
        except RefusedError as error:
            self._refusals[key] = self._refusals.get(key, 0) + 1
            if self._refusals[key] < _MAX_REFUSALS:
                raise  # its run may have been deleted meanwhile: look again, then try once more
            self._give_up(key, error)
        except TrackingError:
            raise
        except StorageError as error:
            if not self._ended.is_set() or key not in self._unreadable:
                self._report_unreadable(key, error)
                return
            self._give_up(key, error)
        else:
            self._refused.discard(key)
            self.num_shipped += has_sent
            self.num_skipped += not has_sent
        with self._lock:
            if self._pending.get(key) == num_notices:
                del self._pending[key]

    def _give_up(self, key: Key, error: StorageError) -> None:
        _logger.warning("%s %s is not in MLflow: %s", *key, error)
        self._refused.add(key)
        self.problem = str(error)

    def _report_unreadable(self, key: Key, error: StorageError) -> None:
        """Log once that a record cannot be read; it may be one that is being written."""
        if key not in self._unreadable:
            _logger.warning("%s %s could not be read for MLflow, trying again: %s", *key, error)
        self._unreadable.add(key)

    def _close(self) -> None:
        if self._has_failed:
            # A create_run without an answer may have been carried out late: opening removes the second run.
            self.tracker.open()
        self.tracker.close_interrupted(self._left_open)
        self.tracker.show_arms()
        self._is_closed = True

    def _show_arms(self) -> None:
        """Update the runs of arms; at most a tenth of the time goes into it while the study runs."""
        started = time.monotonic()
        self.tracker.show_arms()
        ended = time.monotonic()
        self._next_show = ended + max(SHOW_SECONDS, 10 * (ended - started))
