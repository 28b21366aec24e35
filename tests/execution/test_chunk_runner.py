"""A slot with real processes and acted trials, without Ray."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.chunk_runner import ChunkRunner
from orchestrator.execution.chunk_settings import pack, unpack
from orchestrator.execution.fork_client import ForkClient
from orchestrator.ledger.attempts import count_lost, read_attempts
from orchestrator.ledger.failures import SUPERSEDED
from tests.support.processes import is_running, wait_until
from tests.support.scripted_fork_server import MODULE
from trainables.storage.claims import find_claim, take_claim
from trainables.storage.folder import Folder


def make_chunk(root: Path, *names: str, **changes: Any) -> dict[str, Any]:
    """Return a chunk of acted trials; each acts the first word of its name."""
    works = [
        {
            "record": {"signature": name, "name": name, "kind": "trial"},
            "folder": str(root / name.replace(" ", "-")),
            "claims": str(root / "claims" / name.replace(" ", "-")),
            "number": 1,
            "encoder": None,
            "matching": None,
        }
        for name in names
    ]
    common = {
        "execution": {"num_threads": 1, "early_stopping": False, "evaluation_batch_size": 6},
        "stall_seconds": 600.0,
        "orphan_seconds": 600.0,
        "module": MODULE,
        "preload": [],
        "max_retries": 2,
        "report_seconds": 0.2,
        "chunk_seconds": 20.0,
        "gpus": 0.0,
        "lease": None,
    }
    return {**common, "works": works, "token": uuid.uuid4().hex[:8], "created_ms": 0, **changes}


@pytest.fixture
def start() -> Iterator[Callable[[dict[str, Any]], ChunkRunner]]:
    made: list[ChunkRunner] = []

    def start(chunk: dict[str, Any]) -> ChunkRunner:
        made.append(ChunkRunner(chunk))
        return made[-1]

    yield start
    for each in made:
        each.close()


def news_of(runner: ChunkRunner) -> Iterator[dict[str, Any]]:
    while not runner.is_done:
        yield from runner.step()


def ends_of(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["signature"], event["status"]) for event in events if event["event"] == "done"]


Start = Callable[[dict[str, Any]], ChunkRunner]


def test_a_chunk_survives_packing(tmp_path: Path) -> None:
    chunk = make_chunk(tmp_path, *(f"finish {number}" for number in range(20)))
    assert unpack(pack(chunk)) == chunk
    assert len(pack(chunk)) < len(json.dumps(chunk)) / 2


def test_works_of_a_chunk_run_one_after_another_in_fresh_processes(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "finish 1", "finish 2", "fail 3", "finish 4"))
    events = list(news_of(runner))
    begun = [event["signature"] for event in events if event["event"] == "begun"]
    assert begun == ["finish 1", "finish 2", "fail 3", "finish 4"]
    assert ends_of(events) == [(name, "failed" if name == "fail 3" else "complete") for name in begun]
    assert all(event["host"] and event["seconds"] > 0 for event in events if event["event"] == "done")
    ends = [event for event in events if event["event"] == "done"]
    assert all(0 < event["attempt"]["seconds"] <= event["seconds"] + 0.001 for event in ends)  # it is rounded
    assert all(event["busy_seconds"] > 0 for event in events)
    assert events[-1]["busy_seconds"] + 0.001 >= sum(event["seconds"] for event in ends)
    results = [json.loads((tmp_path / f"finish-{n}" / "result.json").read_text()) for n in (1, 2, 4)]
    assert len({result["pid"] for result in results}) == 3
    assert len({result["server"] for result in results}) == 1
    assert json.loads((tmp_path / "finish-4" / "config.json").read_text())["name"] == "finish 4"


def test_what_comes_later_in_a_chunk_has_not_begun(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hang", "finish later"))
    runner.step()
    assert (tmp_path / "hang" / "config.json").exists()
    assert not (tmp_path / "finish-later").exists()


def test_a_slot_gives_back_what_it_does_not_come_to(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hang", "finish 2", "finish 3", chunk_seconds=0.5))
    events: list[dict[str, Any]] = []
    while not any(event["event"] == "returned" for event in events):
        events += runner.step()
    assert [event["signature"] for event in events if event["event"] == "returned"] == ["finish 2", "finish 3"]
    assert not runner.is_done
    one = start(make_chunk(tmp_path, "finish 2", chunk_seconds=0.0))  # one is always done
    assert ends_of(list(news_of(one))) == [("finish 2", "complete")]


def test_the_same_slot_takes_another_chunk(start: Start, tmp_path: Path) -> None:
    chunk = make_chunk(tmp_path, "finish 1")
    runner = start(chunk)
    list(news_of(runner))
    runner.begin(chunk | {"works": make_chunk(tmp_path, "fail")["works"]})
    assert not runner.is_done
    assert ends_of(list(news_of(runner))) == [("fail", "failed")]


def test_many_events_are_told_once_per_report(start: Start, tmp_path: Path) -> None:
    events = list(news_of(start(make_chunk(tmp_path, "shout"))))
    assert len(events) < 50  # of 200
    assert [event["event"] for event in events[:2]] == ["begun", "started"]  # by which the driver sees a loss
    assert events[-1]["message"].startswith("ValueError: yyy")


def test_a_silent_trial_still_lets_its_slot_answer(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hang"))
    assert [] in [runner.step() for _ in range(4)]


def test_what_ended_in_an_earlier_life_is_only_reported(start: Start, tmp_path: Path) -> None:
    done, failed = Folder(str(tmp_path / "finish-1")), Folder(str(tmp_path / "fail-2"))
    done.write_json("result.json", {"kept": True})
    failure = {"status": "failed", "reason": "error", "message": "m", "traceback": "t", "timestamp_ms": 2000}
    failed.write_json("failure.json", failure)
    chunk = make_chunk(tmp_path, "finish 1", "fail 2", created_ms=1000)
    for work in chunk["works"]:
        take_claim(Folder(work["claims"]), work["number"])
    runner = start(chunk)
    events = list(news_of(runner))
    assert not any(find_claim(Folder(work["claims"])) for work in chunk["works"])
    assert ends_of(events) == [("finish 1", "complete"), ("fail 2", "failed")]
    assert events[1]["message"] == "m"
    assert done.read_json("result.json") == {"kept": True}
    runner.begin(make_chunk(tmp_path, "fail 2", created_ms=3000))  # a failure of an earlier run: asked for again
    assert "shape (3, 4)" in list(news_of(runner))[-1]["message"]


def test_a_full_disk_ends_the_chunk_and_costs_no_try(start: Start, tmp_path: Path) -> None:
    events = list(news_of(start(make_chunk(tmp_path, "fill", "finish 2", "finish 3"))))
    (end,) = [event for event in events if event["event"] == "done"]
    assert (end["signature"], end["reason"]) == ("fill", "disk full")
    assert "No space left on device: 'cache'" in end["message"]
    assert [event["signature"] for event in events if event["event"] == "returned"] == ["finish 2", "finish 3"]
    assert not (tmp_path / "fill" / "attempts.jsonl").exists()


def test_a_slot_that_finds_no_room_itself_says_so(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    runner = start(make_chunk(tmp_path, "finish 1", "finish 2"))
    monkeypatch.setattr(os, "fsync", full)
    events = list(news_of(runner))
    assert [event["event"] for event in events] == ["done", "returned"]
    assert events[0]["reason"] == "disk full"
    assert f"could not write {tmp_path}/finish-1/config.json: the disk is full" in events[0]["message"]


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_says_where_and_when_every_attempt_ran(start: Start, tmp_path: Path) -> None:
    list(news_of(start(make_chunk(tmp_path, "finish", "shout", "dies_once"))))
    logs = {name: read_log(tmp_path / name) for name in ("finish", "shout", "dies_once")}
    assert {name: [line["event"] for line in log] for name, log in logs.items()} == {
        "finish": ["begun", "done"],
        "shout": ["begun", "started", "failed"],
        "dies_once": ["begun", "started", "lost", "done"],
    }
    failed, lost = logs["shout"][-1], logs["dies_once"]
    assert (failed["level"], failed["message"]) == ("error", "ValueError: " + "y" * 288)
    assert (lost[2]["level"], "SIGKILL" in lost[2]["message"]) == ("warning", True)
    for line in lost:
        assert (line["attempt"], line["host"], line["slot_pid"]) == (1, os.uname().nodename, os.getpid())
        assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 600
    assert [line["time"] for line in lost] == sorted(line["time"] for line in lost)


def test_what_is_found_complete_has_no_further_log(start: Start, tmp_path: Path) -> None:
    chunk = make_chunk(tmp_path, "finish")
    list(news_of(start(chunk)))
    before = (tmp_path / "finish" / "log.jsonl").read_bytes()
    list(news_of(start(chunk)))
    assert (tmp_path / "finish" / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "tries", "end", "reason", "word"),
    [
        ("dies_once", 1, "complete", None, "SIGKILL"),
        ("dies", 3, "failed", "crashed", "SIGKILL"),
        ("starves_once", 1, "complete", None, "max_concurrent_trials"),
        ("starves", 3, "failed", "out of memory", "max_concurrent_trials"),
    ],
)
def test_a_lost_trial_is_tried_again_in_its_slot(
    start: Start, tmp_path: Path, name: str, tries: int, end: str, reason: str | None, word: str
) -> None:
    events = list(news_of(start(make_chunk(tmp_path, name, "finish"))))
    assert ends_of(events) == [(name, end), ("finish", "complete")]
    notes = [json.loads(line) for line in (tmp_path / name / "attempts.jsonl").read_text().splitlines()]
    assert len(notes) == tries
    assert all(word in note["message"] and note["host"] and note["seconds"] > 0 for note in notes)
    done = next(event for event in events if event["event"] == "done")
    assert done.get("reason") == reason
    if reason is not None:
        assert done["message"] == notes[-1]["message"]
        assert ("in starves" in done["traceback"]) == (reason == "out of memory")


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images per batch in evaluation, of every process that is started."""
    sizes: list[int] = []
    begin = ForkClient.begin

    def note(client: ForkClient, request: Any) -> None:
        sizes.append(request["execution"]["evaluation_batch_size"])
        begin(client, request)

    monkeypatch.setattr(ForkClient, "begin", note)
    return sizes


def test_a_process_that_had_no_memory_is_followed_by_one_that_evaluates_fewer_images_at_once(
    start: Start, tmp_path: Path, batch_sizes: list[int]
) -> None:
    list(news_of(start(make_chunk(tmp_path, "starves", "dies_once", "finish", max_retries=3))))
    assert batch_sizes == [6, 3, 1, 1, 6, 6, 6]


OUT_OF_GPU = "out of GPU memory"


def test_a_trial_that_has_no_memory_on_a_shared_gpu_is_given_back_for_a_larger_share(
    start: Start, tmp_path: Path
) -> None:
    events = list(news_of(start(make_chunk(tmp_path, "cramped 1", "finish", gpus=0.25, max_retries=0))))
    assert ends_of(events) == [("finish", "complete")]
    (back,) = [event for event in events if event["event"] == OUT_OF_GPU]
    assert (back["signature"], back["gpus"]) == ("cramped 1", 0.25)
    assert "execution.gpus_per_trial" in back["message"]
    (note,) = read_attempts(Folder(tmp_path / "cramped-1"))
    assert (note["gpus"], note["message"]) == (0.25, back["message"])
    assert [(line["event"], line["gpus"]) for line in read_log(tmp_path / "cramped-1")] == [
        ("begun", 0.25),
        ("started", 0.25),
        ("lost", 0.25),
    ]
    assert find_claim(Folder(tmp_path / "claims" / "cramped-1")) is None
    again = make_chunk(tmp_path, "cramped 1", gpus=0.5)
    again["works"][0]["number"] = 2
    assert ends_of(list(news_of(start(again)))) == [("cramped 1", "complete")]


def test_a_trial_that_is_trained_is_given_back_for_its_evaluation(start: Start, tmp_path: Path) -> None:
    events = list(news_of(start(make_chunk(tmp_path, "is_trained", "finish"))))
    assert ends_of(events) == [("finish", "complete")]
    assert [event["event"] for event in events if event["signature"] == "is_trained"][-1] == "trained"
    assert [line["event"] for line in read_log(tmp_path / "is_trained")] == ["begun", "trained"]
    assert read_attempts(Folder(tmp_path / "is_trained")) == []
    assert find_claim(Folder(tmp_path / "claims" / "is_trained")) is None
    again = make_chunk(tmp_path, "is_trained")
    again["works"][0]["number"] = 2
    assert ends_of(list(news_of(start(again)))) == [("is_trained", "complete")]


@pytest.mark.parametrize(
    ("name", "settings", "end", "sizes"),
    [
        ("cramped 1", {"gpus": 1.0, "max_retries": 2}, "complete", [6, 3]),  # no larger share: smaller batches
        ("cramped 9", {"gpus": 1.0, "max_retries": 1}, "failed", [6, 3]),
        ("cramped_in_evaluation 1", {"gpus": 0.25, "max_retries": 1}, "complete", [6, 3]),
        ("cramped_in_evaluation 9", {"gpus": 0.25, "max_retries": 1}, OUT_OF_GPU, [6, 3]),
        ("cramped 1", {"gpus": 0.25, "max_retries": 1}, OUT_OF_GPU, [6]),
        ("cramped 9", {"gpus": 0.0, "max_retries": 0}, "failed", [6]),
    ],
)
def test_what_follows_a_gpu_without_memory(
    start: Start, tmp_path: Path, batch_sizes: list[int], name: str, settings: dict[str, Any], end: str,
    sizes: list[int],
) -> None:  # fmt: skip
    last = list(news_of(start(make_chunk(tmp_path, name, **settings))))[-1]
    assert last.get("status", last["event"]) == end
    assert last.get("reason") == (OUT_OF_GPU if end == "failed" else None)
    assert batch_sizes == sizes


def test_the_log_says_what_a_trial_left_of_its_share_of_a_gpu(start: Start, tmp_path: Path) -> None:
    list(news_of(start(make_chunk(tmp_path, "takes_gpu 1", "finish", gpus=0.5))))
    last = read_log(tmp_path / "takes_gpu-1")[-1]
    assert (last["event"], last["gpus"]) == ("done", 0.5)
    assert (last["peak_gpu_memory_mib"], last["gpu_headroom_mib"]) == (5000.0, 3000.0)
    list(news_of(start(make_chunk(tmp_path, "takes_gpu 2", gpus=0.25))))
    assert read_log(tmp_path / "takes_gpu-2")[-1]["gpu_headroom_mib"] == -1000.0
    assert "gpu_headroom_mib" not in read_log(tmp_path / "finish")[-1]


def test_a_hanging_trial_is_killed_noted_and_tried_again(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hangs_once", stall_seconds=1.0))
    assert ends_of(list(news_of(runner))) == [("hangs_once", "complete")]
    (note,) = [json.loads(line) for line in (tmp_path / "hangs_once" / "attempts.jsonl").read_text().splitlines()]
    assert "no sign of life" in note["message"]
    assert "stall_minutes" in note["message"]


def test_a_hanging_trial_is_really_gone(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hang", stall_seconds=0.7, max_retries=0))
    pid = next(event["pid"] for event in news_of(runner) if event["event"] == "about")
    assert ends_of(list(news_of(runner))) == [("hang", "failed")]
    wait_until(lambda: not is_running(pid), "the process is gone")


def test_a_killed_fork_server_costs_one_try(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hang", "finish", max_retries=0))
    about = next(event for event in news_of(runner) if event["event"] == "about")
    os.kill(about["server"], signal.SIGKILL)
    assert ends_of(list(news_of(runner))) == [("hang", "failed"), ("finish", "complete")]
    note = json.loads((tmp_path / "hang" / "attempts.jsonl").read_text())
    assert "starts trials on this node has ended" in note["message"]


def test_closing_kills_what_runs(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "hang"))
    pid = next(event["pid"] for event in news_of(runner) if event["event"] == "about")
    runner.close()
    wait_until(lambda: not is_running(pid), "the process is gone")


def test_what_was_stopped_early_ends_at_once_where_trials_are_stopped_early(start: Start, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "finish-1"))
    folder.write_json("stop.json", {})
    stopping = {"num_threads": 1, "early_stopping": True, "evaluation_batch_size": 6}
    events = list(news_of(start(make_chunk(tmp_path, "finish 1", "finish 2", execution=stopping))))
    assert ends_of(events) == [("finish 1", "stopped_early"), ("finish 2", "complete")]
    assert "finish 1" not in [event["signature"] for event in events if event["event"] == "begun"]
    assert folder.is_intact("config.json")
    assert not folder.exists("result.json")
    assert ends_of(list(news_of(start(make_chunk(tmp_path, "finish 1"))))) == [("finish 1", "complete")]
    assert not folder.exists("stop.json")


def test_a_damaged_stop_is_none(start: Start, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "finish-1"))
    folder.write("stop.json", b'{"cut')
    stopping = {"num_threads": 1, "early_stopping": True, "evaluation_batch_size": 6}
    assert ends_of(list(news_of(start(make_chunk(tmp_path, "finish 1", execution=stopping))))) == [
        ("finish 1", "complete")
    ]
    assert not folder.exists("stop.json")


def test_a_trial_that_says_it_was_stopped_has_not_failed(start: Start, tmp_path: Path) -> None:
    stopping = {"num_threads": 1, "early_stopping": True, "evaluation_batch_size": 6}
    events = list(news_of(start(make_chunk(tmp_path, "stops", "finish", execution=stopping))))
    assert ends_of(events) == [("stops", "stopped_early"), ("finish", "complete")]
    assert next(event["epoch"] for event in events if event["event"] == "done") == 4


def test_what_a_newer_attempt_has_taken_over_is_noted_and_no_failure_of_the_trial(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "refused", "finish later"))
    events = list(news_of(runner))
    ends = {event["signature"]: event for event in events if event["event"] == "done"}
    assert ends["refused"]["reason"] == SUPERSEDED
    assert ends["finish later"]["status"] == "complete"
    (note,) = read_attempts(Folder(tmp_path / "refused"))
    assert note["superseded"] == 1
    assert "attempt 2 has taken over" in note["message"]
    assert count_lost([note]) == 0


def test_a_slot_that_comes_too_late_starts_nothing(start: Start, tmp_path: Path) -> None:
    newer = take_claim(Folder(tmp_path / "claims" / "finish-1"), 2)
    events = list(news_of(start(make_chunk(tmp_path, "finish 1"))))
    assert [event["event"] for event in events] == ["done"]
    assert events[0]["reason"] == SUPERSEDED
    assert not (tmp_path / "finish-1" / "config.json").exists()
    assert find_claim(Folder(tmp_path / "claims" / "finish-1")) == newer


def test_the_claim_is_gone_when_the_trial_has_ended(start: Start, tmp_path: Path) -> None:
    list(news_of(start(make_chunk(tmp_path, "finish 1", "fail 2", "dies_once 3"))))
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_trial_that_nobody_asks_for_ends_and_goes_on_when_somebody_does(start: Start, tmp_path: Path) -> None:
    runner = start(make_chunk(tmp_path, "waits_once", orphan_seconds=0.5, max_retries=0))
    runner.step()
    wait_until(lambda: _has_disconnected(runner), "its slot has left the fork server", seconds=20)
    wait_until(lambda: not runner._client._path.exists(), "the fork server has ended", seconds=20)
    assert ends_of(list(news_of(runner))) == [("waits_once", "complete")]
    (note,) = read_attempts(Folder(tmp_path / "waits_once"))
    assert note["orphaned"]
    assert "execution.orphan_minutes" in note["message"]
    assert count_lost([note]) == 0


def _has_disconnected(runner: ChunkRunner) -> bool:
    """Look as the thread of an actor does."""
    runner.disconnect_if_orphaned()
    return runner._client._connection is None
