"""A small trained study, served: its ledger is a copy, so that notes may be written into it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.explorer.serve import Served, serve
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.ledger import Ledger
from tests.support.trained_study import TrainedStudy


@pytest.fixture(scope="session")
def explored(
    trained_study: TrainedStudy, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[ExploredStudy]:
    """The study with its first trial prepared."""
    storage = tmp_path_factory.mktemp("explored") / "results"
    shutil.copytree(trained_study.storage, storage)
    found = ExploredStudy(Ledger(str(storage), "small"), cache_dir)
    found.prepare_now(0)
    yield found
    found.close()


@pytest.fixture(scope="session")
def served(explored: ExploredStudy) -> Iterator[Served]:
    with serve(explored) as found:
        yield found


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explorer-profile")
