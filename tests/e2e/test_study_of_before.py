"""A study of schema version 3 (version 0.1.0) can still be read; its trials are orphans of this version's plan.

``before-the-move.zip`` holds its study file and its ledger: two trials, one contrastive stage, the tables of its
report, and what was stored about an MLflow database that is gone.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command_line import call_words
from tests.support.paths import ROOT

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
        with contextlib.chdir(self.folder):  # its paths are relative
            return call_words(command, study, "--storage", str(self.folder), *options).stdout

    def records(self) -> dict[str, bytes]:
        """Return the content of every file of every stage and trial."""
        paths = [path for kind in ("stages", "trials") for path in (self.ledger / kind).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.ledger)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    folder = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(ROOT / "tests/data/before-the-move.zip") as archive:
        archive.extractall(folder)
    return Before(folder)


def test_its_trials_are_of_an_earlier_schema_and_would_run_anew(before: Before) -> None:
    records = before.records()
    # It has one replicate, which decides nothing: refused today.
    plan = json.loads(before.call("plan", "--no-pilot", "--json", "--set", "hypotheses=[]"))
    states = {row["signature"]: row["state"] for row in plan["stages"] + plan["trials"]}
    assert set(states.values()) == {"to run"}
    assert not states.keys() & SIGNATURES
    assert set(plan["orphaned"]) == SIGNATURES
    assert before.records() == records


def test_report_and_sync_still_read_it_and_change_no_record(before: Before) -> None:
    records = before.records()
    assert len(records) > 15
    before.call("report")
    assert (before.ledger / "report/index.html").stat().st_size > 100_000
    before.call("sync")
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
