"""States of a stage or trial in the ledger."""

from __future__ import annotations

#: States of one signature in the ledger. An interrupted one has started and neither finished nor failed.
COMPLETE, FAILED, INTERRUPTED, ABSENT = "complete", "failed", "interrupted", "absent"
#: State of a trial that a search has stopped before its last epoch (``orchestrator.search.early_stopping``).
STOPPED = "stopped_early"
