"""Projection of the ledger to MLflow, exactly once.

Three things ensure this: a run is searched by its signature tag before it is created; MLflow ignores a metric that it
already has with the same key, timestamp, step and value, and the ledger keeps all four; nothing is retried inside
a request, only from the start, with the state of the server read anew.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from orchestrator.ledger.derived import invalidate_shipped
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.preregistration import read_versions
from orchestrator.ledger.record import Record
from orchestrator.planning.states import COMPLETE, INTERRUPTED
from orchestrator.tracking.addresses import RefusedError
from orchestrator.tracking.arms import ArmRuns
from orchestrator.tracking.attachments import make_attachments
from orchestrator.tracking.client import (
    RunTag,
    ViewType,
    connect,
    find_version,
    log_batch,
    search_runs,
    translating_errors,
    upload,
)
from orchestrator.tracking.guard.places import check_identifier
from orchestrator.tracking.projection import (
    MAX_TAG_LENGTH,
    PARENT_TAG,
    STATUSES,
    STOPPED_TAG,
    Projection,
    make_added_batches,
    make_batches,
    make_key,
    project,
)
from orchestrator.tracking.run_index import RUNNING, Run, RunIndex
from orchestrator.tracking.shipped import Shipped
from orchestrator.tracking.study_run import (
    attach_report,
    describe_dataset,
    describe_experiment,
    ensure_experiment,
    ensure_parent,
    log_verdicts,
    read_experiment,
    restore_parent,
    set_note,
)
from orchestrator.tracking.views import decode_state, is_known, make_views
from trainables.errors import StorageError

_logger = logging.getLogger(__name__)

#: At most this many runs are queried one by one (10 ms each), and at most half of all; otherwise all (5 ms each).
_MAX_SINGLE_QUERIES = 200


class Tracker:
    """Runs of one study in MLflow.

    Args:
        tracking_uri: absolute URI, see ``resolve_tracking_uri``.
        ledger: ledger of the study.
        about: content of ``plan.json``.
    """

    def __init__(self, tracking_uri: str, ledger: Ledger, *, about: Mapping[str, Any]) -> None:
        self.tracking_uri = tracking_uri
        self._ledger = ledger
        self._about = about
        self._client: Any = None
        self._index = RunIndex(ledger.root)
        self._arms = ArmRuns(ledger, about)
        #: Release of MLflow that shows the store; None if it is not known.
        self._version: str | None = None
        #: Tags of the experiment, the views among them.
        self._views: dict[str, str] = {}
        #: Where the experiment has its artifacts.
        self._location = ""
        self.experiment_id = ""
        self.parent_run_id = ""

    @property
    def is_open(self) -> bool:
        """Whether ``open`` has succeeded."""
        return bool(self.parent_run_id)

    @property
    def _runs(self) -> dict[str, Run]:
        return self._index.runs

    def open(self, *, query_all: bool = False) -> None:
        """Find or create the experiment and the parent run, and find the existing runs.

        May be called again at any time: after a failure this detects a lost answer or an emptied store. A deleted
        experiment or parent run is restored, since the study continues. If the parent run is gone for good, the runs
        of stages and trials are moved below a new one.

        Args:
            query_all: whether to query runs that ended according to the ledger too; 5 ms per run.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        self.parent_run_id = ""
        invalidate_shipped(self._ledger.root)
        with self._translating_errors("open the experiment"):
            self._client = self._client or connect(self.tracking_uri)
            self._ledger.root.guard()  # connecting takes seconds: another driver may have taken over meanwhile
            self.experiment_id = ensure_experiment(self._client, self.tracking_uri, self._ledger, self._about["study"])
            self._views, self._location = read_experiment(self._client, self.tracking_uri, self.experiment_id)
            self._version = self._version or find_version(self.tracking_uri)
            parents = self._find_parents()
            self._ledger.root.guard()
            if not parents and (deleted := self._find_parents(ViewType.DELETED_ONLY)):
                parents = [restore_parent(self._client, deleted, self._index.parent_run_id)]
                query_all = True  # its trials may have been deleted with it
            known = self._index.parent_run_id
            parent_run_id = ensure_parent(self._client, self.experiment_id, self._about, parents, known, self._ledger)
            self._find_runs(parent_run_id, query_all)
            self._arms.find(self._client, self.experiment_id, parent_run_id)
            self.parent_run_id = parent_run_id
            self._describe()

    def ship(self, record: Record) -> bool:
        """Send to MLflow what it lacks of ``record``; return whether anything had to be sent.

        Raises:
            TrackingError: MLflow cannot be reached; call ``open`` and ``ship`` again later.
            RefusedError: MLflow does not accept the record.
            StorageError: the record lacks a field, because another version wrote it.
        """
        projection = project(record)
        try:
            with self._translating_errors(f"log {record.kind} {record.signature}"):
                has_sent = self._ship(record, projection)
                return self._ship_added(record, projection) or has_sent
        except RefusedError:
            self._index.remove(record.signature)  # it may have been deleted
            raise

    def _ship(self, record: Record, projection: Projection) -> bool:
        run = self._runs.get(record.signature)
        if run is not None and run.matches(projection):
            return False
        if run is not None and run.is_complete and run.status == STATUSES[COMPLETE]:  # was damaged, and runs again
            if projection.status == RUNNING:
                return False
            self._arms.remove(self._client, record.config)
            self._client.delete_run(run.run_id)  # with new timestamps every value would be there twice
            run = None
        is_new = run is None
        if run is None:
            run = self._create(record, projection)
            self._runs[record.signature] = run
        known = self._known_epochs(run, projection)
        is_current = run.is_described_by(projection) and not set(projection.epochs) - known
        if projection.status == RUNNING and is_current:
            return False
        self._send(run, record, projection, known, tags=not is_new)
        self._index.add_run(record.signature)
        self._arms.add(record, projection)
        return True

    def _ship_added(self, record: Record, projection: Projection) -> bool:
        """Send the metrics that were added to a trial since; repeating them changes nothing."""
        run = self._runs.get(record.signature)
        if run is None or projection.added.keys() <= set(run.added):
            return False
        for batch in make_added_batches(projection, known=run.added):
            log_batch(self._client, run.run_id, batch)
        run.added = sorted(projection.added)
        self._index.add_run(record.signature)
        self._arms.remove(self._client, record.config)  # its means are made anew, with the added ones
        self._arms.add(record, projection)
        return True

    def has_shipped(self, signature: str, state: str) -> bool:
        """Return whether the run of a finished record is closed with the status that ``state`` means."""
        run = self._runs.get(signature)
        return run is not None and run.has_ended_as(state)

    def close_interrupted(self, resumed: Collection[str] = ()) -> int:
        """Close runs of this ledger that are RUNNING only in MLflow; return the number of runs that became KILLED.

        Their records are shipped first, so a run that finished just before a crash becomes FINISHED.

        Args:
            resumed: signatures that are running or will run; their runs stay open.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        killed = 0
        for signature, run in list(self._runs.items()):
            if run.status != RUNNING or signature in resumed:
                continue
            if not self._ledger.folder(run.kind, signature).exists("config.json"):
                continue  # of another ledger
            try:
                record = self._ledger.read(run.kind, signature)
            except StorageError as error:
                _logger.warning("left the run of %s %s open, its record is unreadable: %s", run.kind, signature, error)
                continue
            self.ship(record)
            if record.state == INTERRUPTED:
                with self._translating_errors(f"close {run.kind} {signature}"):
                    self._client.set_terminated(run.run_id, "KILLED", end_time=project(record).last_ms)
                run.status = "KILLED"
                self._index.add_run(signature)
                killed += 1
        self._index.save()
        return killed

    def show_arms(self) -> None:
        """Update the runs of arms, and the views if the server shows them. Does nothing if nothing has changed.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        with self._translating_errors("show the arms"):
            self._arms.update(self._client, self.experiment_id, self.parent_run_id)
            if not is_known(self._version):
                return
            for tag, value in make_views(self._arms.describe()).items():
                if tag not in self._views or decode_state(self._views[tag]) != decode_state(value):
                    self._client.set_experiment_tag(self.experiment_id, tag, value)
                    self._views[tag] = value

    def log_report(
        self,
        html: bytes,
        *,
        summary: Mapping[str, Any],
        is_complete: bool,
        verdicts: Sequence[Mapping[str, str]] = (),
        text: str = "",
        tables: Mapping[str, bytes] | None = None,
    ) -> None:
        """Attach the report to the parent run and close it, FINISHED when the study is complete, else FAILED.

        Args:
            html: self-contained report.
            summary: counts and headline findings; each becomes a tag ``robustsweep.summary.<name>``.
            is_complete: whether nothing failed and nothing is missing.
            verdicts: rows of ``verdicts.csv``.
            text: summary of the report, a finding per line, for the experiment's description.
            tables: name → content of the tables beside the report.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        tags = [
            RunTag(make_key(f"robustsweep.summary.{name}"), str(value)[:MAX_TAG_LENGTH])
            for name, value in summary.items()
        ]
        with self._translating_errors("log the report"):
            self._client.log_batch(self.parent_run_id, tags=tags)
            if read_versions(self._about):
                log_verdicts(self._client, self.parent_run_id, verdicts)
            left_out = attach_report(
                self._client, self.tracking_uri, self.parent_run_id, html, tables or {}, within=self._location
            )
            self._describe(text, left_out)
        self.close(is_complete=is_complete)

    def _describe(self, text: str = "", left_out: Sequence[str] = ()) -> None:
        note = describe_experiment(
            self._about,
            experiment_id=self.experiment_id,
            run_id=self.parent_run_id,
            has_views=is_known(self._version),
            text=text,
            left_out=left_out,
        )
        set_note(self._client, self.experiment_id, note)

    def close(self, *, is_complete: bool) -> None:
        """Close the parent run, FINISHED or FAILED.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        with self._translating_errors("close the study's run"):
            self._client.set_terminated(self.parent_run_id, "FINISHED" if is_complete else "FAILED")

    def write_shipped(self, *, state: str, page_sha256: str) -> None:
        """Record that the store shows this state of the study and this report (``shipped.is_shipped``).

        Raises:
            StorageError: the ledger cannot be written.
        """
        shown = Shipped.of(self.tracking_uri, self.parent_run_id, state=state, page_sha256=page_sha256)
        shown.write(self._ledger.root)

    # ------------------------------------------------------------------ experiment and runs

    def _find_parents(self, view: int = ViewType.ACTIVE_ONLY) -> list[str]:
        return [run.info.run_id for run in self._search("tags.`robustsweep.kind` = 'study'", view)]

    def _find_runs(self, parent_run_id: str, query_all: bool) -> None:
        """Fill the index: ended runs from the ledger; running ones, and those the ledger does not list, from MLflow."""
        if not query_all and self._index.load(parent_run_id):
            self._add_runs(self._search(f"attributes.status = '{RUNNING}'"), parent_run_id)
            begun = [s for kind in ("stages", "trials") for s in (self._ledger.root / kind).children()]
            unknown = [s for s in begun if s not in self._runs and s.isalnum()]  # a stray file has no run
            if len(unknown) <= min(_MAX_SINGLE_QUERIES, len(begun) // 2):
                for signature in unknown:
                    self._add_runs(self._search(f"tags.`robustsweep.signature` = '{signature}'"), parent_run_id)
                return
        self._index.runs = {}
        self._add_runs(self._search(), parent_run_id)
        self._index.replace(parent_run_id, self._runs)

    def _add_runs(self, runs: Iterable[Any], parent_run_id: str) -> None:
        """Add runs to the index, below the parent run; a second run of a signature is deleted.

        A second run exists if the answer to a create_run was lost and the server carried it out after the search.
        """
        for found in runs:
            signature = found.data.tags.get("robustsweep.signature")
            if signature is None:
                continue  # the study's own run, or somebody's in the same experiment
            run, other = Run.of(found), self._runs.get(signature)
            if other is not None and other.run_id != run.run_id:
                run, extra = (run, other) if run.is_complete and not other.is_complete else (other, run)
                self._client.delete_run(extra.run_id)
            self._runs[signature] = run
            if run.run_id == found.info.run_id and found.data.tags.get(PARENT_TAG) != parent_run_id:
                self._client.set_tag(run.run_id, PARENT_TAG, parent_run_id)

    def _search(self, what: str = "", view: int = ViewType.ACTIVE_ONLY) -> Iterator[Any]:
        return search_runs(self._client, self.experiment_id, what, view)

    def _create(self, record: Record, projection: Projection) -> Run:
        # A known outcome is sent at once, which saves a transaction. It counts only together with the status.
        tags = projection.tags | {PARENT_TAG: self.parent_run_id} | projection.final_tags
        created = self._client.create_run(self.experiment_id, start_time=projection.start_ms, tags=tags)
        failure, stopped = tags.get("robustsweep.failure"), tags.get(STOPPED_TAG)
        run_id = check_identifier(created.info.run_id)
        run = Run(run_id, record.kind, RUNNING, failure=failure, stopped=stopped, epochs=set())
        run.artifact_uri = created.info.artifact_uri
        return run

    def _known_epochs(self, run: Run, projection: Projection) -> frozenset[int]:
        """Return the epochs that MLflow has; it is queried once per run of an earlier session.

        An epoch that a resumed trial repeats has a new timestamp, and would be a second point.
        """
        if run.epochs is None:
            first = next(iter(projection.epochs.values()), ())
            history = self._client.get_metric_history(run.run_id, first[0].key) if first else []
            run.epochs = {metric.step for metric in history}
        return frozenset(run.epochs)

    # ------------------------------------------------------------------ sending

    def _send(self, run: Run, record: Record, projection: Projection, known: frozenset[int], *, tags: bool) -> None:
        if run.status != RUNNING:
            self._client.update_run(run.run_id, status=RUNNING)
            run.status = RUNNING
        failure = projection.closing_tags.get("robustsweep.failure")
        if run.failure is not None and failure is None and projection.status != RUNNING:
            self._client.delete_tag(run.run_id, "robustsweep.failure")
            run.failure = None
        stopped = projection.closing_tags.get(STOPPED_TAG)
        if run.stopped is not None and stopped is None:  # it continues
            self._client.delete_tag(run.run_id, STOPPED_TAG)
            run.stopped = None
        is_described = run.is_described_by(projection)
        if not is_described:
            self._client.log_inputs(run.run_id, datasets=[describe_dataset(self._about, record)])
        for batch in make_batches(projection, params=not is_described, tags=tags, known_epochs=known):
            log_batch(self._client, run.run_id, batch)
        run.num_params, run.has_dataset = len(projection.params), True
        run.epochs = set(known) | set(projection.epochs)
        if projection.status != RUNNING:
            run.artifact_uri = run.artifact_uri or self._client.get_run(run.run_id).info.artifact_uri
            files = self._attach(record, projection)
            upload(self.tracking_uri, run.artifact_uri, files, within=self._location)
            self._client.set_terminated(run.run_id, projection.status, end_time=projection.last_ms)
            run.status, run.shipped, run.failure = projection.status, str(projection.num_points), failure
            run.stopped = stopped

    def _attach(self, record: Record, projection: Projection) -> dict[str, bytes]:
        return make_attachments(self._ledger, record, self._about["data"]["classes"], projection.traceback)

    def _translating_errors(self, what: str) -> AbstractContextManager[None]:
        return translating_errors(self.tracking_uri, f"{what} of study {self._about['study']!r}")
