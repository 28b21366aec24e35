"""Record of one stage or trial in the ledger, and the entries that begin and end it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger.attempts import FAILURE, archive_failure
from orchestrator.planning.identity import compute_identity
from orchestrator.planning.plan import describe_candidate
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED, STOPPED
from orchestrator.planning.works import Work
from trainables.storage.completeness import RESULT, STOP, find_damage
from trainables.storage.folder import Folder


def describe_stop(record: Record) -> str:
    """Return in words when and why a trial was stopped early."""
    stop, total = record.stop, record.config["config"]["training"]["epochs"]
    assert stop is not None
    trained = max((line["epoch"] for line in record.epochs), default=0)
    judged = "" if len(stop["values"]) == 1 else f" (mean of {len(stop['values'])} replicates)"
    return (
        f"after epoch {trained} of {total}: {stop['metric']} {stop['value']:.4g}{judged} after epoch {stop['epoch']} "
        f"({stop['rule']})"
    )


#: States of stages and trials that have begun.
STARTED = (COMPLETE, FAILED, STOPPED, INTERRUPTED)


@dataclass(frozen=True)
class Record:
    """Everything that the ledger holds about one stage or trial, except its large files."""

    signature: str
    kind: str
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    result: dict[str, Any] | None
    failure: dict[str, Any] | None
    #: Notes on attempts without a result (``attempts.py``).
    attempts: Sequence[dict[str, Any]] = ()
    #: Content of ``stop.json`` if the trial was stopped early (``search/early_stopping.py``).
    stop: dict[str, Any] | None = None
    #: Metrics that were added later (``added_metrics.py``); those of ``result`` include them.
    added: Sequence[dict[str, Any]] = ()

    @property
    def state(self) -> str:
        """State: complete, failed, stopped_early or interrupted."""
        if self.result is not None:
            return COMPLETE
        if self.failure is not None:
            return FAILED
        return INTERRUPTED if self.stop is None else STOPPED


def describe_work(work: Work, *, study: str, git_commit: str | None) -> dict[str, Any]:
    """Return the content of ``config.json`` of a stage or trial."""
    return {
        "signature": work.signature,
        "kind": work.kind,
        "study": study,
        "name": work.name,
        "arm": dict(work.levels or {}),
        "replicate": work.replicate,
        **describe_candidate(work),
        "needs": list(work.needs),
        "config": work.config.model_dump(mode="json"),
        "identity": compute_identity(work.config),
        "data_fingerprint": work.data_fingerprint,
        "git_commit": git_commit,
        "created_ms": int(time.time() * 1000),
    }


def begin_record(folder: Folder, record: dict[str, Any], *, early_stopping: bool = False) -> None:
    """Write ``config.json`` into the folder of a new stage or trial; remove an earlier failure or damaged result.

    Without ``early_stopping`` a trial that was stopped early continues.
    """
    if folder.exists(FAILURE):
        archive_failure(folder)
    if folder.exists(RESULT) and find_damage(folder) is not None:
        folder.remove(RESULT)
    if folder.exists(STOP) and not (early_stopping and folder.is_intact(STOP)):
        folder.remove(STOP)
    if not folder.is_intact("config.json"):
        folder.write_json("config.json", record)


def describe_upstream(stage: Work) -> dict[str, str]:
    """Return the failure of what is built on a stage that failed, as ``details`` of ``Ledger.record_failure``."""
    message = f"a stage that it is built on failed: {stage.name} ({stage.signature})"
    return {"status": FAILED, "reason": "upstream", "message": message}
