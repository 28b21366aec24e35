from __future__ import annotations

from typing import Any

import pytest

from orchestrator.driver.live.state import MAX_FAILURES, LiveState
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial

PLACE = {"host": "node1", "slot": "own-0", "devices": None, "attempt": 1}
STAGE, TRIALS = make_stage("stage"), [make_trial(f"trial {number}") for number in range(5)]


def make_state(num_to_come: int = 0) -> LiveState:
    """One stage and five trials, of which one was complete and one interrupted before."""
    states = {TRIALS[0].signature: COMPLETE, TRIALS[1].signature: INTERRUPTED}
    return LiveState([STAGE, *TRIALS], states, num_to_come=num_to_come, clock=lambda: 1_800_000_000.5)


def counts(state: LiveState, kind: str = "trials") -> dict[str, int]:
    found: dict[str, int] = state.as_json()[kind]
    assert found["planned"] == sum(number for name, number in found.items() if name != "planned")
    return {name: number for name, number in found.items() if number}


def fail(state: LiveState, work: Work, **details: Any) -> None:
    state.handle("ended", work, {"status": FAILED, "reason": "diverged", "message": "nan\nat epoch 3", **details})


def test_what_was_complete_before_counts() -> None:
    assert counts(make_state()) == {"planned": 5, "complete": 1, "interrupted": 1, "missing": 3}
    assert counts(make_state(), "stages") == {"planned": 1, "missing": 1}


def test_a_trial_is_followed_from_its_start_to_its_end() -> None:
    state = make_state()
    state.handle("started", TRIALS[1], PLACE)
    state.handle("event", TRIALS[1], {"event": "started"})
    state.handle("event", TRIALS[1], {"event": "epoch", "epoch": 3, "metrics": {}})
    (row,) = state.as_json()["running"]
    assert row | PLACE == row
    assert (row["signature"], row["epoch"], row["epochs"]) == (TRIALS[1].signature, 3, 20)
    assert (row["phase"], row["since_ms"]) == ("training", 1_800_000_000_500)
    assert counts(state) == {"planned": 5, "complete": 1, "running": 1, "missing": 3}
    state.handle("event", TRIALS[1], {"event": "evaluation", "done": 2, "total": 30})
    assert state.as_json()["running"][0]["phase"] == "evaluating 2/30"
    state.handle("ended", TRIALS[1], {"status": COMPLETE})
    assert state.as_json()["running"] == []
    assert state.num_running == 0
    assert counts(state) == {"planned": 5, "complete": 2, "missing": 3}


def test_a_lost_process_and_a_lost_slot_are_counted() -> None:
    state = make_state()
    state.handle("started", TRIALS[2], PLACE)
    for _ in range(2):  # the second one is of the process that followed
        state.handle("event", TRIALS[2], {"event": "started"})
    assert state.as_json()["num_lost"] == 1
    state.handle("event", TRIALS[2], {"event": "begun", **PLACE, "host": "node2", "attempt": 2})
    found = state.as_json()
    assert found["num_lost"] == 2
    assert [(row["host"], row["attempt"]) for row in found["running"]] == [("node2", 2)]
    assert counts(state)["running"] == 1


def test_the_last_failures_are_kept_without_those_of_a_stage() -> None:
    state = make_state()
    state.handle("started", STAGE, PLACE)
    fail(state, STAGE)
    fail(state, TRIALS[2], reason="upstream")
    found = state.as_json()
    assert found["failures_by_reason"] == {"diverged": 1, "upstream": 1}
    (failure,) = found["failures"]
    assert (failure["label"], failure["host"], failure["message"]) == ("stage", "node1", "nan")
    for number in range(2 * MAX_FAILURES):
        fail(state, make_trial(f"more {number}"))
    assert len(state.as_json()["failures"]) == MAX_FAILURES
    assert state.as_json()["failures"][-1]["signature"] == make_trial(f"more {2 * MAX_FAILURES - 1}").signature


@pytest.mark.parametrize("proposed", [0, 1, 2])
def test_what_a_search_has_yet_to_propose_is_missing(proposed: int) -> None:
    state = make_state(num_to_come=2)
    for number in range(proposed):
        state.handle("started", make_trial(f"proposed {number}"), PLACE)
    assert counts(state)["missing"] == 3 + 2 - proposed
    assert counts(state)["planned"] == 7


def test_an_event_of_what_does_not_run_changes_nothing() -> None:
    state = make_state()
    before = state.as_json()
    state.handle("event", TRIALS[3], {"event": "epoch", "epoch": 1, "metrics": {}})
    assert state.as_json() == before


def test_what_had_no_gpu_memory_does_not_run_until_it_begins_again() -> None:
    state, trial = make_state(), TRIALS[2]
    state.handle("started", trial, PLACE)
    state.handle("event", trial, {"event": "out of GPU memory", "gpus": 0.25, "message": "m"})
    assert counts(state) == {"planned": 5, "complete": 1, "interrupted": 2, "missing": 2}
    assert (state.num_running, state.as_json()["num_lost"]) == (0, 1)
    state.handle("started", trial, PLACE)
    assert (state.num_running, counts(state)["running"]) == (1, 1)


def test_a_trained_trial_waits_for_its_evaluation_and_is_not_lost() -> None:
    state, trial = make_state(), TRIALS[2]
    state.handle("started", trial, PLACE)
    state.handle("event", trial, {"event": "trained"})
    assert (state.num_running, state.as_json()["num_lost"]) == (0, 0)
    state.handle("started", trial, PLACE)
    assert (state.num_running, counts(state)["running"]) == (1, 1)
