from __future__ import annotations

import os
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from orchestrator.cli.lookup import describe_differences
from orchestrator.cli.status import COUNTS, compute_status, find_damaged, find_drivers, render_status
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.leases import DriverLease
from orchestrator.ledger.shards.shard import Shard
from orchestrator.planning.plan import Plan
from orchestrator.study.study_file import Study, compute_study_sha256, parse_study
from tests.support.plans import make_trial
from trainables.storage.claims import exchange_claim
from trainables.storage.completeness import describe_files

TEXT = "study: s\ndata: {kind: digits}\nfactors: {augmentation: [none, strong]}\nreplicates: 3\n"


def make_study(text: str = TEXT, *overrides: str) -> Study:
    return parse_study(text, source="s.yaml", overrides=overrides)


def make_ledger(tmp_path: Path, *names: str) -> Ledger:
    """Return a ledger whose planned trials are in the state they are named after."""
    ledger = Ledger(str(tmp_path), "s")
    trials = [make_trial(name) for name in names]
    ledger.write_plan(
        Plan((), tuple(trials)), {"study_sha256": compute_study_sha256(make_study()), "base": make_study().describe()}
    )
    for trial in trials:
        state = trial.name.split()[0]
        if state != "missing":
            ledger.begin(trial, study="s", git_commit=None)
        if state == "complete":
            ledger.folder("trial", trial.signature).write_json("result.json", {})
        if state == "failed":
            ledger.record_failure(trial, {"reason": "error", "message": "m"}, study="s", git_commit=None)
    return ledger


def test_before_the_first_run_everything_is_missing(tmp_path: Path) -> None:
    counts = compute_status(make_study(), storage=str(tmp_path))
    assert counts == {"planned": 6, "complete": 0, "running": 0, "failed": 0, "interrupted": 0, "missing": 6}
    assert tuple(counts) == COUNTS
    assert list(tmp_path.iterdir()) == []


def test_states_are_counted_and_add_up(tmp_path: Path) -> None:
    make_ledger(tmp_path, "complete a", "complete b", "failed", "interrupted", "missing a", "missing b", "missing c")
    counts = compute_status(make_study(), storage=str(tmp_path))
    assert counts == {"planned": 7, "complete": 2, "running": 0, "failed": 1, "interrupted": 1, "missing": 3}
    assert sum(counts.values()) == 2 * counts["planned"]


def test_what_has_begun_is_running_while_a_driver_is_alive(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "interrupted", "missing")
    with Lease(ledger):
        counts = compute_status(make_study(), storage=str(tmp_path))
        assert (counts["running"], counts["interrupted"]) == (1, 0)
    stale = {"host": "h", "pid": 1, "since_ms": 0, "alive_ms": int(time.time() * 1000) - 10**6, "token": "t"}
    ledger.root.write_json("lease.json", stale)
    counts = compute_status(make_study(), storage=str(tmp_path))
    assert (counts["running"], counts["interrupted"]) == (0, 1)


def test_what_is_no_longer_planned_does_not_count(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "missing")
    ledger.begin(make_trial("orphan"), study="s", git_commit=None)
    assert compute_status(make_study(), storage=str(tmp_path))["planned"] == 1


def test_a_study_that_has_changed_since_is_noticed(tmp_path: Path) -> None:
    assert not describe_differences(make_study(), storage=str(tmp_path))  # never run
    make_ledger(tmp_path, "missing")
    assert not describe_differences(make_study(), storage=str(tmp_path))
    assert not describe_differences(make_study(TEXT, "execution.cpus_per_trial=2"), storage=str(tmp_path))
    assert describe_differences(make_study(TEXT, "replicates=4"), storage=str(tmp_path))


def test_every_byte_is_looked_at_when_asked_for(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "complete a", "complete b")
    trial = make_trial("complete a")
    folder = ledger.folder("trial", trial.signature)
    folder.write_json("result.json", {"files": describe_files(folder, ["config.json"])})
    assert find_damaged(make_study(), storage=str(tmp_path)) == []
    config = Path(folder.uri, "config.json")
    config.write_bytes(b"#" * config.stat().st_size)
    os.utime(config, ns=(0, 0))
    assert compute_status(make_study(), storage=str(tmp_path))["complete"] == 2
    assert find_damaged(make_study(), storage=str(tmp_path)) == [f"{config} has another content than was written"]


def test_counts_are_printed_one_a_line() -> None:
    console = Console(file=StringIO())
    render_status({"planned": 2, "complete": 1}, console)
    assert console.file.getvalue() == "planned      2\ncomplete     1\n"  # type: ignore[attr-defined]


def test_drivers_that_share_a_study_are_listed_with_what_they_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make_ledger(tmp_path, "interrupted a", "interrupted b", "interrupted c", "missing")
    trials = [trial["signature"] for trial in ledger.read_plan()["trials"]]
    with join(ledger, "10/12") as first, join(ledger, "2/12"):
        exchange_claim(ledger.claims(trials[0]), None, 1, holder=first.driver)
        exchange_claim(ledger.claims(trials[1]), None, 1, holder="dead")
        counts = compute_status(make_study(), storage=str(tmp_path))
        drivers = find_drivers(make_study(), storage=str(tmp_path))
    assert (counts["running"], counts["interrupted"], counts["missing"]) == (1, 2, 1)
    assert [(driver["shard"], driver["running"], driver["pid"]) for driver in drivers] == [
        ("2/12", 0, os.getpid()), ("10/12", 1, os.getpid()),
    ]  # fmt: skip
    render_status(counts, Console(width=200), drivers=drivers)
    assert "\ndriver       10/12  process " in capsys.readouterr().out
    assert find_drivers(make_study(), storage=str(tmp_path)) == []
    assert compute_status(make_study(), storage=str(tmp_path))["running"] == 0


def join(ledger: Ledger, shard: str) -> DriverLease:
    return DriverLease(Ledger(ledger.storage, ledger.study), shard=Shard.parse(shard), plan_sha256="p")
