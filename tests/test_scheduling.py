"""What is handed out and when: by the searcher alone, by a slot alone, and by a real Ray with acted trials."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import acting_slot
import acting_zygote
import pytest
from planning import make_stage, make_trial
from processes import is_running, wait_until

from orchestrator import scheduling
from orchestrator.ledger import Ledger
from orchestrator.plan import Work
from orchestrator.scheduling import OpenWork, Searcher, Slot, Slots, check_fits, execute, num_slots
from orchestrator.worker import WorkerLostError
from trainables.errors import InfrastructureError, StudyError

EXECUTION = {"num_threads": 1, "device": "cpu"}


class Diary:
    """A listener that remembers, and keeps the ledger as ``run`` does."""

    def __init__(self, ledger: Ledger, on_event: Callable[[Work, dict[str, Any]], None] | None = None) -> None:
        self.ledger, self.on_event = ledger, on_event
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def listen(self, what: str, work: Work, details: dict[str, Any]) -> None:
        self.lines.append((what, work.name, details))
        if what == "started":
            self.ledger.begin(work, study="s", git_commit=None)
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


class Handing:
    """An ``OpenWork`` and what it was told."""

    def __init__(self, ledger: Ledger, *works: Work, complete: tuple[Work, ...] = ()) -> None:
        self.ledger, self.diary = ledger, Diary(ledger)
        signatures = [work.signature for work in complete]
        self.searcher = OpenWork(
            works, complete=signatures, ledger=ledger, execution=EXECUTION, listen=self.diary.listen
        )
        self.number = 0

    def next(self) -> Any:
        """Return the signature of the next work, None or FINISHED."""
        self.number += 1
        request = self.searcher.suggest(str(self.number))
        return request["signature"] if isinstance(request, dict) else request

    def end(self, number: int, work: Work, status: str | None = "complete", *, error: bool = False) -> None:
        if status == "complete":
            self.ledger.folder(work.kind, work.signature).write_json("result.json", {})
        event = {"event": "done", "status": status, **({"reason": "error"} if status == "failed" else {})}
        self.searcher.on_trial_complete(str(number), None if error else {"event": json.dumps(event)}, error)


def test_work_is_handed_out_in_order_and_dependants_wait(ledger: Ledger) -> None:
    stage, alone = make_stage("stage"), make_trial("alone")
    first, second = make_trial("first", stage), make_trial("second", stage)
    handing = Handing(ledger, stage, first, alone, second)
    assert handing.next() == stage.signature
    assert handing.next() == alone.signature
    assert handing.next() is None
    handing.end(2, alone)
    assert handing.next() is None
    handing.end(1, stage)
    assert handing.next() == first.signature
    assert handing.next() == second.signature
    assert handing.next() == Searcher.FINISHED
    assert handing.diary.started() == ["stage", "alone", "first", "second"]


def test_a_request_names_the_folders_of_the_trial_and_of_its_stage(ledger: Ledger) -> None:
    stage, trial = make_stage("stage"), make_trial("trial", make_stage("stage"))
    handing = Handing(ledger, trial, complete=(stage,))
    request = handing.searcher.suggest("1")
    assert request["folder"] == ledger.folder("trial", trial.signature).uri
    assert request["encoder"] == ledger.folder("stage", stage.signature).uri
    assert request["execution"] == EXECUTION
    assert Handing(ledger, stage).searcher.suggest("1")["encoder"] is None


def test_a_failed_stage_fails_its_dependants_and_no_one_else(ledger: Ledger) -> None:
    bad, good = make_stage("bad"), make_stage("good")
    lost, kept = make_trial("lost", bad), make_trial("kept", good)
    handing = Handing(ledger, bad, good, lost, kept)
    handing.next(), handing.next()
    handing.end(1, bad, "failed")
    assert handing.next() is None
    handing.end(2, good)
    assert handing.next() == kept.signature
    assert handing.next() == Searcher.FINISHED
    assert handing.diary.ends() == {"bad": "failed: error", "lost": "failed: upstream", "good": "complete"}
    failure = ledger.read("trial", lost.signature).failure
    assert failure is not None
    assert bad.signature in failure["message"]


def test_dependants_of_a_stopped_stage_are_neither_failed_nor_waited_for(ledger: Ledger) -> None:
    stage = make_stage("stage")
    handing = Handing(ledger, stage, make_trial("trial", stage))
    handing.next()
    handing.end(1, stage, None)
    assert handing.next() == Searcher.FINISHED
    assert handing.diary.ends() == {"stage": "interrupted"}


@pytest.mark.parametrize(
    ("writes_result", "status", "error", "expected"),
    [
        (True, "complete", False, "complete"),
        (True, None, True, "complete"),  # the actor died after the last file was written
        (False, "failed", False, "failed: error"),
        (False, None, True, "failed: crashed"),
        (False, None, False, "interrupted"),
        (False, "nothing was written", False, "failed: error"),
    ],
)
def test_the_ledger_decides_how_a_work_ended(
    ledger: Ledger, writes_result: bool, status: str | None, error: bool, expected: str
) -> None:
    trial = make_trial("trial")
    handing = Handing(ledger, trial)
    handing.next()
    if writes_result:
        ledger.folder("trial", trial.signature).write_json("result.json", {})
    if status == "nothing was written":
        event = json.dumps({"event": "done", "status": "complete"})
        handing.searcher.on_trial_complete("1", {"event": event})
        assert "shared by all machines" in ledger.read("trial", trial.signature).failure["message"]  # type: ignore[index]
    else:
        handing.end(1, trial, status, error=error)
    assert handing.diary.ends()["trial"] == expected


def test_progress_is_passed_on_and_signs_of_life_are_not(ledger: Ledger) -> None:
    handing = Handing(ledger, make_trial("trial"))
    handing.next()
    handing.searcher.on_trial_result("1", {"event": json.dumps({"event": "epoch", "epoch": 3}), "done": False})
    handing.searcher.on_trial_result("1", {"event": None, "done": False})
    handing.searcher.on_trial_result("unknown", {"event": "{}", "done": False})
    assert handing.diary.lines[1:] == [("event", "trial", {"event": "epoch", "epoch": 3})]


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


# ------------------------------------------------------------------ a slot


def acted(folder: Path, act: str, stall_seconds: float = 600.0) -> dict[str, Any]:
    execution = {**EXECUTION, "stall_seconds": stall_seconds}
    return {"folder": str(folder), "encoder": None, "execution": execution, "act": act}


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Slot]]:
    """Make a slot in this process, without Ray."""
    made: list[Slot] = []
    monkeypatch.setattr(scheduling, "REPORT_SECONDS", 0.2)
    monkeypatch.setattr(scheduling, "ALIVE_SECONDS", 0.4)

    def make(request: dict[str, Any]) -> Slot:
        slot = Slot.__new__(Slot)  # Tune's constructor asks for a running Ray
        slot.command = acting_zygote.COMMAND
        slot.setup(request)
        made.append(slot)
        return slot

    yield make
    for each in made:
        each.cleanup()


def steps(slot: Slot) -> Iterator[dict[str, Any]]:
    while True:
        result = slot.step()
        yield result
        if result["done"]:
            return


def test_a_slot_reports_the_newest_event_and_the_end(slot: Callable[..., Slot], tmp_path: Path) -> None:
    results = list(steps(slot(acted(tmp_path, "shout"))))
    assert len(results) < 50  # of 200 events
    last = json.loads(results[-1]["event"])
    assert (last["event"], last["status"]) == ("done", "failed")


def test_a_slot_is_used_again(slot: Callable[..., Slot], tmp_path: Path) -> None:
    one = slot(acted(tmp_path, "describe"))
    list(steps(one))
    assert one.reset_config(acted(tmp_path, "fail")) is True
    assert json.loads(list(steps(one))[-1]["event"])["status"] == "failed"


def test_a_silent_trial_still_lets_its_slot_answer(slot: Callable[..., Slot], tmp_path: Path) -> None:
    one = slot(acted(tmp_path, "hang"))
    results = [one.step() for _ in range(12)]
    assert {"event": None, "done": False} in results


def test_a_hanging_trial_is_killed_and_noted(slot: Callable[..., Slot], tmp_path: Path) -> None:
    one = slot(acted(tmp_path, "hang", stall_seconds=1.5))
    pid = json.loads(next(result["event"] for result in steps(one) if result["event"]))["pid"]
    with pytest.raises(WorkerLostError, match=r"no sign of life for .*stall_minutes"):
        list(steps(one))
    wait_until(lambda: not is_running(pid), "the process is gone")
    (note,) = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    assert "no sign of life" in note["message"]
    assert note["host"]


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
            execution=EXECUTION,
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
    assert started[:2] == ["good stage", "fail stage"]
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
    assert run_all(work, stall_seconds=3.0).ends() == {"hangs_once": "complete"}
    (note,) = ledger.folder("trial", work.signature).read_lines("attempts.jsonl")
    assert "no sign of life" in note["message"]


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
