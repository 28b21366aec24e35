"""Settings that every chunk of a run carries, and the folders that a chunk names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work


@dataclass(frozen=True)
class ChunkSettings:
    """Settings that every chunk of a run carries."""

    #: ``trainables.config.Execution`` as JSON.
    execution: dict[str, Any]
    #: Name of the fork servers of this run.
    token: str
    #: Module that starts a fork server: ``python -m MODULE``.
    module: str
    #: Words that select the imports of the fork servers (``driver.child_process.main``).
    preload: tuple[str, ...]
    max_retries: int
    stall_seconds: float
    #: Stage or trial → content of its ``config.json``.
    describe: Callable[[Work], dict[str, Any]]
    #: ``Lease.ticket`` of the driver: nothing is written once it is lost. None if there is no lease.
    lease: Mapping[str, str] | None = None
    #: How long a slot may not be asked for events until its trial ends.
    orphan_seconds: float = 180.0

    def as_json(self) -> dict[str, Any]:
        """Return the settings as a chunk has them; ``describe`` stays here."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "describe"}


def locate_stages(ledger: Ledger, work: Work) -> dict[str, str | None]:
    """Return the folders of the stages that a stage or trial starts from, as ``child_process.run_request`` asks."""
    encoder, matching = work.start, work.matching
    return {
        name: None if signature is None else ledger.folder("stage", signature).uri
        for name, signature in (("encoder", encoder), ("matching", matching))
    }
