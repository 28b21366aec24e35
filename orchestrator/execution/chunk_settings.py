"""Settings that every chunk of a run carries, and what a chunk says of each of its stages and trials."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.execution.shared_works import SharedWorks
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from trainables.storage.attempt_counts import count_attempts
from trainables.storage.claims import CLAIMS


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


class Requests:
    """Descriptions of stages and trials in chunks, each with the number of its attempt. Not thread-safe.

    Args:
        ledger: folders that the slots read and write.
        settings: with the content of each ``config.json``.
        shared: what other drivers have, None if there is one driver.
    """

    def __init__(self, ledger: Ledger, settings: ChunkSettings, shared: SharedWorks | None) -> None:
        self._ledger, self._settings, self._shared = ledger, settings, shared
        #: Signature → number of the attempt that was handed out last.
        self._attempts: Counter[str] | None = None

    def describe(self, work: Work) -> dict[str, Any]:
        """Return the description of a stage or trial for the next attempt (see ``ChunkRunner``)."""
        return {
            "record": self._settings.describe(work),
            "folder": self._ledger.folder(work.kind, work.signature).uri,
            "claims": self._ledger.claims(work.signature).uri,
            "number": self.count_attempt(work),
            **({} if self._shared is None else self._shared.describe(work.signature)),
            **locate_stages(self._ledger, work),
        }

    def count_attempt(self, work: Work) -> int:
        """Count one more attempt of a stage or trial; return its number."""
        if self._attempts is None:  # before the first chunk: other drivers may have written until the lease was taken
            self._attempts = Counter(count_attempts(self._ledger.root / CLAIMS))
        if self._shared is not None:  # other drivers count, too
            self._attempts[work.signature] = self._shared.count_attempts(work.signature, self._attempts[work.signature])
        self._attempts[work.signature] += 1
        return self._attempts[work.signature]


def pack(chunk: dict[str, Any]) -> str:
    """Return a chunk as short text. Tune neither flattens nor prints it, and keeps that of every chunk of a study."""
    return base64.b64encode(zlib.compress(json.dumps(chunk).encode())).decode()


def unpack(text: str) -> dict[str, Any]:
    """Return the chunk that ``pack`` has packed."""
    chunk: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return chunk
