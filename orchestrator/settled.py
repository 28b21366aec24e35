"""What need not be done again while nothing has changed, remembered beside the ledger; losing it costs time only.

    report/source.json   what the report was made from, written after it (``report/source.py``)
    shipped.json         which MLflow store shows the study, report included, and in which state

Both are removed before a stage or trial begins, and ``shipped.json`` before anything is sent to a store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from orchestrator.identity import canonical_json
from orchestrator.reconcile import ABSENT
from orchestrator.tracking_store import has_run
from trainables.errors import redact
from trainables.storage import Folder

#: Of a plan, what nothing that is made from it shows.
_ASIDE = ("written_ms", "cache_dir")
SOURCE, SHIPPED = "report/source.json", "shipped.json"


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


def compute_state(plan: Mapping[str, Any], states: Mapping[str, str]) -> str:
    """Return the digest of what a report and MLflow are made from: plan, states, and the version that makes them.

    The content of a complete record never changes; what else may change begins first, and ``forget`` is called then.

    Args:
        plan: content of ``plan.json``; when it was written and where images are cached does not count.
        states: signature → state of everything in the ledger.
    """
    said = {key: value for key, value in plan.items() if key not in _ASIDE}
    begun = {signature: state for signature, state in states.items() if state != ABSENT}
    text = canonical_json([metadata.version("robustsweep"), said, begun])
    return hashlib.sha256(text.encode()).hexdigest()


def stops_early(plan: Mapping[str, Any]) -> bool:
    """Return whether the study of a ``plan.json`` leaves trials that were stopped early as they are."""
    return bool(plan.get("search", {}).get("early_stopping"))


def is_shipped(root: Folder, tracking_uri: str, *, state: str, page_sha256: str) -> bool:
    """Return whether the store is known to show all of this state and this report, without importing MLflow.

    Of a SQLite file it is checked that it still has the study; what a server has lost only ``robustsweep sync`` sees.
    """
    if not root.is_intact(SHIPPED):
        return False
    found = root.read_json(SHIPPED)
    expected = asdict(Shipped.of(tracking_uri, found["run_id"], state=state, page_sha256=page_sha256))
    return bool(found == expected) and has_run(tracking_uri, found["run_id"])


def forget(root: Folder) -> None:
    """Remove both: something will change."""
    root.remove(SOURCE)
    forget_shipped(root)


def forget_shipped(root: Folder) -> None:
    """Remove what is remembered of MLflow: something will be sent there."""
    root.remove(SHIPPED)
