"""What an attempt that came to nothing took, and what it leaves to the next one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.attempts import MAX_LINES, MAX_LOGGED, AttemptLog
from orchestrator.ledger.durations import lost_seconds, spent_seconds, took_seconds
from orchestrator.ledger.record import Record
from trainables.storage.folder import Folder


def make_record(
    ends: Sequence[float],
    *,
    last_call: tuple[float, float] | None = None,
    lost: Sequence[tuple[float, float]] = (),
    failed: tuple[float, float] | None = None,
) -> Record:
    """Return a record with an epoch of 10 s ending at each of ``ends`` (s), and spans (begin, end) of attempts."""
    epochs = [{"epoch": n, "timestamp_ms": int(1000 * at), "metrics": {"seconds": 10.0}} for n, at in enumerate(ends)]
    result = last_call and {
        "started_ms": 1000 * last_call[0],
        "finished_ms": 1000 * last_call[1],
        "duration_seconds": last_call[1] - last_call[0],
    }
    failure = failed and {"attempt": _note(failed)}
    return Record("s", "trial", {}, epochs, result, failure, [_note(span) for span in lost])


def _note(span: tuple[float, float]) -> dict[str, Any]:
    return {"timestamp_ms": int(1000 * span[1]), "seconds": span[1] - span[0]}


@pytest.mark.parametrize(
    ("record", "took", "lost"),
    [
        (make_record([12, 22], last_call=(0, 30)), 30, 0),
        # lost in the middle of its second epoch: 2 s of start and 6 s of epoch are made again
        (make_record([12, 32, 42], last_call=(20, 50), lost=[(0, 18)]), 40, 8),
        # cut off together with its driver: nobody knows when
        (make_record([12, 132], last_call=(120, 140)), 30, 0),
        # lost twice, the second time before it came to an epoch
        (make_record([12, 52], last_call=(40, 60), lost=[(0, 15), (16, 20)]), 30, 9),
        # failed for good, after it was lost once
        (make_record([12, 32], lost=[(0, 15)], failed=(20, 37)), 20, 32),
        # interrupted; and failed, as older versions wrote it down
        (make_record([12, 22]), 20, 20),
        (Record("s", "trial", {}, [], None, {"reason": "error"}), 0, 0),
    ],
    ids=["undisturbed", "lost", "cut off", "twice", "failed", "interrupted", "old"],
)
def test_finished_and_lost_time_add_up(record: Record, took: float, lost: float) -> None:
    assert took_seconds(record) == pytest.approx(took)
    assert lost_seconds(record) == pytest.approx(lost)
    assert spent_seconds(record) == pytest.approx(lost + (took if record.result is not None else 0.0))


@pytest.mark.parametrize(("started", "finished"), [(0, 28_830), (7_200, 37)], ids=["suspended", "set back"])
def test_a_suspended_machine_or_a_clock_that_is_set_takes_no_time(started: float, finished: float) -> None:
    """The call took 30 s, whatever the dates say, and an epoch of 10 s lies on either side of the step."""
    record = make_record([12, finished - 8], last_call=(started, finished))
    assert record.result is not None
    record.result["duration_seconds"] = 30.0
    assert took_seconds(record) == pytest.approx(30)
    record.result["duration_seconds"] = finished - started  # as earlier versions wrote it
    assert took_seconds(record) >= 20


def test_the_log_of_an_attempt_is_bounded_and_ends_with_its_end(tmp_path: Path) -> None:
    folder, log = Folder(tmp_path), AttemptLog({"attempt": 2, "host": "h", "devices": None})
    for number in range(50):
        log.add("lost" if number % 2 else "started", message="x" * 1000 + "\nmore")
    log.add("started")
    log.add("failed", level="error", end={})
    log.write(folder)
    lines = folder.read_lines("log.jsonl")
    assert len(lines) == MAX_LINES
    assert len(lines[0]["message"]) == MAX_LOGGED
    assert lines[-1] | {"level": "error", "event": "failed", "attempt": 2, "host": "h"} == lines[-1]
    assert "devices" not in lines[0]
    log.write(folder)  # each line once
    assert len(folder.read_lines("log.jsonl")) == MAX_LINES


def test_a_log_that_cannot_be_written_costs_no_attempt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    log = AttemptLog({"attempt": 1})
    log.add("begun")
    log.write(Folder(tmp_path / "file" / "below"))
    assert "the log of an attempt is lost" in caplog.text
