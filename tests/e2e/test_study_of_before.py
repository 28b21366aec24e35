"""A study that was finished before the packages were arranged anew (version 0.1.0) is found settled by this version.

``before-the-move.zip`` holds its study file and its ledger: two trials, one contrastive stage, the tables of its
report, and what was stored about an MLflow database that is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TABLES = ("arms.csv", "shifts.csv", "effects.csv", "trials.csv", "verdicts.csv", "balanced_errors.csv", "costs.csv")
SIGNATURES = {"339d08ea0a7516c8", "88e0e5ec1f791b40", "d13174ab85d5b04c"}


@dataclass(frozen=True)
class Before:
    """The study, unpacked."""

    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "before-the-move"

    def call(self, command: str, *options: str, study: str = "before-the-move.yaml") -> str:
        """Run a command of ``robustsweep`` to its end; return what it prints."""
        words = [sys.executable, "-m", "robustsweep", command, study, "--storage", str(self.folder), *options]
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"COLUMNS": "200"}
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def records(self) -> dict[str, bytes]:
        """Return the content of every file of every stage and trial."""
        paths = [path for kind in ("stages", "trials") for path in (self.ledger / kind).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.ledger)): path.read_bytes() for path in paths}

    def tables(self) -> dict[str, bytes]:
        return {name: (self.ledger / "report" / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    folder = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(ROOT / "tests/data/before-the-move.zip") as archive:
        archive.extractall(folder)
    return Before(folder)


def test_its_signatures_are_the_same_and_everything_is_complete(before: Before) -> None:
    plan = json.loads(before.call("plan", "--no-pilot", "--json"))
    states = {row["signature"]: row["state"] for row in plan["stages"] + plan["trials"]}
    assert states == dict.fromkeys(SIGNATURES, "complete")
    assert plan["orphaned"] == []


def test_run_starts_nothing_and_report_and_sync_work(before: Before) -> None:
    records, tables = before.records(), before.tables()
    assert len(records) > 15
    said = before.call("run")
    assert "2 planned, 2 complete" in said
    assert "started" not in said
    assert before.tables() == tables
    before.call("report")
    assert before.tables() == tables
    assert (before.ledger / "report/index.html").stat().st_size > 100_000
    before.call("sync")
    assert "settled" in before.call("run")
    assert before.records() == records


def test_mlflow_has_every_run_of_it_once(before: Before) -> None:
    from orchestrator.tracking.client import MlflowClient

    client = MlflowClient(f"sqlite:///{before.ledger}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    signatures = [run.data.tags["robustsweep.signature"] for run in runs if "robustsweep.signature" in run.data.tags]
    assert sorted(signatures) == sorted(SIGNATURES)


def test_it_is_found_by_its_name(before: Before) -> None:
    counts = json.loads(before.call("status", "--json", study="before-the-move"))
    assert (counts["planned"], counts["complete"]) == (2, 2)
