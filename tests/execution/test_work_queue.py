from __future__ import annotations

import pytest

from orchestrator.execution.work_queue import CHUNK_SECONDS, MAX_CHUNK, WorkQueue
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial


def names(works: list[Work]) -> list[str]:
    return [work.name for work in works]


def trials(number: int) -> list[Work]:
    return [make_trial(str(each)) for each in range(number)]


def test_works_come_in_order_and_dependants_wait() -> None:
    stage, alone = make_stage("stage"), make_trial("alone")
    first, second = make_trial("first", stage), make_trial("second", stage)
    work = WorkQueue([stage, first, alone, second], complete=(), num_slots=2)
    assert names(work.next_chunk()) == ["stage"]
    assert names(work.next_chunk()) == ["alone"]
    assert work.next_chunk() == []
    work.complete(alone)
    assert work.next_chunk() == []
    work.complete(stage)
    assert names(work.next_chunk()) == ["first"]
    assert names(work.next_chunk()) == ["second"]
    assert work.next_chunk() == []
    assert not work.is_finished
    work.complete(first)
    work.complete(second)
    assert work.is_finished


def test_what_is_complete_already_is_not_waited_for() -> None:
    stage = make_stage("stage")
    work = WorkQueue([make_trial("trial", stage)], complete=[stage.signature], num_slots=1)
    assert names(work.next_chunk()) == ["trial"]


def test_a_dropped_stage_takes_its_dependants_along_and_no_one_else() -> None:
    bad, good = make_stage("bad"), make_stage("good")
    lost, kept = make_trial("lost", bad), make_trial("kept", good)
    work = WorkQueue([bad, good, lost, kept], complete=(), num_slots=1)
    assert names(work.next_chunk() + work.next_chunk()) == ["bad", "good"]
    assert names(work.drop(bad)) == ["lost"]
    assert work.get(lost.signature) is None
    work.complete(good)
    assert names(work.next_chunk()) == ["kept"]
    work.complete(kept)
    assert work.is_finished


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1.0, 21), (CHUNK_SECONDS / 4, 5), (CHUNK_SECONDS, 2), (3600.0, 1), (0.0, MAX_CHUNK)],
)
def test_no_more_is_handed_out_than_will_be_begun(seconds: float, expected: int) -> None:
    works = trials(400)
    work = WorkQueue(works, complete=(), num_slots=2)
    assert len(work.next_chunk()) == MAX_CHUNK  # nobody knows yet
    work.complete(works[0], seconds=seconds)
    assert len(work.next_chunk()) == expected


def test_the_last_works_are_shared_out() -> None:
    work = WorkQueue(trials(16), complete=(), num_slots=2)
    sizes = []
    while taken := work.next_chunk():
        sizes.append(len(taken))
    assert sizes == [4, 3, 3, 2, 1, 1, 1, 1]


def test_a_stage_comes_alone_and_its_length_says_nothing_about_trials() -> None:
    first, second = make_stage("first"), make_stage("second", epochs=3)
    works = [first, *trials(20), second]
    work = WorkQueue(works, complete=(), num_slots=1)
    assert names(work.next_chunk()) == ["first"]
    work.complete(first, seconds=3600.0)
    taken = work.next_chunk()
    assert len(taken) > 1
    assert all(each.kind == "trial" for each in taken)


def test_what_was_not_done_is_handed_out_again_in_its_place() -> None:
    works = trials(4)
    work = WorkQueue(works, complete=(), num_slots=1)
    first = work.next_chunk()
    assert names(first) == ["0", "1"]
    assert names(work.next_chunk()) == ["2"]
    work.put_back(first[1:])
    assert names(work.next_chunk() + work.next_chunk()) == ["1", "3"]


def test_further_works_come_after_the_others_and_wait_for_what_they_need() -> None:
    stage, later = make_stage("stage"), make_stage("later")
    work = WorkQueue([make_trial("first", stage)], complete=[stage.signature], num_slots=1)
    assert names(work.next_chunk()) == ["first"]
    work.complete(make_trial("first", stage))
    assert work.is_finished
    work.add([later, make_trial("second", later), make_trial("third", stage)])
    assert not work.is_finished
    assert names(work.next_chunk()) == ["later"]
    assert names(work.next_chunk()) == ["third"]
    work.complete(later)
    work.add([make_trial("fourth", later)])  # complete meanwhile
    assert names(work.next_chunk()) == ["second"]
    assert names(work.next_chunk()) == ["fourth"]


def test_when_it_is_closed_only_what_runs_is_left() -> None:
    stage = make_stage("stage")
    running, *others = trials(4)
    work = WorkQueue([stage, running, *others, make_trial("waits", stage)], complete=(), num_slots=1)
    assert names(work.next_chunk()) == ["stage"]
    taken = work.next_chunk()
    dropped = work.close([stage, *taken])
    assert sorted(names([stage, *taken, *dropped])) == ["0", "1", "2", "3", "stage", "waits"]
    assert work.next_chunk() == []
    work.complete(stage)
    for each in taken:
        work.drop(each)
    assert work.is_finished


def test_stages_of_several_processes_are_handed_out_by_themselves() -> None:
    joint, plain = make_stage("joint"), make_stage("plain")
    work = WorkQueue(
        [joint, plain, make_trial("trial", joint)], complete=(), num_slots=1, is_joint=lambda each: each is joint
    )
    assert names(work.next_chunk()) == ["plain"]
    assert (work.is_any_ready, work.joint_kinds) == (False, ["stage"])
    assert names(work.next_joint("stage")) == ["joint"]
    assert work.next_joint("stage") == work.next_joint("trial") == work.next_chunk() == []
    work.put_back([joint])
    assert names(work.next_joint("stage")) == ["joint"]
    work.complete(joint)
    assert names(work.next_chunk()) == ["trial"]
    again = WorkQueue([joint], complete=(), num_slots=1, is_joint=lambda each: True)
    assert names(again.close([])) == ["joint"]
    assert again.joint_kinds == []


def test_a_trial_of_several_processes_is_handed_over_to_a_slot_once_it_is_trained() -> None:
    trials = [make_trial("a"), make_trial("b")]
    work = WorkQueue(trials, complete=(), num_slots=1, is_joint=lambda each: True)
    assert (work.next_chunk(), work.joint_kinds) == ([], ["trial"])
    (taken,) = work.next_joint("trial")
    work.hand_over(taken)
    assert names(work.next_chunk()) == ["a"]
    work.put_back([taken])  # its slot was stopped
    assert names(work.next_chunk()) == ["a"]
    assert names(work.next_joint("trial")) == ["b"]
