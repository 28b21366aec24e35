"""A slot on a node that cannot use the storage: what it says, and what ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import late_nodes
from orchestrator.cluster.late_nodes import LateSlot, try_storage
from orchestrator.execution.chunk_runner import ChunkRunner
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from tests.support.recording_handler import EXECUTION
from tests.support.scripted_fork_server import MODULE


def make_chunk(lease: dict[str, str], *signatures: str) -> dict[str, Any]:
    settings = {"execution": EXECUTION, "token": "t", "module": MODULE, "preload": [], "report_seconds": 0.0}
    works = [{"record": {"signature": signature}, "folder": "f", "claims": "c"} for signature in signatures]
    return {**settings, "works": works, "lease": lease, "chunk_seconds": 1.0, "max_retries": 0}


def test_a_machine_that_sees_the_lease_of_the_driver_can_use_its_storage(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "s")
    with Lease(ledger) as lease:
        assert try_storage(lease.ticket) is None
        said = try_storage({**lease.ticket, "root": str(tmp_path / "elsewhere")})
        theirs = try_storage({**lease.ticket, "token": "another driver's"})
    for refusal in (said, theirs):
        assert refusal is not None
        assert "tried to find what the driver has written: there is nothing. Is this storage shared" in refusal
    assert not (tmp_path / "s" / ".probe").exists()


def test_a_slot_that_refuses_gives_its_chunk_back_and_ends_once_the_storage_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_nodes, "RETRY_SECONDS", 0.0)
    ledger = Ledger(str(tmp_path / "mount"), "s")
    with Lease(ledger) as lease:
        (tmp_path / "mount").rename(tmp_path / "unmounted")
        slot = LateSlot(make_chunk(lease.ticket, "aa", "bb"))
        assert [(event["signature"], event["event"]) for event in slot.step()] == [
            ("aa", "returned"),
            ("bb", "returned"),
        ]
        assert slot.refusal is not None
        assert (slot.step(), slot.is_done) == ([], False)
        (tmp_path / "unmounted").rename(tmp_path / "mount")
        assert (slot.step(), slot.is_done) == ([], True)
        slot.begin(make_chunk(lease.ticket))
        assert not slot.is_done
        assert slot.step() == []
        assert slot.is_done
        slot.close()


def test_a_chunk_of_which_nothing_is_left_ends_at_once() -> None:
    runner = ChunkRunner(make_chunk({}))
    assert (runner.step(), runner.is_done) == ([], True)
    runner.close()
