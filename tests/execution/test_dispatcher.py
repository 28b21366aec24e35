"""Who gets which work and what becomes of it, without any process."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import SHORT_SECONDS, Dispatcher
from orchestrator.execution.meter import Meter
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial, plan_of
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE
from trainables.storage.claims import take_claim


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "results"), "s")


class Slots:
    """Slots at a dispatcher, and what it was told."""

    def __init__(
        self,
        ledger: Ledger,
        *works: Work,
        complete: tuple[Work, ...] = (),
        max_retries: int = 1,
        execution: dict[str, Any] = EXECUTION,
    ) -> None:
        self.ledger, self.handler = ledger, RecordingHandler(ledger)
        todo = WorkQueue(works, complete=[work.signature for work in complete], num_slots=1)
        settings = ChunkSettings(execution, "token", MODULE, (), max_retries, 600.0, describe)
        self.dispatcher = Dispatcher(todo, ledger=ledger, settings=settings, on_event=self.handler.handle)
        self.number = 0

    def next(self) -> list[str] | None:
        """Return the names in the next chunk."""
        self.number += 1
        return names(self.dispatcher.next_chunk(str(self.number)))

    def tell(self, number: int, *events: tuple[Work, dict[str, Any]], last: bool = False) -> None:
        """Let the slot of the ``number``-th chunk report; a complete work leaves a result, unless it says otherwise."""
        for work, event in events:
            if event.get("status") == "complete" and event.get("writes", True):
                self.ledger.folder(work.kind, work.signature).write_json("result.json", {})
        about = {"host": "here", "busy_seconds": 0.0}
        self.dispatcher.report_events(
            str(number), [{"signature": work.signature, **about, **event} for work, event in events]
        )
        if last:
            self.dispatcher.release(str(number))

    def lose(self, number: int) -> None:
        """Let the slot of the ``number``-th chunk be lost for good."""
        details = {"reason": "crashed", "message": "lost", "traceback": f"what Tune knows of {number}"}
        self.dispatcher.release(str(number), error=lambda: details)


def names(chunk: dict[str, Any] | None) -> list[str] | None:
    return None if chunk is None else [work["record"]["name"] for work in chunk["works"]]


BEGUN = {"event": "begun", "busy_seconds": 0.0}
DONE = {"event": "done", "busy_seconds": 0.0, "status": "complete", "seconds": 0.1}
BAD = {"event": "done", "busy_seconds": 0.0, "status": "failed", "reason": "error", "message": "m"}


def test_a_request_names_the_folders_of_the_trial_and_of_its_stage(ledger: Ledger) -> None:
    stage, trial = make_stage("stage"), make_trial("trial", make_stage("stage"))
    chunk = Slots(ledger, trial, complete=(stage,)).dispatcher.next_chunk("1")
    assert chunk is not None
    (work,) = chunk["works"]
    assert work["record"]["signature"] == trial.signature
    assert work["folder"] == ledger.folder("trial", trial.signature).uri
    assert work["encoder"] == ledger.folder("stage", stage.signature).uri
    assert work["record"]["config"] == trial.config.model_dump(mode="json")
    chunk = Slots(ledger, stage).dispatcher.next_chunk("1")
    assert chunk is not None
    assert chunk["works"][0]["encoder"] is None


def numbers(chunk: dict[str, Any] | None) -> list[int]:
    assert chunk is not None
    return [work["number"] for work in chunk["works"]]


def test_every_time_a_trial_is_handed_out_its_attempt_has_a_higher_number(ledger: Ledger) -> None:
    first, second = make_trial("first"), make_trial("second")
    take_claim(ledger.claims(first.signature), 3)  # by a driver that was killed
    slots = Slots(ledger, first, second)
    assert numbers(slots.dispatcher.next_chunk("1")) == [4]
    assert slots.dispatcher.record_loss("1") == {first.signature: 5}  # for the next actor; the lost one may be alive
    slots.dispatcher.release("1")
    assert numbers(slots.dispatcher.next_chunk("2")) == [1]


def test_a_trial_that_somebody_else_has_taken_over_has_not_failed(ledger: Ledger) -> None:
    first, second = make_trial("first"), make_trial("second")
    slots = Slots(ledger, first, second)
    refused = {**BAD, "reason": "superseded"}
    assert slots.next() == ["first"]
    slots.tell(1, (first, BEGUN), (first, refused), last=True)
    assert slots.next() == ["second"]
    ledger.folder("trial", second.signature).write_json("result.json", {})  # by the other
    slots.tell(2, (second, BEGUN), (second, refused), last=True)
    assert slots.handler.ends() == {"first": "interrupted: superseded", "second": "complete"}


def test_a_chunk_is_told_work_by_work(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    slots = Slots(ledger, *works)
    assert slots.next() == ["0", "1", "2", "3"]
    slots.tell(1, (works[0], BEGUN), (works[0], {"event": "epoch", "epoch": 3}))
    slots.tell(1, (works[0], DONE), (works[1], BEGUN))
    slots.tell(1, (works[1], BAD), (works[2], BEGUN), (works[2], DONE), (works[3], {"event": "returned"}), last=True)
    assert slots.handler.started() == ["0", "1", "2"]
    assert slots.handler.ends() == {"0": "complete", "1": "failed: error", "2": "complete"}
    assert [details["epoch"] for what, _, details in slots.handler.lines if what == "event"] == [3]
    assert slots.next() == ["3", "4", "5"]


def test_nothing_is_ready_while_a_stage_runs_and_in_the_end_nothing_is_left(ledger: Ledger) -> None:
    stage = make_stage("stage")
    trial = make_trial("trial", stage)
    slots = Slots(ledger, stage, trial)
    assert [slots.next(), slots.next()] == [["stage"], None]
    slots.tell(1, (stage, DONE), last=True)
    assert [slots.next(), slots.next()] == [["trial"], None]
    assert not slots.dispatcher.is_finished
    slots.tell(3, (trial, DONE), last=True)
    assert slots.next() is None
    assert slots.dispatcher.is_finished


def test_a_failed_step_fails_all_that_is_built_on_it(ledger: Ledger) -> None:
    plan = plan_of("pretraining: [{kind: contrastive, epochs: 2}, {kind: contrastive, epochs: 3}]")
    (first, second), (trial,) = plan.stages, plan.trials
    slots = Slots(ledger, *plan.works)
    assert [slots.next(), slots.next()] == [[first.name], None]
    slots.tell(1, (first, BAD), last=True)
    upstream = "failed: upstream"
    assert slots.handler.ends() == {first.name: "failed: error", second.name: upstream, trial.name: upstream}
    assert slots.dispatcher.is_finished
    slots = Slots(ledger, second, trial, complete=(first,))
    chunk = slots.dispatcher.next_chunk("1")
    assert chunk is not None
    assert chunk["works"][0]["encoder"] == ledger.folder("stage", first.signature).uri


def test_a_failed_stage_fails_its_dependants_and_no_one_else(ledger: Ledger) -> None:
    bad, good = make_stage("bad"), make_stage("good")
    lost, kept = make_trial("lost", bad), make_trial("kept", good)
    slots = Slots(ledger, bad, good, lost, kept)
    slots.next(), slots.next()
    slots.tell(1, (bad, BAD), last=True)
    slots.tell(2, (good, DONE), last=True)
    assert slots.next() == ["kept"]
    assert slots.handler.ends() == {"bad": "failed: error", "lost": "failed: upstream", "good": "complete"}
    failure = ledger.read("trial", lost.signature).failure
    assert failure is not None
    assert bad.signature in failure["message"]


def test_a_full_disk_fails_nobody(ledger: Ledger) -> None:
    stage = make_stage("stage")
    trial = make_trial("trial", stage)
    slots = Slots(ledger, stage, trial)
    slots.next()
    slots.tell(1, (stage, {**BAD, "reason": "disk full"}), last=True)
    assert slots.handler.ends() == {"stage": "interrupted: disk full"}
    assert ledger.states() == {}
    assert slots.dispatcher.is_finished


def test_dependants_of_a_stopped_stage_are_neither_failed_nor_waited_for(ledger: Ledger) -> None:
    stage = make_stage("stage")
    slots = Slots(ledger, stage, make_trial("trial", stage))
    slots.next()
    slots.tell(1, (stage, BEGUN), last=True)
    assert slots.next() is None
    assert slots.dispatcher.is_finished
    assert slots.handler.ends() == {"stage": "interrupted"}


def test_a_result_that_is_not_where_the_driver_reads_is_a_failure(ledger: Ledger) -> None:
    first, second = make_trial("first"), make_trial("second")
    slots = Slots(ledger, first, second)
    slots.next()
    slots.tell(1, (first, {**DONE, "writes": False}), last=True)
    assert slots.handler.ends() == {"first": "failed: error"}
    assert "shared by all machines" in ledger.read("trial", first.signature).failure["message"]  # type: ignore[index]


def test_a_lost_actor_costs_the_running_work_a_try_and_the_others_nothing(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    slots = Slots(ledger, *works)
    assert slots.next() == ["0", "1", "2", "3"]
    slots.tell(1, (works[0], BEGUN), (works[0], DONE), (works[1], BEGUN))
    slots.dispatcher.record_loss("1")
    slots.tell(1, (works[0], DONE), (works[1], BEGUN))  # told again by the new actor
    ledger.folder("trial", works[2].signature).write_json("result.json", {})  # done, and never told
    slots.lose(1)
    assert slots.handler.ends() == {"0": "complete", "1": "failed: crashed", "2": "complete"}
    assert ledger.read("trial", works[1].signature).failure["traceback"] == "what Tune knows of 1"  # type: ignore[index]
    assert slots.next() == ["3", "4", "5"]


def test_a_work_that_happened_to_run_when_others_had_lost_the_actor_is_not_blamed(ledger: Ledger) -> None:
    first, second = make_trial("first"), make_trial("second")
    slots = Slots(ledger, first, second)
    assert slots.next() == ["first"]
    slots.lose(1)  # its first loss, of one that is forgiven
    assert slots.handler.ends() == {}
    assert slots.next() == ["first"]
    slots.lose(2)
    assert slots.handler.ends() == {"first": "failed: crashed"}


def test_stopping_interrupts_what_runs_and_what_waits_in_its_chunk(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    slots = Slots(ledger, *works)
    slots.next()
    slots.tell(1, (works[0], BEGUN), (works[0], DONE), (works[1], BEGUN), last=True)
    assert slots.handler.started() == ["0", "1"]
    assert slots.handler.ends() == {"0": "complete", "1": "interrupted"}  # of the others there is nothing to be told
    assert ledger.states() == {works[0].signature: "complete"}


def test_what_is_said_of_others_is_ignored(ledger: Ledger) -> None:
    trial, other = make_trial("trial"), make_trial("other")
    slots = Slots(ledger, trial)
    slots.next()
    slots.tell(1, (other, DONE))
    slots.tell(7, (trial, DONE))
    assert slots.handler.lines == []


# ------------------------------------------------------------------ the driver's own slots


def make_dispatcher(ledger: Ledger, *works: Work, num_slots: int = 2) -> Dispatcher:
    dispatcher = Slots(ledger, *works).dispatcher
    dispatcher.set_num_slots(num_slots)
    return dispatcher


def end(dispatcher: Dispatcher, ledger: Ledger, work: Work, *, slot: str | int, seconds: float) -> None:
    """Let a slot tell that it has done a work."""
    ledger.folder(work.kind, work.signature).write_json("result.json", {})
    events = [{"signature": work.signature, "host": "here", **DONE, "seconds": seconds}]
    dispatcher.report_local(slot, events) if isinstance(slot, int) else dispatcher.report_events(slot, events)


def test_own_slots_work_until_others_come(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    dispatcher = make_dispatcher(ledger, *works)
    assert names(dispatcher.next_local_chunk(0)) == ["0", "1"]
    assert names(dispatcher.next_local_chunk(1)) == ["2", "3"]
    for work in works[:2]:
        end(dispatcher, ledger, work, slot=0, seconds=1.0)
    assert names(dispatcher.next_local_chunk(0)) == ["4"]
    assert dispatcher.seconds_left == pytest.approx(6 * 1.0 / 2)


def test_what_is_long_is_waited_for(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    dispatcher = make_dispatcher(ledger, *works)
    dispatcher.next_local_chunk(0), dispatcher.next_local_chunk(1)
    dispatcher.expect_tune_slots()
    assert dispatcher.next_chunk("tune") is None  # how long own slots will be busy is not known
    assert not dispatcher.may_continue(0)
    end(dispatcher, ledger, works[0], slot=0, seconds=2 * SHORT_SECONDS)
    assert dispatcher.next_chunk("tune") is None
    dispatcher.report_local(0, [{"signature": works[1].signature, "event": "returned", "busy_seconds": 0.0}])
    dispatcher.release_local(0)
    assert names(dispatcher.next_chunk("tune")) == ["1", "4"]
    assert dispatcher.next_chunk("another") is None  # the other own slot is still at it


def test_what_is_short_goes_on_until_its_successor_is_at_work(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(16)]
    dispatcher = make_dispatcher(ledger, *works)
    assert names(dispatcher.next_local_chunk(0)) == ["0", "1", "2", "3"]
    assert names(dispatcher.next_local_chunk(1)) == ["4", "5", "6"]
    dispatcher.report_local(1, [{"signature": works[4].signature, **BEGUN}])
    end(dispatcher, ledger, works[0], slot=0, seconds=1.0)
    dispatcher.expect_tune_slots()
    assert names(dispatcher.next_chunk("tune")) == ["7", "8", "9"]
    assert dispatcher.may_continue(0)
    assert dispatcher.may_continue(1)
    dispatcher.report_events("tune", [{"signature": works[7].signature, **BEGUN}])
    assert not dispatcher.may_continue(0)
    dispatcher.release_local(0)
    assert dispatcher.may_continue(1)  # two of two are at work


def test_a_limit_on_concurrent_trials_is_kept_also_for_short_ones(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    dispatcher = make_dispatcher(ledger, *works, num_slots=1)
    assert len(names(dispatcher.next_local_chunk(0)) or ()) == 4
    end(dispatcher, ledger, works[0], slot=0, seconds=1.0)
    dispatcher.expect_tune_slots(may_overlap=False)
    assert dispatcher.next_chunk("tune") is None
    assert not dispatcher.may_continue(0)
    dispatcher.release_local(0)
    assert dispatcher.next_chunk("tune") is not None


def test_an_own_slot_that_is_stopped_leaves_its_works_interrupted(ledger: Ledger) -> None:
    works = [make_trial("0"), make_trial("1"), make_trial("2")]
    slots = Slots(ledger, *works)
    assert names(slots.dispatcher.next_local_chunk(0)) == ["0", "1"]
    slots.dispatcher.report_local(0, [{"signature": works[0].signature, **BEGUN}])
    slots.dispatcher.release_local(0)
    assert slots.handler.ends() == {"0": "interrupted"}
    assert names(slots.dispatcher.next_chunk("tune")) == ["2"]


def test_how_long_it_takes_is_not_known_before_a_trial_and_all_stages_are_done(ledger: Ledger) -> None:
    stage, trial = make_stage("stage"), make_trial("trial")
    dispatcher = make_dispatcher(ledger, trial, stage, make_trial("other"))
    assert dispatcher.seconds_left is None
    dispatcher.next_local_chunk(0), dispatcher.next_local_chunk(1)
    end(dispatcher, ledger, trial, slot=0, seconds=1.0)
    assert dispatcher.seconds_left is None
    end(dispatcher, ledger, stage, slot=1, seconds=60.0)
    assert dispatcher.seconds_left == pytest.approx(0.5)


def test_whoever_waits_is_woken_by_news(ledger: Ledger) -> None:
    trial = make_trial("0")
    dispatcher = make_dispatcher(ledger, trial)
    dispatcher.next_chunk("1")
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: (dispatcher.wait(60.0), woken.set()))
    waiter.start()
    while not woken.is_set():
        dispatcher.report_events("1", [{"signature": trial.signature, **BEGUN}])
    waiter.join()


def test_more_work_may_come_up_whenever_one_has_ended(ledger: Ledger) -> None:
    first, second, third = (make_trial(name) for name in ("first", "second", "third"))
    more = {first.signature: [second], second.signature: [third]}
    ended: list[str] = []

    def handle(what: str, work: Work, details: dict[str, Any]) -> None:
        ended.extend([work.signature] if what == "ended" else [])

    dispatcher = Dispatcher(
        WorkQueue([first], complete=(), num_slots=1),
        ledger=ledger,
        settings=ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe),
        on_event=handle,
        find_more=lambda: more.get(ended[-1], []),  # told before it is asked
    )
    for number, (work, event) in enumerate([(first, DONE), (second, BAD), (third, DONE)]):
        assert names(dispatcher.next_chunk(str(number))) == [work.name]
        ledger.folder("trial", work.signature).write_json("result.json", {})
        assert not dispatcher.is_finished
        dispatcher.report_events(str(number), [{"signature": work.signature, "host": "here", **event}])
    assert dispatcher.is_finished


def test_a_trial_that_was_stopped_early_has_ended(ledger: Ledger) -> None:
    works = [make_trial(str(number)) for number in range(4)]
    slots = Slots(ledger, *works, execution={**EXECUTION, "early_stopping": True})
    slots.next()
    slots.tell(1, (works[0], BEGUN), (works[0], {**DONE, "status": "stopped_early", "epoch": 2}), (works[1], BEGUN))
    folder = ledger.folder("trial", works[1].signature)
    folder.write_json("stop.json", {})  # it was told so, and its slot was lost before it could say that
    slots.lose(1)
    assert slots.handler.ends() == {"0": "stopped_early", "1": "stopped_early"}
    slots.next(), slots.next()
    slots.tell(2, (works[2], BEGUN), (works[2], DONE), last=True)
    slots.tell(3, (works[3], BEGUN), (works[3], DONE), last=True)
    assert slots.dispatcher.is_finished


def test_slots_and_stages_of_several_processes_take_turns(ledger: Ledger) -> None:
    """A chain: a stage in a slot, one in several processes, a trial; the GPUs of all processes are counted."""
    first, joint, meter = make_stage("first"), make_stage("joint"), Meter(clock=lambda: 0.0)
    trial, handler = make_trial("trial", joint), RecordingHandler(ledger)
    waiting = replace(joint, needs=(first.signature,))
    todo = WorkQueue([first, waiting, trial], complete=(), num_slots=1, is_joint=lambda work: work is waiting)
    settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
    dispatcher = Dispatcher(todo, ledger=ledger, settings=settings, on_event=handler.handle, meter=meter)
    dispatcher.set_gpus(0.5, joint=2.0)

    def end(stage: Work, report: Any, slot: Any) -> None:
        ledger.folder("stage", stage.signature).write_json("result.json", {})
        report(slot, [{"signature": stage.signature, "host": "here", **DONE, "busy_seconds": 60.0}])

    assert dispatcher.next_joint_chunk(0, "stage") is None
    assert names(dispatcher.next_chunk("1")) == ["first"]
    assert not dispatcher.waits_for_joint
    end(first, dispatcher.report_events, "1")
    assert dispatcher.waits_for_joint
    assert dispatcher.has_joint("stage")
    assert dispatcher.next_chunk("1") is None
    assert names(dispatcher.next_joint_chunk(0, "stage")) == ["joint"]
    assert dispatcher.has_joint("stage")
    assert not dispatcher.waits_for_joint  # it runs
    end(waiting, dispatcher.report_joint, 0)
    dispatcher.release_joint(0)
    assert not dispatcher.has_joint("stage")
    assert names(dispatcher.next_chunk("1")) == ["trial"]
    assert meter.read().gpu_seconds == 60.0 * (0.5 + 2.0)


def test_several_processes_train_a_trial_and_a_slot_evaluates_it(ledger: Ledger) -> None:
    trial, handler, meter = make_trial("trial"), RecordingHandler(ledger), Meter(clock=lambda: 0.0)
    settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
    todo = WorkQueue([trial], complete=(), num_slots=1, is_joint=lambda work: True)
    dispatcher = Dispatcher(todo, ledger=ledger, settings=settings, on_event=handler.handle, meter=meter)
    dispatcher.set_gpus(0.5, joint=4.0)
    event = {"signature": trial.signature, "host": "here", "busy_seconds": 60.0}
    assert dispatcher.next_chunk("1") is None
    assert dispatcher.waits_for_joint
    assert names(dispatcher.next_joint_chunk(0, "trial")) == ["trial"]
    dispatcher.report_joint(0, [event | {"event": "begun"}, event | {"event": "trained"}])
    dispatcher.release_joint(0)
    assert not dispatcher.has_joint("trial")
    again = dispatcher.next_chunk("1")
    assert again is not None
    assert again["works"][0]["number"] == 2
    ledger.folder("trial", trial.signature).write_json("result.json", {})
    dispatcher.report_events("1", [event | {"event": "begun"}, DONE | event])
    assert handler.ends() == {"trial": "complete"}
    assert dispatcher.is_finished
    assert meter.read().gpu_seconds == 60.0 * (4.0 + 0.5)


def test_what_had_no_gpu_memory_waits_until_nothing_else_is_left(ledger: Ledger) -> None:
    trials = [make_trial(name) for name in "abc"]
    slots, no_memory = Slots(ledger, *trials), {"event": "out of GPU memory", "gpus": 0.25, "message": "m"}
    slots.dispatcher.set_gpus(0.25)
    chunk = slots.dispatcher.next_chunk("1")
    assert chunk is not None
    assert chunk["gpus"] == 0.25
    slots.tell(1, (trials[0], BEGUN), (trials[0], no_memory), (trials[1], BEGUN))
    assert not slots.dispatcher.waits_for_share
    slots.tell(1, (trials[1], DONE), last=True)
    assert names(slots.dispatcher.next_chunk("2")) == ["c"]
    slots.tell(2, (trials[2], BEGUN), (trials[2], DONE), last=True)
    assert slots.dispatcher.waits_for_share
    assert not slots.dispatcher.is_finished
    assert slots.dispatcher.next_chunk("3") is None
    slots.dispatcher.set_gpus(0.5)
    assert slots.dispatcher.release_held() == 1
    again = slots.dispatcher.next_chunk("4")
    assert again is not None
    assert (again["gpus"], again["works"][0]["number"]) == (0.5, 2)
    slots.tell(4, (trials[0], BEGUN), (trials[0], DONE), last=True)
    assert slots.handler.ends() == {"a": "complete", "b": "complete", "c": "complete"}
    assert slots.handler.started() == ["a", "b", "c", "a"]
    assert slots.dispatcher.is_finished


def test_what_had_no_gpu_memory_is_not_waited_for_once_the_budget_is_spent(ledger: Ledger) -> None:
    trial, handler, meter = make_trial("trial"), RecordingHandler(ledger), Meter(limits={"wall_hours": 1.0})
    settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
    todo = WorkQueue([trial], complete=(), num_slots=1)
    dispatcher = Dispatcher(todo, ledger=ledger, settings=settings, on_event=handler.handle, meter=meter)
    dispatcher.next_chunk("1")
    todo.close([trial])
    event = {"signature": trial.signature, "busy_seconds": 0.0, "gpus": 0.5, "message": "m"}
    dispatcher.report_events("1", [event | {"event": "begun"}, event | {"event": "out of GPU memory"}])
    assert dispatcher.is_finished
    assert not dispatcher.waits_for_share
