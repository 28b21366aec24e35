"""What a study may take: who is held back, whose time counts, and what outlives a driver that was killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.plan import describe_plan
from orchestrator.cli.status import compute_status, find_budget_status, is_out_of_budget, render_status
from orchestrator.driver.estimate import estimate
from orchestrator.driver.prepare import prepare
from orchestrator.execution import meter
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.meter import Meter, saving_usage
from orchestrator.execution.work_queue import CHUNK_SECONDS, WorkQueue
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.usage import find_begun, read_budget_status, read_others_usage, read_usage
from orchestrator.planning.budget import BudgetStatus, Usage, describe_budget, describe_needs, measure
from orchestrator.planning.plan import Plan
from orchestrator.planning.reconcile import reconcile
from orchestrator.planning.works import Work
from orchestrator.study.execution_config import Budget
from orchestrator.study.study_file import compute_study_sha256, load_study, parse_study
from tests.conftest import FinishedStudy
from tests.support.plans import make_stage, make_trial, plan_of
from tests.support.processes import wait_until
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE
from tests.support.tiny_study import copy_place
from trainables.errors import StorageError, StudyError
from trainables.storage.folder import Folder

HEAD = "study: s\ndata: {kind: digits}\n"


class Clock:
    """Goes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "results"), "s")


# ------------------------------------------------------------------ the study file


def test_a_budget_has_any_combination_of_limits() -> None:
    text = HEAD + "execution: {budget: {trials: 10, money: 7.5}, price_per_gpu_hour: 2.5}\n"
    execution = parse_study(text, source="s.yaml").execution
    assert execution.budget is not None
    assert execution.budget.limits() == {"trials": 10, "money": 7.5}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("budget: {}", r"execution\.budget.*expected at least one of trials, wall_hours, gpu_hours, money"),
        ("budget: {money: 5}", r"execution.*expected price_per_gpu_hour beside budget"),
        ("budget: {trials: 0}", r"execution\.budget\.trials"),
        ("budget: {wall_hours: -1}", r"execution\.budget\.wall_hours"),
        ("budget: {hours: 1}", r"execution\.budget\.hours: unknown key"),
        ("price_per_gpu_hour: 0", r"execution\.price_per_gpu_hour"),
    ],
)
def test_a_wrong_budget_is_named(section: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(HEAD + f"execution: {{{section}}}\n", source="s.yaml")


def test_neither_budget_nor_notifications_are_hashed() -> None:
    execution = "execution: {budget: {trials: 1}, price_per_gpu_hour: 1, notify: {}}\n"
    with_budget, without = plan_of(execution), plan_of("")
    assert [trial.signature for trial in with_budget.trials] == [trial.signature for trial in without.trials]
    studies = [parse_study(HEAD + text, source="s.yaml") for text in (execution, "")]
    assert compute_study_sha256(studies[0]) == compute_study_sha256(studies[1])


# ------------------------------------------------------------------ who is held back


def names(works: tuple[Work, ...]) -> list[str]:
    return [work.name for work in works]


@pytest.fixture
def plan() -> Plan:
    early, late = make_stage("early"), make_stage("late")
    trials = (make_trial("a"), make_trial("b", early), make_trial("c"), make_trial("d", late))
    return Plan((early, late), trials)


def test_new_trials_begin_in_the_plans_order_with_the_stages_they_need(plan: Plan) -> None:
    budget_status = BudgetStatus({"trials": 2}, {"trials": 0})
    actions = budget_status.hold_back(reconcile(plan, {}))
    assert names(actions.open) == ["early", "a", "b"]
    assert names(actions.held_back) == ["late", "c", "d"]
    everything = BudgetStatus({"trials": 4}, {"trials": 0}).hold_back(reconcile(plan, {}))
    assert (len(everything.open), everything.held_back) == (6, ())


def test_what_has_begun_goes_on_and_counts_once(plan: Plan) -> None:
    a, _, c, d = plan.trials
    states = {a.signature: "complete", c.signature: "interrupted", d.signature: "interrupted"}
    budget_status = BudgetStatus({"trials": 3}, {"trials": 3}, frozenset(states))
    actions = budget_status.hold_back(reconcile(plan, states))
    assert sorted(names(actions.open)) == ["c", "d", "late"]
    assert names(actions.held_back) == ["early", "b"]
    assert names(actions.skip) == ["a"]


@pytest.mark.parametrize("limit", ["wall_hours", "gpu_hours", "money"])
def test_without_time_nothing_goes_on(plan: Plan, limit: str) -> None:
    states = {plan.trials[0].signature: "interrupted"}
    budget_status = BudgetStatus({limit: 1.5, "trials": 100}, {limit: 1.5, "trials": 1}, frozenset(states))
    actions = budget_status.hold_back(reconcile(plan, states))
    assert actions.open == ()
    assert len(actions.held_back) == 6
    assert budget_status.spent == (limit,)
    not_yet = BudgetStatus({limit: 1.6}, {limit: 1.5}).hold_back(reconcile(plan, states))
    assert not_yet.held_back == ()


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("hours", [0.5, 1.0])
def test_the_count_agrees_with_the_decision(plan: Plan, limit: int, hours: float) -> None:
    states = {plan.trials[0].signature: "complete", plan.trials[1].signature: "interrupted"}
    taken = {"trials": 2.0, "wall_hours": hours}
    budget_status = BudgetStatus({"trials": limit, "wall_hours": 1.0}, taken, frozenset(states))
    held_back = budget_status.hold_back(reconcile(plan, states)).held_back
    expected = sum(work.kind == "trial" for work in held_back)
    assert budget_status.count_held_back(interrupted=1, missing=2) == expected


def test_trials_count_that_have_begun_however_they_ended(ledger: Ledger) -> None:
    stage = make_stage("stage")
    complete, failed, interrupted, upstream = (make_trial(name) for name in ("x", "y", "z", "u"))
    for work in (stage, complete, interrupted):
        ledger.begin(work, study="s", git_commit=None)
    ledger.folder("trial", complete.signature).write_json("result.json", {})
    ledger.record_failure(failed, {"reason": "error", "message": "m"}, study="s", git_commit=None)
    ledger.record_failure(upstream, {"reason": "upstream", "message": "m"}, study="s", git_commit=None)
    ledger.root.write_json("usage.json", {"wall_seconds": 1.0, "slot_seconds": 2.0, "gpu_seconds": 3.0})
    begun = find_begun(ledger, ledger.states())
    assert begun == {complete.signature, failed.signature, interrupted.signature}
    budget_status = read_budget_status(ledger, describe_budget(Budget(trials=3), None), ledger.states())
    assert budget_status is not None
    assert (budget_status.spent, budget_status.describe()) == (("trials",), "3 of 3 trials")
    assert read_budget_status(ledger, describe_budget(None, None), ledger.states()) is None


def test_of_what_was_stopped_early_only_that_counts_which_was_trained(ledger: Ledger) -> None:
    trained, never = make_trial("x"), make_trial("y")
    for work in (trained, never):
        ledger.begin(work, study="s", git_commit=None)
        ledger.folder("trial", work.signature).write_json("stop.json", {})
    ledger.folder("trial", trained.signature).append_line("epochs.jsonl", "{}")
    assert find_begun(ledger, ledger.states()) == {trained.signature}


# ------------------------------------------------------------------ time


def test_slots_wall_and_shares_of_a_gpu_are_counted(clock: Clock) -> None:
    meter = Meter(Usage(100.0, 10.0, 1.0), clock=clock)
    clock.now += 5  # nobody works: Ray starts
    meter.report("1", gpus=0.25, busy_seconds=0.0)
    meter.report("2", gpus=0.25, busy_seconds=2.0)
    clock.now += 10
    meter.end("1")
    clock.now += 10
    meter.end("2"), meter.end("2"), meter.end("unknown")
    clock.now += 5
    assert meter.read() == Usage(130.0, 10.0 + 10 + 22, 1.0 + 0.25 * 32)


def test_a_slot_knows_best_how_long_it_was_busy(clock: Clock) -> None:
    """What it says arrives late, above all in the beginning."""
    meter = Meter(clock=clock)
    meter.report("1", gpus=0.5, busy_seconds=1.0)  # 2 s ago: it has worked for 3
    clock.now += 10
    meter.report("1", gpus=0.5, busy_seconds=13.0)
    meter.end("1")
    assert meter.read() == Usage(10.0, 13.0, 6.5)
    meter.report("1", gpus=0.5, busy_seconds=5.0)  # its next chunk
    meter.report("1", gpus=0.5, busy_seconds=4.0)
    meter.end("1")
    clock.now += 10
    assert meter.read() == Usage(20.0, 17.0, 8.5)


def test_money_is_gpu_time_at_a_price(clock: Clock) -> None:
    meter = Meter(limits={"money": 10.0}, price_per_gpu_hour=2.5, clock=clock)
    assert meter.seconds_left() == float("inf")  # nobody has a GPU
    meter.gpus_per_slot = 0.5
    assert meter.seconds_left() == 8 * 3600  # one slot with half a GPU: 4 GPU-hours
    meter.report("1", gpus=0.5, busy_seconds=0.0), meter.report("2", gpus=0.5, busy_seconds=0.0)
    assert meter.seconds_left() == 4 * 3600
    clock.now += 3600
    assert meter.seconds_left() == 3 * 3600
    assert measure(meter.read(), num_trials=3, price_per_gpu_hour=2.5) == {
        "trials": 3.0, "wall_hours": 1.0, "gpu_hours": 1.0, "money": 2.5,
    }  # fmt: skip


def test_the_nearest_limit_counts_and_what_was_taken_before(clock: Clock) -> None:
    limits = {"wall_hours": 2.0, "gpu_hours": 1.0}
    meter = Meter(Usage(3600.0, 0.0, 1800.0), limits=limits, clock=clock)
    assert meter.seconds_left() == 3600
    meter.report("1", gpus=1.0, busy_seconds=0.0)
    assert meter.seconds_left() == 1800
    clock.now += 1801
    assert meter.seconds_left() == 0
    meter.end("1")
    assert meter.seconds_left() == 0  # and stays so without anybody at work
    assert Meter(clock=clock).seconds_left() == float("inf")


# ------------------------------------------------------------------ at the dispatcher


class Slots:
    """Slots at a dispatcher with a budget."""

    def __init__(self, ledger: Ledger, clock: Clock, *works: Work, **limits: float) -> None:
        self.ledger, self.clock, self.handler, self.spent = ledger, clock, RecordingHandler(ledger), list[int]()
        self.meter = Meter(limits=limits, on_spent=self.spent.append, clock=clock)
        settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
        todo = WorkQueue(works, complete=(), num_slots=1)
        self.dispatcher = Dispatcher(
            todo, ledger=ledger, settings=settings, on_event=self.handler.handle, meter=self.meter
        )

    def next_chunk(self, slot: str) -> list[str] | None:
        chunk = self.dispatcher.next_chunk(slot)
        return None if chunk is None else [work["record"]["name"] for work in chunk["works"]]

    def tell(self, slot: str, work: Work, event: str, *, busy_seconds: float = 0.0) -> None:
        told: dict[str, Any] = {"signature": work.signature, "host": "here", "event": event, "status": "complete"}
        if event == "done":
            self.ledger.folder(work.kind, work.signature).write_json("result.json", {})
        self.dispatcher.report_events(slot, [{**told, "busy_seconds": busy_seconds}])


def test_when_the_budget_is_spent_what_runs_goes_on_and_nothing_else_begins(ledger: Ledger, clock: Clock) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    slots = Slots(ledger, clock, *works, wall_hours=1.0)
    assert slots.next_chunk("x") == ["0", "1", "2", "3"]
    slots.tell("x", works[0], "begun")
    clock.now += 3601
    slots.tell("x", works[0], "epoch")
    assert slots.spent == [4]  # those that nobody has taken
    assert slots.dispatcher.seconds_left == 0.0  # Ray need not be started
    for work in works[1:4]:
        slots.tell("x", work, "returned")
    assert not slots.dispatcher.is_finished
    assert slots.next_chunk("y") is None
    slots.tell("x", works[0], "done")
    assert slots.dispatcher.is_finished
    assert slots.spent == [4]  # said once
    assert slots.handler.ends() == {"0": "complete"}


def test_what_waits_for_a_stage_is_held_back_with_the_others(ledger: Ledger, clock: Clock) -> None:
    stage = make_stage("stage")
    slots = Slots(ledger, clock, stage, make_trial("trial", stage), wall_hours=1.0)
    slots.next_chunk("x")
    slots.tell("x", stage, "begun")
    clock.now += 3601
    slots.tell("x", stage, "done")
    assert slots.spent == [1]
    assert slots.dispatcher.is_finished
    assert slots.next_chunk("x") is None
    assert slots.handler.ends() == {"stage": "complete"}


def test_a_lost_trial_is_not_begun_again_on_a_spent_budget(ledger: Ledger, clock: Clock) -> None:
    trial, other = make_trial("trial"), make_trial("other")
    slots = Slots(ledger, clock, trial, other, wall_hours=1.0)
    slots.next_chunk("x")
    slots.tell("x", trial, "begun")
    clock.now += 3601
    assert slots.next_chunk("y") is None
    slots.dispatcher.release("x", error=lambda: {"reason": "crashed", "message": "m", "traceback": ""})
    assert slots.dispatcher.is_finished
    assert slots.handler.ends() == {"trial": "interrupted"}


def test_a_lost_trial_that_waits_for_another_slot_is_told_to_be_interrupted(ledger: Ledger, clock: Clock) -> None:
    trial = make_trial("trial")
    slots = Slots(ledger, clock, trial, wall_hours=1.0)
    slots.next_chunk("x")
    slots.tell("x", trial, "begun")
    slots.dispatcher.release("x", error=lambda: {"reason": "crashed", "message": "m", "traceback": ""})
    clock.now += 3601
    assert slots.next_chunk("y") is None
    assert slots.handler.ends() == {"trial": "interrupted"}
    assert slots.spent == [1]


def test_all_attempts_cost_and_waiting_for_another_machine_does_not(ledger: Ledger, clock: Clock) -> None:
    trial = make_trial("trial")
    slots = Slots(ledger, clock, trial)
    slots.dispatcher.set_gpus(0.5)
    slots.next_chunk("x")
    clock.now += 1000  # until there is a machine
    slots.tell("x", trial, "begun", busy_seconds=4.0)
    clock.now += 96
    slots.dispatcher.record_loss("x")
    clock.now += 1000  # until there is another
    slots.tell("x", trial, "begun", busy_seconds=1.0)
    clock.now += 90
    slots.tell("x", trial, "done", busy_seconds=100.0)
    slots.dispatcher.release("x")
    clock.now += 1000
    assert slots.meter.read() == Usage(3186.0, 200.0, 100.0)


def test_the_drivers_own_slots_hold_no_gpu(ledger: Ledger, clock: Clock) -> None:
    trial = make_trial("trial")
    slots = Slots(ledger, clock, trial)
    slots.dispatcher.set_gpus(1.0)
    slots.dispatcher.next_local_chunk(0)
    slots.dispatcher.report_local(0, [{"signature": trial.signature, "event": "begun", "busy_seconds": 0.0}])
    clock.now += 10
    slots.dispatcher.release_local(0)
    assert slots.meter.read() == Usage(10.0, 10.0, 0.0)


def test_a_chunk_ends_when_the_budget_does(ledger: Ledger, clock: Clock) -> None:
    works = [make_trial(str(number)) for number in range(8)]
    slots = Slots(ledger, clock, *works, wall_hours=1.0)
    first = slots.dispatcher.next_chunk("x")
    assert first is not None
    assert first["chunk_seconds"] == CHUNK_SECONDS
    clock.now += 3595
    second = slots.dispatcher.next_chunk("y")
    assert second is not None
    assert second["chunk_seconds"] == 5.0


# ------------------------------------------------------------------ what outlives a driver


def test_what_was_taken_is_written_and_adds_up(ledger: Ledger, clock: Clock) -> None:
    for number in (1, 2):
        meter = Meter(read_usage(ledger), clock=clock)
        with saving_usage(meter, ledger.root):
            meter.report("x", gpus=0.5, busy_seconds=0.0)
            clock.now += 100
        assert read_usage(ledger) == Usage(100.0 * number, 100.0 * number, 50.0 * number)


KILLED = """
import sys
from orchestrator.execution import meter
from orchestrator.planning.budget import Usage
from trainables.storage.folder import Folder
meter.SAVE_SECONDS = 0.05
used = meter.Meter(Usage(1000.0, 0.0, 0.0))
with meter.saving_usage(used, Folder(sys.argv[1])):
    used.report("x", gpus=1.0, busy_seconds=0.0)
    print("at work", flush=True)
    sys.stdin.read()
"""


def test_a_driver_that_is_killed_has_written_down_what_it_took(ledger: Ledger) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, ledger.root.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"at work\n"
        wait_until(lambda: read_usage(ledger).gpu_seconds > 0.2, "it was written down")
        driver.kill()
    usage = read_usage(ledger)
    assert usage.wall_seconds > 1000.2
    assert usage.slot_seconds == usage.gpu_seconds


def test_accounts_that_cannot_be_written_are_a_warning_later_only(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError), saving_usage(Meter(clock=clock), Folder(tmp_path / "file")):
        pytest.fail("nothing should begin")
    with saving_usage(Meter(clock=clock), ledger.root):
        shutil.rmtree(ledger.root.uri)
        Path(ledger.root.uri).write_text("in the way")
    assert "could not write down what the study has taken" in caplog.text


def test_it_is_written_off_the_loop(ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "SAVE_SECONDS", 0.01)
    writers, before = set(), threading.get_ident()
    write = meter._write
    monkeypatch.setattr(meter, "_write", lambda *words: (writers.add(threading.get_ident()), write(*words)))
    with saving_usage(Meter(clock=clock), ledger.root):
        wait_until(lambda: len(writers) == 2, "the thread has written")
    assert before in writers  # at the beginning and at the end


def test_lost_accounts_are_reckoned_from_the_records(ledger: Ledger) -> None:
    first, second, third = (make_trial(name) for name in "abc")
    for number, (work, device) in enumerate([(first, "cpu"), (second, "H100"), (third, "cpu")]):
        ledger.begin(work, study="s", git_commit=None)
        folder = ledger.folder("trial", work.signature)
        end_ms = 1_000_000 + 50_000 * number  # 100 s each, 50 s of which at the same time
        lines = [{"epoch": 1, "timestamp_ms": end_ms, "metrics": {"seconds": 100.0}}]
        folder.append_line("epochs.jsonl", json.dumps(lines[0]))
        if work is third:
            ledger.record_failure(work, {"reason": "error", "message": "m"}, study="s", git_commit=None)
        else:  # went on after half of its time
            result = {"duration_seconds": 50.0, "finished_ms": end_ms, "environment": {"device": device}}
            folder.write_json("result.json", result)
    assert read_usage(ledger) == Usage(200.0, 300.0, 100.0)
    note = {"timestamp_ms": 990_000, "seconds": 30.0}  # after 20 s of an epoch that was made again
    ledger.folder("trial", first.signature).append_line("attempts.jsonl", json.dumps(note))
    assert read_usage(ledger) == Usage(230.0, 330.0, 100.0)
    ledger.root.write_json("usage.json", {"wall_seconds": 1.0, "slot_seconds": 2.0, "gpu_seconds": 3.0})
    assert read_usage(ledger) == Usage(1.0, 2.0, 3.0)
    Path(ledger.root.uri, "usage.json").write_text('{"wall_seconds": 0}')  # by hand: the seal is gone
    assert read_usage(ledger) == Usage(230.0, 330.0, 100.0)


# ------------------------------------------------------------------ what is said


def test_whether_the_rest_fits_is_said_per_limit() -> None:
    budget_status = BudgetStatus(
        {"trials": 4, "gpu_hours": 2.0, "wall_hours": 1.0}, {"trials": 2, "gpu_hours": 1.5, "wall_hours": 0}
    )
    assert describe_needs(budget_status, {"trials": 2, "gpu_hours": 0.75, "wall_hours": None}) == [
        "trials: 2 taken + 2 to come = 4 of 4: fits",
        "GPU-hours: 1.50 taken + 0.75 to come = 2.25 of 2: does NOT fit",
        "wall hours: 0 taken, of 1; whether the rest fits is not known",
    ]


def test_a_study_out_of_budget_starts_nothing_and_says_so(finished_study: FinishedStudy, tmp_path: Path) -> None:
    """In the log, in the report, in status, by its own exit code; a larger budget would go on.

    Nor does it end otherwise because somebody cannot be told, whose address nobody gets to see.
    """
    place = copy_place(finished_study.place, tmp_path)
    missing = sorted((place.ledger / "trials").iterdir())[0]
    shutil.rmtree(missing)
    spent = ("--set", "execution.budget={trials: 3}")
    secret = {"ROBUSTSWEEP_NOTIFY": "json://127.0.0.1:1/s3cr3t"}
    done = place.call("run", *spent, "--set", "execution.notify={}", **secret)
    assert done.returncode == 4, done.stderr
    assert "held back 1 trial" in done.stdout
    assert (
        "1 missing of 4 trials; the budget is spent: 3 of 3 trials; raise execution.budget, then go on" in done.stdout
    )
    assert "started" not in done.stdout
    assert "notify " in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr
    assert [path for path in place.storage.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()] == []
    assert not missing.exists()
    assert "The budget is spent (3 of 3 trials)" in (place.ledger / "report" / "index.html").read_text()
    for trials, code, state, fits in ((3, 4, "held back", False), (4, 1, "to run", True)):
        study = load_study(place.study, [f"execution.budget={{trials: {trials}}}"])
        budget_status = find_budget_status(study, storage=str(place.storage))
        counts = compute_status(study, storage=str(place.storage))
        assert is_out_of_budget(counts, budget_status) is (code == 4)
        console = Console(file=StringIO())
        render_status(counts, console, budget_status)
        assert f"budget       3 of {trials} trials\n" in console.file.getvalue()  # type: ignore[attr-defined]
        prepared = prepare(study, storage=str(place.storage))
        plan = describe_plan(prepared, estimate(prepared, allow_pilot=False))
        assert plan["budget"]["fits"] == {"trials": fits}
        assert [row["state"] for row in plan["trials"]].count(state) == 1
    assert place.call("status", *spent).returncode == 4


# ------------------------------------------------------------------ several drivers


def test_drivers_that_share_a_study_count_the_time_in_which_several_run_once(ledger: Ledger, clock: Clock) -> None:
    ledger.root.write_json("usage.json", {"wall_seconds": 100.0, "slot_seconds": 50.0, "gpu_seconds": 5.0})
    for name, since, until, gpus in (("a", 0, 60, 10.0), ("b", 30, 90, 20.0), ("c", 200, 210, 0.0)):
        span = {"since_ms": 1000 * since, "until_ms": 1000 * until}
        ledger.root.write_json(f"usage/{name}.json", span | {"slot_seconds": 7.0, "gpu_seconds": gpus})
    assert read_usage(ledger) == Usage(100.0 + 90.0 + 10.0, 50.0 + 21.0, 35.0)
    assert read_others_usage(ledger, "b") == Usage(200.0 - 60.0, 64.0, 15.0)
    assert read_others_usage(ledger, "d") == read_usage(ledger)
    own = Meter(limits={"wall_hours": 1.0}, clock=clock, others=read_others_usage(ledger, "d"))
    assert own.seconds_left() == 3600.0 - 200.0
    clock.now += 50
    own.count_others(Usage(1000.0, 0.0, 0.0))
    assert own.seconds_left() == 3600.0 - 1050.0


def test_what_a_sharing_driver_has_taken_has_a_file_of_its_own(ledger: Ledger, clock: Clock) -> None:
    used = Meter(clock=clock, others=Usage(10.0, 10.0, 10.0))
    used.report("slot", gpus=0.5, busy_seconds=0.0)
    with saving_usage(used, ledger.root, driver="a"):
        clock.now += 8
    found = ledger.root.read_json("usage/a.json")
    assert (found["slot_seconds"], found["gpu_seconds"]) == (8.0, 4.0)
    assert found["since_ms"] <= found["until_ms"]
    assert not ledger.root.exists("usage.json")
    assert read_usage(ledger).gpu_seconds == 4.0  # nothing is estimated from records besides
