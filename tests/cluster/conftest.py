"""Fixtures of the tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from tests.support.job_servers import LocalJobServer


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "results"), "tiny")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalJobServer]:
    (tmp_path / "cluster").mkdir()
    server = LocalJobServer(tmp_path / "cluster")
    yield server
    server.end()
