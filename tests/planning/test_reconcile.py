from __future__ import annotations

import itertools

import pytest

from orchestrator.planning.plan import Plan
from orchestrator.planning.reconcile import Actions, reconcile
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED
from tests.support.plans import make_stage, make_trial

STAGE = make_stage("stage")
ALONE, DEPENDANT = make_trial("alone"), make_trial("dependant", STAGE)
PLAN = Plan((STAGE,), (ALONE, DEPENDANT))
STATES = (ABSENT, INTERRUPTED, FAILED, COMPLETE)


def states(stage: str, alone: str, dependant: str) -> dict[str, str]:
    """What the ledger says; absent is not listed."""
    found = {STAGE.signature: stage, ALONE.signature: alone, DEPENDANT.signature: dependant}
    return {signature: state for signature, state in found.items() if state != ABSENT}


def names(actions: Actions) -> dict[str, list[str]]:
    listed = {name: [work.name for work in getattr(actions, name)] for name in ("start", "resume", "skip", "failed")}
    return {name: works for name, works in listed.items() if works}


@pytest.mark.parametrize(
    ("stage", "alone", "dependant", "expected"),
    [
        (ABSENT, ABSENT, ABSENT, {"start": ["stage", "alone", "dependant"]}),
        (COMPLETE, COMPLETE, COMPLETE, {"skip": ["stage", "alone", "dependant"]}),
        (COMPLETE, COMPLETE, ABSENT, {"skip": ["stage", "alone"], "start": ["dependant"]}),
        (COMPLETE, INTERRUPTED, ABSENT, {"skip": ["stage"], "resume": ["alone"], "start": ["dependant"]}),
        (INTERRUPTED, COMPLETE, ABSENT, {"resume": ["stage"], "skip": ["alone"], "start": ["dependant"]}),
        (COMPLETE, FAILED, INTERRUPTED, {"skip": ["stage"], "failed": ["alone"], "resume": ["dependant"]}),
        # A stage that failed takes its dependants with it, whether or not they have a record of it.
        (FAILED, COMPLETE, ABSENT, {"failed": ["stage", "dependant"], "skip": ["alone"]}),
        (FAILED, COMPLETE, INTERRUPTED, {"failed": ["stage", "dependant"], "skip": ["alone"]}),
        (FAILED, ABSENT, FAILED, {"failed": ["stage", "dependant"], "start": ["alone"]}),
        # A stage runs only for a trial that will run.
        (ABSENT, ABSENT, COMPLETE, {"skip": ["stage", "dependant"], "start": ["alone"]}),
        (INTERRUPTED, COMPLETE, COMPLETE, {"skip": ["stage", "alone", "dependant"]}),
        (ABSENT, COMPLETE, FAILED, {"skip": ["stage", "alone"], "failed": ["dependant"]}),
    ],
)
def test_what_becomes_of_each(stage: str, alone: str, dependant: str, expected: dict[str, list[str]]) -> None:
    assert names(reconcile(PLAN, states(stage, alone, dependant))) == expected


@pytest.mark.parametrize(
    ("stage", "alone", "dependant", "expected"),
    [
        (FAILED, FAILED, FAILED, {"resume": ["stage", "alone", "dependant"]}),
        (FAILED, COMPLETE, ABSENT, {"resume": ["stage"], "skip": ["alone"], "start": ["dependant"]}),
        (COMPLETE, COMPLETE, FAILED, {"skip": ["stage", "alone"], "resume": ["dependant"]}),
        (ABSENT, COMPLETE, FAILED, {"start": ["stage"], "skip": ["alone"], "resume": ["dependant"]}),
        (FAILED, COMPLETE, COMPLETE, {"skip": ["stage", "alone", "dependant"]}),
        (COMPLETE, COMPLETE, COMPLETE, {"skip": ["stage", "alone", "dependant"]}),
    ],
)
def test_failed_ones_are_tried_again_on_request(
    stage: str, alone: str, dependant: str, expected: dict[str, list[str]]
) -> None:
    assert names(reconcile(PLAN, states(stage, alone, dependant), retry_failed=True)) == expected


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("found", list(itertools.product(STATES, repeat=3)), ids="-".join)
def test_nothing_is_dropped_and_nothing_waits_for_ever(found: tuple[str, str, str], retry_failed: bool) -> None:
    actions = reconcile(PLAN, states(*found), retry_failed=retry_failed)
    listed = actions.start + actions.resume + actions.skip + actions.failed
    assert sorted(work.name for work in listed) == ["alone", "dependant", "stage"]
    done = {signature for signature, state in states(*found).items() if state == COMPLETE}
    for work in actions.open:
        assert set(work.needs) <= done | {other.signature for other in actions.open}
    assert not done & {work.signature for work in actions.open + actions.failed}


def test_stages_are_handed_out_first_and_interrupted_work_before_new() -> None:
    other = make_stage("other")
    plan = Plan((STAGE, other), (ALONE, DEPENDANT, make_trial("last", other)))
    actions = reconcile(plan, {other.signature: INTERRUPTED, DEPENDANT.signature: INTERRUPTED})
    assert [work.name for work in actions.open] == ["other", "stage", "dependant", "alone", "last"]


def test_what_is_no_longer_planned_is_named_and_kept() -> None:
    actions = reconcile(PLAN, {"b" * 16: COMPLETE, "a" * 16: FAILED})
    assert actions.orphaned == ("a" * 16, "b" * 16)
    assert len(actions.start) == 3


def test_a_finished_study_starts_nothing() -> None:
    actions = reconcile(PLAN, {work.signature: COMPLETE for work in PLAN.works})
    assert actions.open == ()


@pytest.mark.parametrize("retry_failed", [False, True])
def test_what_was_stopped_early_stays_so_as_long_as_the_study_stops_early(retry_failed: bool) -> None:
    found = states(ABSENT, FAILED, STOPPED)
    actions = reconcile(PLAN, found, retry_failed=retry_failed, early_stopping=True)
    assert [work.name for work in actions.stopped] == ["dependant"]
    assert names(actions) == {"skip": ["stage"], "resume" if retry_failed else "failed": ["alone"]}
    actions = reconcile(PLAN, found, retry_failed=retry_failed)
    assert actions.stopped == ()
    assert names(actions)["start"] == ["stage"]
    assert "dependant" in names(actions)["resume"]
