"""Stages that another study on the same storage has completed: they are copied instead of run again.

A copy, because a study's folder holds all that it rests on: the other study may be removed. Every byte is compared with
the checksums that the other study has stored, and ``result.json`` is written last, as if the stage had been run here.
A stage that the other study is still running, or that is damaged there, is not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Any

from orchestrator.ledger.lease import Lease, claimed
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import begin_record, describe_work
from orchestrator.planning.works import Work
from trainables.config import StageConfig
from trainables.errors import StorageError
from trainables.storage.claims import Claim, find_claim, release_claim, take_claim
from trainables.storage.completeness import CONFIG, EPOCHS, RESULT, describe_files, is_finished
from trainables.storage.folder import Folder

#: Key of ``result.json`` with the study that a stage was copied from.
FOUND_IN = "found_in"


def find_elsewhere(ledger: Ledger, stages: Collection[Work]) -> dict[str, str]:
    """Return signature → other study on the storage that has completed the stage, of those that one has.

    Args:
        ledger: ledger of the study.
        stages: stages that the study would run; those that choose severities are left out.
    """
    found: dict[str, str] = {}
    wanted = [stage for stage in stages if isinstance(stage.config, StageConfig)]
    for study in Folder(ledger.storage).children() if wanted else ():
        other = Ledger(ledger.storage, study)
        if study != ledger.study:
            for stage in wanted:
                if stage.signature not in found and is_finished(other.folder("stage", stage.signature)):
                    found[stage.signature] = study
    return found


def adopt_stage(
    ledger: Ledger,
    work: Work,
    other_study: str,
    *,
    lease: Lease,
    git_commit: str | None,
    take: Callable[[str], Claim] | None = None,
) -> bool:
    """Copy a stage from another study, as an attempt with a claim of its own; return whether it is complete now.

    Args:
        ledger: ledger of the study.
        work: the stage.
        other_study: study that has completed it.
        lease: lease of the ledger.
        git_commit: commit of the working folder.
        take: returns a claim on a signature, for a driver that shares the study; None: the next one.

    Raises:
        SupersededError: another attempt has taken over.
        DiskFullError: the disk is full.
    """
    source = Ledger(ledger.storage, other_study).folder("stage", work.signature)
    try:
        result, created_ms = source.read_json(RESULT), source.read_json(CONFIG)["created_ms"]
        files = {name: _read(source, name, about) for name, about in result["files"].items() if name != CONFIG}
    except StorageError:
        return False  # removed or damaged since it was found
    claims = ledger.claims(work.signature)
    if take is None:
        last = find_claim(claims)
        claim = take_claim(claims, 1 if last is None else last.number + 1)
    else:
        claim = take(work.signature)
    folder = claimed(ledger.folder("stage", work.signature).uri, claims.uri, claim, lease.ticket)
    record = describe_work(work, study=ledger.study, git_commit=git_commit)
    record["created_ms"] = created_ms  # its epochs have the times of the other study
    begin_record(folder, record)
    for name in [name for name in folder.children() if name.startswith("checkpoint")]:
        folder.remove(name)  # of an attempt that was interrupted here
    # Weights last: with the history of an attempt that was interrupted here they would count as trained.
    for name in sorted(files, key=lambda name: name != EPOCHS):
        folder.write(name, files[name])
    stored: dict[str, Any] = result | {FOUND_IN: other_study, "files": describe_files(folder, [CONFIG, *files])}
    folder.write_json(RESULT, stored)
    release_claim(claims, claim)
    return is_finished(folder)


def _read(folder: Folder, name: str, about: dict[str, Any]) -> bytes:
    """Return a file of a finished stage.

    Raises:
        StorageError: it is missing, or another content than the stage has stored.
    """
    content = folder.read(name)
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise StorageError(f"read {folder.uri}/{name} and found another content than was written")
    return content
