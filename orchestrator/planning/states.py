"""States of a stage or trial in the ledger."""

from __future__ import annotations

#: State of one signature in the ledger. "interrupted" has started and neither finished nor failed.
COMPLETE, FAILED, INTERRUPTED, ABSENT = "complete", "failed", "interrupted", "absent"
#: A trial that a search has stopped before its last epoch (``early_stopping.py``).
STOPPED = "stopped_early"
