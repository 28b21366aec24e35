"""Which state of the study an MLflow store already shows. Deleting ``shipped.json`` costs time, never results.

    shipped.json   the MLflow store that shows the study, report included, and the state that it shows

The file is removed before a stage or trial starts, and before anything is sent to a store. ``ledger.derived`` keeps the
same for the report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from orchestrator.ledger.derived import SHIPPED
from orchestrator.tracking.addresses import has_run
from trainables.errors import redact
from trainables.storage.folder import Folder


@dataclass(frozen=True)
class Shipped:
    """Content of ``shipped.json``."""

    #: Tracking URI without secrets.
    store: str
    #: ID of the study's own run in that store.
    run_id: str
    #: ``compute_state`` of the study as it was shipped.
    state: str
    #: SHA-256 of the report's page.
    page_sha256: str

    @classmethod
    def of(cls, tracking_uri: str, run_id: str, *, state: str, page_sha256: str) -> Shipped:
        """Return the entry for a store that shows everything."""
        return cls(redact(tracking_uri), run_id, state, page_sha256)

    def write(self, root: Folder) -> None:
        """Write ``shipped.json`` into the folder of the ledger."""
        root.write_json(SHIPPED, asdict(self))


def is_shipped(root: Folder, tracking_uri: str, *, state: str, page_sha256: str) -> bool:
    """Return whether the store is known to show this state and this report completely, without importing MLflow.

    A SQLite file is checked for the study's run; a server is not queried, and only ``robustsweep sync`` detects losses
    there.
    """
    if not root.is_intact(SHIPPED):
        return False
    found = root.read_json(SHIPPED)
    expected = asdict(Shipped.of(tracking_uri, found["run_id"], state=state, page_sha256=page_sha256))
    return bool(found == expected) and has_run(tracking_uri, found["run_id"])
