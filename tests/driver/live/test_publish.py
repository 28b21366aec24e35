from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.driver.live import prometheus
from orchestrator.driver.live.prometheus import check_metrics
from orchestrator.driver.live.publish import RUNNING, Source, is_fresh, publishing, read_snapshots
from orchestrator.driver.live.state import LiveState
from orchestrator.execution.meter import Meter
from orchestrator.ledger.lease import LEASE_SECONDS
from orchestrator.planning.budget import Usage
from orchestrator.planning.states import COMPLETE, FAILED
from orchestrator.study.execution_config import ExecutionConfig
from tests.support.plans import make_stage, make_trial
from tests.support.processes import wait_until
from trainables.errors import ConfigError, InfrastructureError
from trainables.storage.folder import Folder

STAGE, TRIALS = make_stage("stage"), [make_trial(f"trial {number}") for number in range(4)]
#: Two hours of a study were taken before, 3 GPU hours among them.
BEFORE = Usage(wall_seconds=7200.0, slot_seconds=10_000.0, gpu_seconds=10_800.0)


class Study:
    """A study of four trials on two slots: one complete, one failed, one running for 30 of the 40 s of this run."""

    def __init__(self, tmp_path: Path, **execution: Any) -> None:
        self.now = 0.0
        self.said: list[str] = []
        live = LiveState([STAGE, *TRIALS], {STAGE.signature: COMPLETE, TRIALS[0].signature: COMPLETE})
        meter = Meter(BEFORE, clock=lambda: self.now)
        self.now = 40.0
        live.handle("started", TRIALS[1], {"host": "node1", "slot": "own-0", "devices": "3", "attempt": 1})
        meter.report("own-0", gpus=0.5, busy_seconds=30.0)
        live.handle("ended", TRIALS[2], {"status": FAILED, "reason": 'out "of" memory', "message": "m"})
        self.root = Folder(tmp_path / "s")
        self.source = Source(
            study="s",
            live=live,
            meter=meter,
            seconds_left=lambda: 90.0,
            num_slots=lambda: 2,
            execution=ExecutionConfig(price_per_gpu_hour=2.0, **execution),
            before=BEFORE,
            since_ms=1_800_000_000_000,
        )

    def publish(self) -> AbstractContextManager[None]:
        return publishing(self.source, self.root, print_line=self.said.append)

    def snapshots(self) -> list[dict[str, Any]]:
        return read_snapshots(self.root)


def test_a_driver_has_a_snapshot_in_the_ledger_while_it_runs(tmp_path: Path) -> None:
    study = Study(tmp_path)
    assert study.snapshots() == []
    with study.publish():
        wait_until(study.snapshots, "a snapshot")
        (found,) = study.snapshots()
    assert found["running"][0] | {"host": "node1", "devices": "3", "slot": "own-0"} == found["running"][0]
    assert (found["slots"], found["busy_slots"], found["eta_seconds"]) == (2, 1, 90.0)
    assert found["utilisation"] == 30 / (2 * 40)
    gpu_seconds = 10_800 + 30 / 2
    assert found["usage"] == {"wall_seconds": 7240.0, "slot_seconds": 10_030.0, "gpu_seconds": gpu_seconds}
    assert found["cost"] == pytest.approx(gpu_seconds / 3600 * 2)
    assert found["host"] == socket.gethostname()
    assert is_fresh(found, time.time())
    assert not is_fresh(found, time.time() + LEASE_SECONDS)
    assert study.snapshots() == []
    assert study.said == []  # no metrics were asked for


def test_a_driver_removes_what_dead_ones_have_left(tmp_path: Path) -> None:
    study, now_ms = Study(tmp_path), int(time.time() * 1000)
    folder = study.root / RUNNING
    folder.write_json("dead-1.json", {"alive_ms": now_ms - 1000 * int(LEASE_SECONDS) - 1})
    folder.write_json("alive-2.json", {"alive_ms": now_ms})
    folder.write("damaged-3.json", b"{")
    with study.publish():
        wait_until(lambda: len(list(folder.children())) == 2, "two snapshots")
        names = set(folder.children())
    assert "alive-2.json" in names
    assert list(folder.children()) == ["alive-2.json"]


def get(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return metric → labels without the study → value, as Prometheus reads them."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return parse(answer.read().decode())


def parse(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["study"] == "s"
            labels = tuple(value for name, value in sample.labels.items() if name != "study")
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


EXPECTED = {
    "robustsweep_trials": {
        ("complete",): 1, ("failed",): 1, ("stopped_early",): 0, ("interrupted",): 0, ("missing",): 1, ("running",): 1,
    },
    "robustsweep_stages": {
        ("complete",): 1, ("failed",): 0, ("stopped_early",): 0, ("interrupted",): 0, ("missing",): 0, ("running",): 0,
    },
    "robustsweep_slots": {(): 2},
    "robustsweep_busy_slots": {(): 1},
    "robustsweep_utilisation": {(): 0.375},
    "robustsweep_eta_seconds": {(): 90},
    "robustsweep_cost": {(): pytest.approx(10_815 / 1800)},
    "robustsweep_wall_seconds_total": {(): 7240},
    "robustsweep_slot_seconds_total": {(): 10_030},
    "robustsweep_gpu_seconds_total": {(): 10_815},
    "robustsweep_failures_total": {('out "of" memory',): 1},
    "robustsweep_lost_attempts_total": {(): 0},
}  # fmt: skip


def test_prometheus_reads_the_metrics_over_http_on_this_machine_only(tmp_path: Path) -> None:
    study = Study(tmp_path, metrics_port=0)
    with study.publish():
        (said,) = study.said
        url = said.removeprefix("metrics: ")
        assert url.startswith("http://127.0.0.1:")
        assert get(url) == EXPECTED
        study.source.live.handle("ended", TRIALS[1], {"status": COMPLETE})
        assert get(url)["robustsweep_trials"] == EXPECTED["robustsweep_trials"] | {("complete",): 2, ("running",): 0}
    with pytest.raises(OSError, match="refused"):
        get(url)


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    study = Study(tmp_path)
    snapshot = study.source.take() | {"eta_seconds": None, "cost": None}
    names = {family.name for family in prometheus.make_families(snapshot)}
    assert "robustsweep_slots" in names
    assert not names & {"robustsweep_eta_seconds", "robustsweep_cost"}


def test_metrics_are_written_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "robustsweep.prom"
    study = Study(tmp_path, metrics_file=path)
    with study.publish():
        assert parse(path.read_text()) == EXPECTED
        study.source.live.handle("ended", TRIALS[1], {"status": COMPLETE})
    assert parse(path.read_text())["robustsweep_trials"]["complete",] == 2
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]  # no temporary one


def test_metrics_that_cannot_be_shown_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InfrastructureError, match=f"127.0.0.1:{port}.*choose another port"):
            Study(tmp_path, metrics_port=port).publish().__enter__()
    with pytest.raises(InfrastructureError, match=r"execution\.metrics_file: could not write"):
        Study(tmp_path, metrics_file=tmp_path / "missing" / "m.prom").publish().__enter__()


def test_a_missing_package_is_one_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_metrics(ExecutionConfig(metrics_port=0))
    monkeypatch.setattr(prometheus, "find_spec", lambda name: None)
    check_metrics(ExecutionConfig())
    with pytest.raises(ConfigError, match=r"metrics_port.*pip install 'robustsweep\[cluster\]'"):
        check_metrics(ExecutionConfig(metrics_port=9464))


def test_without_metrics_nothing_of_prometheus_is_imported() -> None:
    script = "import sys, orchestrator.driver.live.publish; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
