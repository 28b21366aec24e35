"""Index of the runs that MLflow has of a study, kept in the ledger: querying MLflow takes 5 ms per run.

``mlflow_runs.jsonl`` in the ledger gets one line per run that ends. Its first line names the study's own run; an index
that names another run belongs to another store and is ignored. Runs that have not ended are always queried.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.planning.states import INTERRUPTED
from orchestrator.tracking.guard.places import check_identifier
from orchestrator.tracking.projection import ADDED_TAG, STATUSES, STOPPED_TAG, Projection
from trainables.errors import StorageError
from trainables.storage.folder import Folder

_logger = logging.getLogger(__name__)

INDEX = "mlflow_runs.jsonl"
RUNNING = STATUSES[INTERRUPTED]
#: Lines per write: an object store rewrites the file for each write. Runs whose lines a killed driver had not written
#: are queried one by one (``Tracker.open``).
_BATCH = 20


@dataclass
class Run:
    """State of a run in MLflow, as far as it is known."""

    run_id: str
    kind: str
    status: str
    shipped: str | None = None
    failure: str | None = None
    #: Epoch and reason of an early stop; None if there was none.
    stopped: str | None = None
    num_params: int = 0
    has_dataset: bool = False
    #: Signatures of the metrics added later that MLflow has.
    added: list[str] = field(default_factory=list)
    #: Epochs that MLflow has; None if it has not been queried for them.
    epochs: set[int] | None = field(default=None, compare=False)
    #: Where its files go; None if it is not known.
    artifact_uri: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, found: Any) -> Run:
        """Return the state of an MLflow run that carries our tags."""
        tags = found.data.tags
        return cls(
            run_id=check_identifier(found.info.run_id),
            kind=tags.get("robustsweep.kind", ""),
            status=found.info.status,
            shipped=tags.get("robustsweep.shipped"),
            failure=tags.get("robustsweep.failure"),
            stopped=tags.get(STOPPED_TAG),
            num_params=len(found.data.params),
            has_dataset=found.inputs is not None and bool(found.inputs.dataset_inputs),
            added=sorted(tag.removeprefix(ADDED_TAG) for tag in tags if tag.startswith(ADDED_TAG)),
            artifact_uri=found.info.artifact_uri,
        )

    @property
    def is_complete(self) -> bool:
        """Whether everything of a record with a known outcome has been sent; the status is sent last."""
        return self.shipped is not None and self.status != RUNNING

    def has_ended_as(self, state: str) -> bool:
        """Return whether everything has been sent, and the run has the status of this state of a record."""
        return self.is_complete and self.status == STATUSES[state]

    def matches(self, projection: Projection) -> bool:
        """Return whether this record has a known outcome and has been sent completely."""
        return (
            self.status == projection.status != RUNNING
            and self.shipped == str(projection.num_points)
            and self.failure == projection.closing_tags.get("robustsweep.failure")
            and self.stopped == projection.closing_tags.get(STOPPED_TAG)
        )

    def is_described_by(self, projection: Projection) -> bool:
        """Return whether data set and params have been sent."""
        return self.has_dataset and self.num_params >= len(projection.params)

    def as_json(self) -> dict[str, Any]:
        """Return the run as JSON for a line of the index, without the epochs and the place of its files."""
        return {name: value for name, value in vars(self).items() if name not in ("epochs", "artifact_uri")}


class RunIndex:
    """Signature → run, stored in the ledger.

    Args:
        root: folder of the ledger.
    """

    def __init__(self, root: Folder) -> None:
        self._root = root
        #: ID of the study's own run; None before ``load`` or ``replace``.
        self._parent_run_id: str | None = None
        self.runs: dict[str, Run] = {}
        #: Lines not written yet.
        self._lines: list[str] = []

    @property
    def parent_run_id(self) -> str | None:
        """ID of the study's own run in the index's store, None if there is no index."""
        return self._parent_run_id or next((line["parent_run_id"] for line in _read(self._root)), None)

    def load(self, parent_run_id: str) -> bool:
        """Set ``runs`` to the runs known to have ended under this parent; return whether the index belongs to it."""
        if self._parent_run_id != parent_run_id:
            lines = _read(self._root)
            if not lines or lines[0] != {"parent_run_id": parent_run_id}:
                return False
            self.runs = _parse(lines)
            self._parent_run_id, self._lines = parent_run_id, []
        self.runs = {signature: run for signature, run in self.runs.items() if run.status != RUNNING}
        return True

    def replace(self, parent_run_id: str, runs: Mapping[str, Run]) -> None:
        """Replace the index by all runs that MLflow has under this parent.

        Raises:
            StorageError: the ledger cannot be written.
        """
        self._parent_run_id, self.runs = parent_run_id, dict(runs)
        self._lines = [json.dumps({"parent_run_id": parent_run_id})]
        self._lines += [_line(signature, run) for signature, run in runs.items() if run.status != RUNNING]
        self._root.write(INDEX, "".join(f"{line}\n" for line in self._lines).encode())
        self._lines = []

    def add_run(self, signature: str) -> None:
        """Add the present state of a run to the index if the run has ended."""
        run = self.runs[signature]
        if run.status != RUNNING:
            self._add(_line(signature, run))

    def remove(self, signature: str) -> None:
        """Remove a run from the index; the next ``Tracker.open`` queries MLflow for it."""
        if self.runs.pop(signature, None) is not None:
            self._add(json.dumps({"signature": signature, "run_id": None}))

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= _BATCH:
            self.save()

    def save(self) -> None:
        """Write pending lines. They stay pending if that fails; each line that is lost costs one query."""
        if not self._lines:
            return
        try:
            self._root.append_line(INDEX, "\n".join(self._lines))
        except StorageError as error:
            _logger.warning("could not remember what MLflow has, trying again: %s", error)
        else:
            self._lines = []


def _read(root: Folder) -> list[Any]:
    try:
        if root.exists(INDEX) and not root.read(INDEX).endswith(b"\n"):
            return []  # lines after a torn line would be lost
        return root.read_lines(INDEX)
    except StorageError as error:
        _logger.warning("asking MLflow for all runs, because what is known of them cannot be read: %s", error)
        return []


def _parse(lines: Sequence[Any]) -> dict[str, Run]:
    """Return signature → run; the last line of a signature counts."""
    said = {line["signature"]: {key: value for key, value in line.items() if key != "signature"} for line in lines[1:]}
    return {signature: Run(**about) for signature, about in said.items() if about["run_id"] is not None}


def _line(signature: str, run: Run) -> str:
    return json.dumps({"signature": signature} | run.as_json())
