"""Copies of stages that another study has completed, also over what an interrupted attempt has left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.other_studies import adopt_stage, find_elsewhere
from orchestrator.ledger.record import describe_work
from orchestrator.planning.works import Work
from tests.support.plans import make_stage
from trainables.errors import StorageError
from trainables.storage.claims import ClaimedFolder
from trainables.storage.completeness import CONFIG, EPOCHS, RESULT, describe_files
from trainables.storage.folder import Folder

WEIGHTS = "encoder.safetensors"
HISTORY = [{"epoch": epoch, "metrics": {"ssl/loss": 1.0 / epoch}, "timestamp_ms": epoch} for epoch in (1, 2)]


def complete(ledger: Ledger, stage: Work) -> Folder:
    folder = ledger.folder("stage", stage.signature)
    folder.write_json(CONFIG, describe_work(stage, study=ledger.study, git_commit=None))
    for record in HISTORY:
        folder.append_line(EPOCHS, json.dumps(record))
    folder.write(WEIGHTS, b"weights")
    folder.write_json(RESULT, {"files": describe_files(folder, [CONFIG, WEIGHTS, EPOCHS])})
    return folder


def test_a_copy_that_ends_half_way_leaves_no_weights_with_the_history_of_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage("simclr")
    other, own = (Ledger(str(tmp_path), name) for name in ("other", "own"))
    source = complete(other, stage)
    here = own.folder("stage", stage.signature)
    here.append_line(EPOCHS, json.dumps(HISTORY[0]))  # of an attempt that was interrupted
    assert find_elsewhere(own, [stage]) == {stage.signature: "other"}
    write = ClaimedFolder.write

    def fail(self: ClaimedFolder, name: str, content: bytes) -> None:
        if name == WEIGHTS:
            raise StorageError("the machine is switched off")
        write(self, name, content)

    with Lease(own) as lease:
        monkeypatch.setattr(ClaimedFolder, "write", fail)
        with pytest.raises(StorageError, match="switched off"):
            adopt_stage(own, stage, "other", lease=lease, git_commit=None)
        assert here.read_lines(EPOCHS) == HISTORY
        assert not here.exists(WEIGHTS)
        monkeypatch.undo()
        assert adopt_stage(own, stage, "other", lease=lease, git_commit=None)
    assert here.read(WEIGHTS) == source.read(WEIGHTS)
    assert here.read_json(RESULT)["found_in"] == "other"
