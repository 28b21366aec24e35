"""What is handed out and when: by the searcher alone, and by a real Ray with acted trials."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import acting_slot
import pytest
from planning import make_stage, make_trial
from processes import is_running, wait_until

from orchestrator import scheduling
from orchestrator.ledger import Ledger, describe_work
from orchestrator.open_work import OpenWork
from orchestrator.plan import Work
from orchestrator.scheduling import Handing, Job, Searcher, Slots, check_fits, execute, num_slots
from orchestrator.slot import unpack
from trainables.errors import InfrastructureError, StudyError

EXECUTION = {"num_threads": 1, "device": "cpu"}


class Diary:
    """A listener that remembers, and keeps the ledger as ``run`` does."""

    def __init__(self, ledger: Ledger, on_event: Callable[[Work, dict[str, Any]], None] | None = None) -> None:
        self.ledger, self.on_event = ledger, on_event
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def listen(self, what: str, work: Work, details: dict[str, Any]) -> None:
        self.lines.append((what, work.name, details))
        if what == "ended" and details["status"] == "failed":
            self.ledger.record_failure(work, details, study="s", git_commit=None)
        if what == "event" and self.on_event:
            self.on_event(work, details)

    def started(self) -> list[str]:
        return [name for what, name, _ in self.lines if what == "started"]

    def ends(self) -> dict[str, str]:
        """Name → status, with the reason of what failed."""
        return {
            name: details["status"] + (f": {details['reason']}" if "reason" in details else "")
            for what, name, details in self.lines
            if what == "ended"
        }


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "results"), "s")


# ------------------------------------------------------------------ the searcher


class Hands:
    """A searcher, and what it was told."""

    def __init__(self, ledger: Ledger, *works: Work, complete: tuple[Work, ...] = (), max_retries: int = 1) -> None:
        self.ledger, self.diary = ledger, Diary(ledger)
        self.open = OpenWork(works, complete=[work.signature for work in complete], num_slots=1)
        self.searcher = Handing(
            self.open,
            ledger=ledger,
            chunk={"execution": EXECUTION, "max_retries": max_retries},
            describe=describe,
            listen=self.diary.listen,
            read_error=lambda trial_id: f"what Tune knows of {trial_id}",
        )
        self.number = 0

    def next(self) -> Any:
        """Return the names in the next chunk, None or FINISHED."""
        self.number += 1
        config = self.searcher.suggest(str(self.number))
        if not isinstance(config, dict):
            return config
        return [work["record"]["name"] for work in unpack(config["chunk"])["works"]]

    def tell(self, number: int, *events: tuple[Work, dict[str, Any]], last: bool = False) -> None:
        """Let the slot of the ``number``-th chunk report; a complete work leaves a result, unless it says otherwise."""
        for work, event in events:
            if event.get("status") == "complete" and event.get("writes", True):
                self.ledger.folder(work.kind, work.signature).write_json("result.json", {})
        told = [{"signature": work.signature, "host": "here", **event} for work, event in events]
        if last:
            self.searcher.on_trial_complete(str(number), {"events": json.dumps(told)})
        else:
            self.searcher.on_trial_result(str(number), {"events": json.dumps(told)})


def describe(work: Work) -> dict[str, Any]:
    return describe_work(work, study="s", git_commit=None)


BEGUN = {"event": "begun"}
DONE = {"event": "done", "status": "complete", "seconds": 0.1}
BAD = {"event": "done", "status": "failed", "reason": "error", "message": "m"}


def test_a_request_names_the_folders_of_the_trial_and_of_its_stage(ledger: Ledger) -> None:
    stage, trial = make_stage("stage"), make_trial("trial", make_stage("stage"))
    config = Hands(ledger, trial, complete=(stage,)).searcher.suggest("1")
    assert config["signature"] == trial.signature
    (work,) = unpack(config["chunk"])["works"]
    assert work["folder"] == ledger.folder("trial", trial.signature).uri
    assert work["encoder"] == ledger.folder("stage", stage.signature).uri
    assert work["record"]["config"] == trial.config.model_dump(mode="json")
    assert unpack(Hands(ledger, stage).searcher.suggest("1")["chunk"])["works"][0]["encoder"] is None


def test_a_chunk_is_told_work_by_work(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    hands = Hands(ledger, *works)
    assert hands.next() == ["0", "1", "2", "3"]
    hands.tell(1, (works[0], BEGUN), (works[0], {"event": "epoch", "epoch": 3}))
    hands.tell(1, (works[0], DONE), (works[1], BEGUN))
    hands.tell(1, (works[1], BAD), (works[2], BEGUN), (works[2], DONE), (works[3], {"event": "returned"}), last=True)
    assert hands.diary.started() == ["0", "1", "2"]
    assert hands.diary.ends() == {"0": "complete", "1": "failed: error", "2": "complete"}
    assert [details["epoch"] for what, _, details in hands.diary.lines if what == "event"] == [3]
    assert hands.next() == ["3", "4", "5"]


def test_nothing_ready_is_none_and_nothing_left_is_finished(ledger: Ledger) -> None:
    stage = make_stage("stage")
    trial = make_trial("trial", stage)
    hands = Hands(ledger, stage, trial)
    assert [hands.next(), hands.next()] == [["stage"], None]
    hands.tell(1, (stage, DONE), last=True)
    assert [hands.next(), hands.next()] == [["trial"], None]
    hands.tell(3, (trial, DONE), last=True)
    assert hands.next() == Searcher.FINISHED


def test_a_failed_stage_fails_its_dependants_and_no_one_else(ledger: Ledger) -> None:
    bad, good = make_stage("bad"), make_stage("good")
    lost, kept = make_trial("lost", bad), make_trial("kept", good)
    hands = Hands(ledger, bad, good, lost, kept)
    hands.next(), hands.next()
    hands.tell(1, (bad, BAD), last=True)
    hands.tell(2, (good, DONE), last=True)
    assert hands.next() == ["kept"]
    assert hands.diary.ends() == {"bad": "failed: error", "lost": "failed: upstream", "good": "complete"}
    failure = ledger.read("trial", lost.signature).failure
    assert failure is not None
    assert bad.signature in failure["message"]


def test_dependants_of_a_stopped_stage_are_neither_failed_nor_waited_for(ledger: Ledger) -> None:
    stage = make_stage("stage")
    hands = Hands(ledger, stage, make_trial("trial", stage))
    hands.next()
    hands.tell(1, (stage, BEGUN), last=True)
    assert hands.next() == Searcher.FINISHED
    assert hands.diary.ends() == {"stage": "interrupted"}


def test_a_result_that_is_not_where_the_driver_reads_is_a_failure(ledger: Ledger) -> None:
    first, second = make_trial("first"), make_trial("second")
    hands = Hands(ledger, first, second)
    hands.next()
    hands.tell(1, (first, {**DONE, "writes": False}), last=True)
    assert hands.diary.ends() == {"first": "failed: error"}
    assert "shared by all machines" in ledger.read("trial", first.signature).failure["message"]  # type: ignore[index]


def test_a_lost_actor_costs_the_running_work_a_try_and_the_others_nothing(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    hands = Hands(ledger, *works)
    assert hands.next() == ["0", "1", "2", "3"]
    hands.tell(1, (works[0], BEGUN), (works[0], DONE), (works[1], BEGUN))
    hands.searcher.on_trial_recover("1")
    hands.tell(1, (works[0], DONE), (works[1], BEGUN))  # told again by the new actor
    ledger.folder("trial", works[2].signature).write_json("result.json", {})  # done, and never told
    hands.searcher.on_trial_complete("1", None, error=True)
    assert hands.diary.ends() == {"0": "complete", "1": "failed: crashed", "2": "complete"}
    assert ledger.read("trial", works[1].signature).failure["traceback"] == "what Tune knows of 1"  # type: ignore[index]
    assert hands.next() == ["3", "4", "5"]


def test_a_work_that_happened_to_run_when_others_had_lost_the_actor_is_not_blamed(ledger: Ledger) -> None:
    first, second = make_trial("first"), make_trial("second")
    hands = Hands(ledger, first, second)
    assert hands.next() == ["first"]
    hands.searcher.on_trial_complete("1", None, error=True)  # its first loss, of one that is forgiven
    assert hands.diary.ends() == {}
    assert hands.next() == ["first"]
    hands.searcher.on_trial_complete("2", None, error=True)
    assert hands.diary.ends() == {"first": "failed: crashed"}


def test_stopping_interrupts_what_runs_and_what_waits_in_its_chunk(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    hands = Hands(ledger, *works)
    hands.next()
    hands.tell(1, (works[0], BEGUN), (works[0], DONE), (works[1], BEGUN), last=True)
    assert hands.diary.started() == ["0", "1"]
    assert hands.diary.ends() == {"0": "complete", "1": "interrupted", "2": "interrupted", "3": "interrupted"}
    assert ledger.states() == {works[0].signature: "complete"}


def test_what_is_said_of_others_is_ignored(ledger: Ledger) -> None:
    trial, other = make_trial("trial"), make_trial("other")
    hands = Hands(ledger, trial)
    hands.next()
    hands.tell(1, (other, DONE))
    hands.tell(7, (trial, DONE))
    hands.searcher.on_trial_result("1", {})
    assert hands.diary.lines == []


# ------------------------------------------------------------------ resources


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "most", "expected"),
    [
        ({"CPU": 8.0}, 1.0, 0.0, None, 8),
        ({"CPU": 8.0}, 3.0, 0.0, None, 2),
        ({"CPU": 8.0, "GPU": 1.0}, 1.0, 0.25, None, 4),
        ({"CPU": 8.0, "GPU": 3.0}, 0.1, 0.1, None, 30),
        ({"CPU": 8.0}, 1.0, 0.0, 3, 3),
        ({}, 1.0, 1.0, None, 1),  # an autoscaling cluster that is empty yet
    ],
)
def test_slots_are_what_fits(
    resources: dict[str, float], cpus: float, gpus: float, most: int | None, expected: int
) -> None:
    assert num_slots(resources, Slots(cpus, gpus, most, 0, 1.0)) == expected


def test_a_trial_larger_than_the_machine_is_refused() -> None:
    check_fits({"CPU": 2.0}, Slots(2.0, 0.0, None, 0, 1.0))
    with pytest.raises(StudyError, match=r"gpus_per_trial: a trial asks for 1, and this machine has 0"):
        check_fits({"CPU": 2.0}, Slots(1.0, 1.0, None, 0, 1.0))
    with pytest.raises(StudyError, match=r"cpus_per_trial: a trial asks for 2.5, and this machine has 2"):
        check_fits({"CPU": 2.0}, Slots(2.5, 0.0, None, 0, 1.0))


# ------------------------------------------------------------------ a real Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # actors import acting_slot
        resources = scheduling.connect(None)
        yield resources
        scheduling.disconnect()


@pytest.fixture
def run_all(ray: dict[str, float], ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Diary]:
    monkeypatch.setattr(scheduling, "Slot", acting_slot.ActingSlot)

    def run_all(*works: Work, diary: Diary | None = None, stop: threading.Event | None = None, **slots: Any) -> Diary:
        chosen: dict[str, Any] = {"max_concurrent": 2, "max_retries": 2, "stall_seconds": 600.0, **slots}
        diary = diary or Diary(ledger)
        execute(
            works,
            complete=(),
            ledger=ledger,
            job=Job(EXECUTION, uuid.uuid4().hex[:8], (), describe),
            slots=Slots(cpus=0.5, gpus=0.0, **chosen),
            listen=diary.listen,
            stop=stop or threading.Event(),
        )
        return diary

    return run_all


def results_of(ledger: Ledger, *works: Work) -> list[dict[str, Any]]:
    results = [ledger.read(work.kind, work.signature).result for work in works]
    return [result for result in results if result is not None]


def test_a_study_with_every_kind_of_trouble(
    run_all: Callable[..., Diary], ledger: Ledger, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = make_stage("good stage"), make_stage("fail stage")
    works = [good, bad]
    works += [make_trial(f"finish {number}", good) for number in range(3)] + [make_trial("finish without", bad)]
    works += [make_trial(act) for act in ("fail", "diverge", "dies_once", "dies", "loses_result", "chatter")]
    diary = run_all(*works)
    assert diary.ends() == {
        "good stage": "complete",
        "fail stage": "failed: error",
        "finish without": "failed: upstream",
        **{f"finish {number}": "complete" for number in range(3)},
        "fail": "failed: error",
        "diverge": "failed: diverged",
        "dies_once": "complete",
        "dies": "failed: crashed",
        "loses_result": "failed: error",
        "chatter": "complete",
    }
    started = diary.started()
    assert started.index("good stage") < min(started.index(f"finish {number}") for number in range(3))
    assert "finish without" not in started
    assert len(started) == len(set(started)) == len(works) - 1
    records = {record.config["name"]: record for kind in ("stage", "trial") for record in ledger.records(kind)}
    assert records["dies_once"].failure is None
    assert len(ledger.folder("trial", records["dies_once"].signature).read_lines("attempts.jsonl")) == 1
    failure = records["dies"].failure
    assert failure is not None
    assert failure["attempts"] == 3
    assert "SIGKILL" in failure["message"]
    assert results_of(ledger, works[2])[0]["encoder"] == "good"
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_one_slot_serves_all_trials_with_a_fresh_process_each(run_all: Callable[..., Diary], ledger: Ledger) -> None:
    works = [make_trial(f"finish {number}") for number in range(5)]
    run_all(*works, max_concurrent=1)
    results = results_of(ledger, *works)
    assert len(results) == 5
    assert len({result["zygote"] for result in results}) == 1
    assert len({result["pid"] for result in results}) == 5


def test_a_hanging_trial_is_tried_again(run_all: Callable[..., Diary], ledger: Ledger) -> None:
    work = make_trial("hangs_once")
    assert run_all(work, stall_seconds=4.0).ends() == {"hangs_once": "complete"}
    notes = ledger.folder("trial", work.signature).read_lines("attempts.jsonl")
    assert notes
    assert all("no sign of life" in note["message"] for note in notes)


def test_a_lost_actor_leaves_what_ray_knows_of_it(run_all: Callable[..., Diary], ledger: Ledger) -> None:
    work = make_trial("ends_actor")
    assert run_all(work, max_retries=0).ends() == {"ends_actor": "failed: crashed"}
    failure = ledger.read("trial", work.signature).failure
    assert failure is not None
    assert "machine or Ray actor ended" in failure["message"]
    assert "actor died" in failure["traceback"]
    assert failure["attempts"] == 1


def test_stopping_ends_running_trials_and_hands_out_nothing_more(run_all: Callable[..., Diary], ledger: Ledger) -> None:
    works = [make_trial("hang"), *(make_trial(f"finish {number}") for number in range(2))]
    stop, pids = threading.Event(), []

    def stop_when_it_hangs(work: Work, event: dict[str, Any]) -> None:
        if work.name == "hang":
            pids.append(event["pid"])
            stop.set()

    diary = run_all(*works, diary=Diary(ledger, stop_when_it_hangs), stop=stop, max_concurrent=1)
    assert diary.started() == ["hang"]
    assert ledger.states()[works[0].signature] == "interrupted"
    wait_until(lambda: not is_running(pids[0]), "its process is gone")


def test_a_cluster_that_does_not_answer_is_an_infrastructure_error() -> None:
    with pytest.raises(InfrastructureError, match=r"could not join the Ray cluster at 127.0.0.1:9"):
        scheduling.connect("127.0.0.1:9")
