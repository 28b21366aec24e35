"""Stages and trials that several drivers of a study share, as one of them sees them.

The claims in the ledger decide (``trainables.storage.claims.exchange_claim``): a slot takes the claim of a stage or
trial before it begins it, and gets it only if nobody else has taken it since the driver has looked. The name of a claim
has the driver for which it was taken in it; the claim holds as long as that driver lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.ledger.attempts import FAILURE
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, FAILED
from orchestrator.planning.works import Work
from trainables.storage.claims import CLAIMS, Claim, exchange_claim, find_claim, release_claim

#: Event of a slot: another driver has the stage or trial. Key in the details of an end: another driver has seen to it.
ELSEWHERE = "elsewhere"


def find_claims(ledger: Ledger) -> dict[str, Claim]:
    """Return signature → claim that counts, of every stage and trial that has one."""
    folder = ledger.root / CLAIMS
    found = {name: find_claim(folder / name) for name in folder.children() if name.isalnum()}
    return {signature: claim for signature, claim in found.items() if claim is not None}


class SharedWorks:
    """Claims on the stages and trials of a study, as this driver has last seen them.

    Args:
        ledger: ledger of the study.
        driver: name of this driver, letters and digits.
        since_ms: since when the drivers work together, in ms; only failures before that are tried again.
    """

    def __init__(self, ledger: Ledger, *, driver: str, since_ms: int) -> None:
        self._ledger, self.driver, self.since_ms = ledger, driver, since_ms
        self._claims: Mapping[str, Claim] = {}
        #: Signature → time of the last failure, in ms.
        self._failures: dict[str, int] = {}

    def look(self, lives: Callable[[str], bool]) -> frozenset[str]:
        """Read the claims; return the signatures of what other drivers have.

        Args:
            lives: whether the driver of this name lives; asked after the claims were read.
        """
        self._claims = find_claims(self._ledger)
        holders = {claim.holder for claim in self._claims.values()} - {self.driver, ""}
        others = {holder for holder in holders if lives(holder)}
        return frozenset(signature for signature, claim in self._claims.items() if claim.holder in others)

    def describe(self, signature: str) -> dict[str, Any]:
        """Return what a chunk says of a stage or trial: for whom it is claimed, and over which claim."""
        found = self._claims.get(signature)
        return {"holder": self.driver, "over": None if found is None else found.name}

    def count_attempts(self, signature: str, number: int) -> int:
        """Return the number of the last attempt: that of the claim that was seen, or ``number`` if it is larger."""
        found = self._claims.get(signature)
        return number if found is None else max(number, found.number)

    def take(self, signature: str) -> Claim:
        """Acquire the claim on a stage or trial that is free as far as was seen, for a process of this driver.

        Raises:
            SupersededError: another driver has been faster.
        """
        found, number = self._claims.get(signature), self.count_attempts(signature, 0) + 1
        return exchange_claim(self._ledger.claims(signature), found, number, holder=self.driver)

    def release(self, signature: str) -> None:
        """Release the claim on a stage or trial that has failed here."""
        claims = self._ledger.claims(signature)
        found = find_claim(claims)
        if found is not None and found.holder == self.driver:
            release_claim(claims, found)

    def find_ended(self, works: Iterable[Work], states: Mapping[str, str]) -> dict[str, str]:
        """Return signature → state of those among ``works`` that need not run any more.

        Args:
            works: stages and trials that no slot of this driver has.
            states: signature → state of everything in the ledger.
        """
        found = {work.signature: states.get(work.signature) for work in works}
        kinds = {work.signature: work.kind for work in works}
        return {
            signature: state
            for signature, state in found.items()
            if state == COMPLETE or (state == FAILED and self._has_failed_since(kinds[signature], signature))
        }

    def _has_failed_since(self, kind: str, signature: str) -> bool:
        folder = self._ledger.folder(kind, signature)
        if self._failures.get(signature, 0) <= self.since_ms and folder.is_intact(FAILURE):
            self._failures[signature] = int(folder.read_json(FAILURE)["timestamp_ms"])
        return self._failures.get(signature, 0) > self.since_ms
