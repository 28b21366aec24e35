"""Numbers of the newest attempts at all stages and trials of a ledger, read in as few requests as possible."""

from __future__ import annotations

from trainables.storage.claims import parse_claim
from trainables.storage.folder import Folder

#: Characters of signatures, which are hexadecimal.
SIGNATURE_DIGITS = "0123456789abcdef"


def count_attempts(claims: Folder) -> dict[str, int]:
    """Return signature → number of the newest attempt, of every stage and trial that is not complete.

    Args:
        claims: folder ``claims`` of a ledger.
    """
    found = {
        signature: max(filter(None, map(parse_claim, names)), default=None)
        for signature, names in claims.grandchildren(SIGNATURE_DIGITS).items()
        if signature.isalnum()
    }
    return {signature: claim.number for signature, claim in found.items() if claim is not None}
