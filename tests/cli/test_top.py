from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.cluster.frame import FrameReader, merge_snapshots
from orchestrator.cli.cluster.frame_text import render_frame
from orchestrator.driver.live.publish import RUNNING
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import Study
from tests.cli.test_status import TEXT, make_ledger, make_study
from tests.support.processes import wait_until
from tests.support.tiny_study import make_place

NOW_MS = 1_800_000_000_000


def make_row(number: int, **other: Any) -> dict[str, Any]:
    return {
        "signature": f"{number:016x}", "kind": "trial", "label": f"contrastive · strong · r{number}", "host": "node1",
        "slot": f"own-{number}", "devices": None, "attempt": 1, "since_ms": NOW_MS - 130_000, "epochs": 20, "epoch": 7,
        "phase": "training",
    } | other  # fmt: skip


def make_failure(number: int, **other: Any) -> dict[str, Any]:
    return {
        "timestamp_ms": NOW_MS - 60_000 + number, "signature": f"{number:016x}", "label": "scratch · none · r0",
        "host": "node2", "reason": "diverged", "message": "epoch 3: the mean training loss is nan",
    } | other  # fmt: skip


def make_snapshot(*rows: dict[str, Any], **other: Any) -> dict[str, Any]:
    trials = {"planned": 960, "complete": 412, "failed": 3, "interrupted": 0, "missing": 545 - len(rows)}
    return {
        "study": "s", "host": "head", "pid": 4242, "since_ms": NOW_MS - 7_500_000, "alive_ms": NOW_MS,
        "trials": trials | {"running": len(rows)}, "stages": {"planned": 2, "complete": 2, "running": 0, "missing": 0},
        "running": list(rows), "failures": [make_failure(1)], "failures_by_reason": {"diverged": 3}, "num_lost": 0,
        "slots": 16, "busy_slots": len(rows), "utilisation": 0.94, "eta_seconds": 7800.0, "cost": None, "limits": {},
        "usage": {},
    } | other  # fmt: skip


def write_snapshot(ledger: Ledger, snapshot: dict[str, Any], name: str = "head-4242.json") -> None:
    (ledger.root / RUNNING).write_json(name, snapshot)


def read(study: Study, storage: Path) -> dict[str, Any]:
    return FrameReader(study, storage=str(storage), clock=lambda: NOW_MS / 1000).read()


def draw(frame: dict[str, Any], width: int = 80, height: int | None = None) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(render_frame(frame, width=width, height=height))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_running_study_is_shown_in_80_columns_from_the_ledger_alone(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "missing")
    rows = [make_row(number) for number in range(3)]
    rows += [make_row(3, host="a" * 70, devices="2", slot="7f3a_00012", phase="evaluating 12/96", attempt=2)]
    write_snapshot(ledger, make_snapshot(*rows))
    ledger.root.write_json("usage.json", {"wall_seconds": 7200.0, "slot_seconds": 72_000.0, "gpu_seconds": 36_000.0})
    study = make_study(
        "study: s\ndata: {kind: digits}\nexecution: {price_per_gpu_hour: 2.5, budget: {money: 100, gpu_hours: 40}}\n"
    )
    lines = draw(read(study, tmp_path))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "driver  head, process 4242, for 2 h 05 min" in text
    assert "trials  412 of 960 complete · 4 running · 3 failed · 541 missing" in text
    assert "stages  2 of 2 complete" in text
    assert "slots   4 of 16 busy · utilisation 94% · ETA 2 h 10 min" in text
    assert "used    2 h 00 min wall · 20 h 00 min of trials and stages · 10 of 40 GPU-hours" in text
    assert "25 of 100 money" in draw(read(study, tmp_path), width=120)[5]
    (late,) = (line for line in lines if "gpu 2" in line)
    assert late.split()[3:] == ["contrastive", "·", "strong", "·", "r3", "evaluating", "12/96", "2", "min"]
    assert "evaluating 12/96, attempt 2" in "\n".join(draw(read(study, tmp_path), 120))
    (row,) = (line.split() for line in lines if "r1" in line)
    assert row == ["node1", "own-1", "contrastive", "·", "strong", "·", "r1", "epoch", "7/20", "2", "min"]
    assert "scratch · none · r0 [00000000] on node2: diverged: epoch 3" in text


def test_what_does_not_fit_on_the_terminal_is_counted(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "missing")
    failures = [make_failure(number) for number in range(10)]
    write_snapshot(ledger, make_snapshot(*(make_row(number) for number in range(200)), failures=failures))
    frame = read(make_study(), tmp_path)
    lines = draw(frame, height=24)
    assert len(lines) <= 24
    shown = sum("epoch 7/20" in line for line in lines)
    assert f"… and {200 - shown} more" in lines
    assert shown >= 6
    assert sum("[0000" in line for line in lines) == 5
    assert len(draw(frame, width=200, height=50)) <= 50
    assert sum("epoch 7/20" in line for line in draw(frame)) == 200


def test_without_a_driver_the_whole_ledger_is_read(tmp_path: Path) -> None:
    make_ledger(tmp_path, "complete", "failed", "interrupted", "missing")
    frame = read(make_study(), tmp_path)
    assert frame["trials"] == {"planned": 4, "complete": 1, "running": 0, "failed": 1, "interrupted": 1, "missing": 1}
    assert frame["running"] == []
    assert [(failure["reason"], failure["message"]) for failure in frame["failures"]] == [("error", "m")]
    text = "\n".join(draw(frame))
    assert "none: nobody runs the study now" in text
    assert "nothing runs" in text


def test_a_driver_that_was_killed_is_told_and_its_trials_do_not_run(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "interrupted")
    write_snapshot(ledger, make_snapshot(make_row(1), alive_ms=NOW_MS - 600_000))
    frame = read(make_study(), tmp_path)
    assert not frame["drivers"][0]["is_alive"]
    assert frame["running"] == []
    assert frame["trials"]["interrupted"] == 1
    assert "gone: no sign of life for 10 min" in "\n".join(draw(frame))


def test_several_drivers_of_one_study_are_added_up() -> None:
    rows = [make_row(number) for number in range(3)]
    snapshots = [
        make_snapshot(*rows[:2], slots=2, utilisation=1.0, eta_seconds=None),
        make_snapshot(*rows[2:], slots=6, utilisation=0.5, failures=[make_failure(0)]),
    ]
    merged = merge_snapshots(snapshots)
    assert merged["running"] == rows
    assert (merged["slots"], merged["busy_slots"], merged["eta_seconds"]) == (8, 3, 7800.0)
    assert merged["utilisation"] == (2 * 1.0 + 6 * 0.5) / 8
    assert (merged["trials"]["running"], merged["trials"]["missing"]) == (3, 542)
    assert [failure["signature"][-1] for failure in merged["failures"]] == ["0", "1"]


def test_a_hostile_ledger_cannot_steer_the_terminal(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path, "missing")
    bad = "\x1b[2J\x1b]0;title\x07[red]x[/red]"
    row, failure = make_row(1, host=bad, label=bad, phase=bad, devices=bad), make_failure(1, message=bad, label=bad)
    write_snapshot(ledger, make_snapshot(row, host=bad, failures=[failure]))
    text = "\n".join(draw(read(make_study(), tmp_path), width=200))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text


@pytest.fixture
def watched(tmp_path: Path) -> list[str]:
    """Command line that watches a running study."""
    ledger = make_ledger(tmp_path, "missing")
    (tmp_path / "s.yaml").write_text(TEXT)
    write_snapshot(ledger, make_snapshot(make_row(1), host=socket.gethostname(), alive_ms=int(time.time() * 1000)))
    return [sys.executable, "-m", "robustsweep", "top", str(tmp_path / "s.yaml"), "--storage", str(tmp_path)]


def test_one_frame_is_printed_as_text_or_json(watched: list[str]) -> None:
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    once = subprocess.run([*watched, "--once"], env=environment, capture_output=True, text=True, check=True)
    assert "contrastive · strong · r1" in once.stdout
    asked = subprocess.run([*watched, "--json"], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout)["running"] == [make_row(1)]


def test_q_ends_it_on_a_terminal(watched: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(watched, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    said = b""
    while b"r1" not in said:
        said += os.read(ours, 1 << 16)
    os.write(ours, b"q")
    assert process.wait(30) == 0
    os.close(ours)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_drivers_of_one_study(tmp_path: Path) -> None:
    place = make_place(tmp_path, tmp_path / "cache")
    options = ("--set", "training.epochs=30", "--set", "execution.max_concurrent_trials=1")
    drivers = [place.start("run", "--shard", f"{number}/2", *options) for number in (1, 2)]
    frames: list[dict[str, Any]] = []

    def are_both_busy() -> bool:
        frames.append(json.loads(place.call("top", "--json").stdout))
        return len(frames[-1]["drivers"]) == len(frames[-1]["running"]) == 2

    try:
        wait_until(are_both_busy, "both drivers are shown, each with a trial")
        said = place.call("top", "--once", COLUMNS="80", NO_COLOR="1").stdout
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()
    frame = frames[-1]
    assert {driver["pid"] for driver in frame["drivers"]} == {driver.pid for driver in drivers}
    assert len({row["signature"] for row in frame["running"]}) == 2
    assert (frame["slots"], frame["busy_slots"]) == (2, 2)
    assert sum(frame[kind]["running"] for kind in ("stages", "trials")) == 2
    assert frame["usage"]["slot_seconds"] > 0
    lines = said.splitlines()
    assert len([line for line in lines if line.startswith("driver ")]) == 2
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) <= 24
