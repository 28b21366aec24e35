"""What need not be done again while nothing has changed, remembered beside the ledger; losing it costs time only.

    report/source.json   what the report was made from, written after it (``report/source.py``)
    shipped.json         which MLflow store shows the study, report included, and in which state

Both are removed before a stage or trial begins, and ``shipped.json`` before anything is sent to a store.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from orchestrator.ledger.derived import SHIPPED
from orchestrator.tracking.addresses import has_run
from trainables.errors import redact
from trainables.storage.folder import Folder


@dataclass(frozen=True)
class Shipped:
    """What ``shipped.json`` says."""

    #: Tracking URI without secrets.
    store: str
    #: The study's own run in it.
    run_id: str
    #: ``compute_state`` of what was shipped.
    state: str
    #: SHA-256 of the report's page.
    page_sha256: str

    @classmethod
    def of(cls, tracking_uri: str, run_id: str, *, state: str, page_sha256: str) -> Shipped:
        """Return what to remember of a store that shows everything."""
        return cls(redact(tracking_uri), run_id, state, page_sha256)

    def write(self, root: Folder) -> None:
        """Write it into the folder of the ledger."""
        root.write_json(SHIPPED, asdict(self))


def is_shipped(root: Folder, tracking_uri: str, *, state: str, page_sha256: str) -> bool:
    """Return whether the store is known to show all of this state and this report, without importing MLflow.

    Of a SQLite file it is checked that it still has the study; what a server has lost only ``robustsweep sync`` sees.
    """
    if not root.is_intact(SHIPPED):
        return False
    found = root.read_json(SHIPPED)
    expected = asdict(Shipped.of(tracking_uri, found["run_id"], state=state, page_sha256=page_sha256))
    return bool(found == expected) and has_run(tracking_uri, found["run_id"])
