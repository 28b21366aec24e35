"""What is handed out and when: by the searcher alone, and by a real Ray with acted trials."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import connection, ray_thread
from orchestrator.cluster.tune_executor import DispatchSearcher, SlotCallback, execute
from orchestrator.execution.chunk_settings import ChunkSettings, unpack
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.local_executor import LocalExecutor
from orchestrator.execution.resources import Slots
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial
from tests.support.processes import is_running, wait_until
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE
from trainables.errors import ClusterLostError, InfrastructureError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "results"), "s")


# ------------------------------------------------------------------ the searcher


def test_the_searcher_hands_out_what_the_desk_has(ledger: Ledger) -> None:
    stage = make_stage("stage")
    trial, handler = make_trial("trial", stage), RecordingHandler(ledger)
    settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
    dispatcher = Dispatcher(
        WorkQueue([stage, trial], complete=(), num_slots=1), ledger=ledger, settings=settings, on_event=handler.handle
    )

    def read_error(trial_id: str) -> dict[str, str]:
        return {"reason": "crashed", "message": "lost", "traceback": f"what Tune knows of {trial_id}"}

    searcher = DispatchSearcher(dispatcher, count_slots=lambda: 48, read_error=read_error, print_line=print)

    config = searcher.suggest("1")
    assert config["signature"] == stage.signature
    assert unpack(config["chunk"])["report_seconds"] == 3.0
    assert searcher.suggest("2") is None  # what is left waits for the stage
    ledger.folder("stage", stage.signature).write_json("result.json", {})
    done = {"signature": stage.signature, "host": "here", "busy_seconds": 0.1, "event": "done", "status": "complete"}
    searcher.on_trial_complete("1", {"events": json.dumps([done])})
    searcher.on_trial_result("1", {})  # Tune's own results say nothing of ours

    assert searcher.suggest("3")["signature"] == trial.signature
    dispatcher.record_loss("3")
    searcher.on_trial_complete("3", None, error=True)
    assert handler.ends() == {"stage": "complete", "trial": "failed: crashed"}
    failure = ledger.read("trial", trial.signature).failure
    assert failure is not None
    assert failure["traceback"] == "what Tune knows of 3"
    assert failure["attempts"] == 2
    assert searcher.suggest("4") == connection.tune.search.Searcher.FINISHED


def test_little_is_kept_of_a_chunk_that_is_over() -> None:
    """What Tune writes of it when all is over, from the callback on."""
    from ray.tune.experiment.trial import Trial

    chunk = {"chunk": "c" * 3000, "signature": "s"}
    trial = Trial("slot", stub=True, config=chunk, evaluated_params=dict(chunk), experiment_tag="1_chunk=" + "c" * 3000)
    trial.update_last_result({"events": "e" * 2000, "config": trial.config, "training_iteration": 1})
    before = sum(map(len, trial.get_json_state()))
    SlotCallback(lambda trial_id: {}).on_trial_complete(0, [trial], trial)
    state, metadata = trial.get_json_state()
    assert before > 18_000
    assert len(state) + len(metadata) < 3_000
    assert not any(letter * 100 in state + metadata for letter in "ce")


def test_the_searcher_fills_a_cluster_that_grows_and_shrinks(ledger: Ledger) -> None:
    trials, handler = [make_trial(name) for name in "abcdefghijkl"], RecordingHandler(ledger)
    settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
    dispatcher = Dispatcher(
        WorkQueue(trials, complete=(), num_slots=1), ledger=ledger, settings=settings, on_event=handler.handle
    )
    sizes = {"slots": 1}
    searcher = DispatchSearcher(
        dispatcher, count_slots=lambda: sizes["slots"], read_error=lambda trial_id: {}, print_line=print
    )

    def suggest(*trial_ids: str) -> list[bool]:
        return [searcher.suggest(trial_id) is not None for trial_id in trial_ids]

    assert suggest("1", "2") == [True, False]
    sizes["slots"] = 3  # a node has joined
    assert suggest("2", "3", "4") == [True, True, False]
    sizes["slots"] = 2  # a node is lost
    searcher.on_trial_complete("1", error=False)
    assert suggest("4") == [False]
    searcher.on_trial_complete("2", error=False)
    assert suggest("4", "5") == [True, False]


def test_a_node_that_refuses_is_named_once_and_its_chunk_runs_elsewhere(ledger: Ledger) -> None:
    trials, handler, said = [make_trial(name) for name in "ab"], RecordingHandler(ledger), list[str]()
    settings = ChunkSettings(EXECUTION, "token", MODULE, (), 1, 600.0, describe)
    dispatcher = Dispatcher(
        WorkQueue(trials, complete=(), num_slots=1), ledger=ledger, settings=settings, on_event=handler.handle
    )
    searcher = DispatchSearcher(
        dispatcher, count_slots=lambda: 3, read_error=lambda trial_id: {}, print_line=said.append
    )
    refusal = {"refusal": "the storage s3://b cannot be used from the node n", "refusing_node": "n1"}

    def refuse(trial_id: str, config: dict[str, Any]) -> None:
        signatures = [work["record"]["signature"] for work in unpack(config["chunk"])["works"]]
        events = [{"signature": each, "event": "returned", "busy_seconds": 0.0} for each in signatures]
        searcher.on_trial_result(trial_id, {"events": json.dumps(events), **refusal})

    for trial_id in ("1", "2"):
        refuse(trial_id, searcher.suggest(trial_id))
    assert said == [
        "the storage s3://b cannot be used from the node n. It joined late; until it can, which is tried every 60 s, "
        "no trial runs there"
    ]
    assert dispatcher.record_loss("1") == {}  # an actor that takes its place has nothing to run
    again = searcher.suggest("3")
    assert again["signature"] in {trial.signature for trial in trials}
    assert dispatcher.num_slots == 1
    assert searcher.suggest("4") is None  # two slots of three are taken by the node that refuses
    searcher.on_trial_complete("1")
    assert searcher.suggest("4")["signature"] == ({trial.signature for trial in trials} - {again["signature"]}).pop()
    assert handler.ends() == {}


# ------------------------------------------------------------------ a real Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, float]]:
    yield connection.connect(None).resources
    connection.disconnect()


@pytest.fixture
def run_all(ray: dict[str, float], ledger: Ledger) -> Callable[..., RecordingHandler]:

    def run_all(
        *works: Work,
        handler: RecordingHandler | None = None,
        stop: threading.Event | None = None,
        max_concurrent: int = 2,
        max_retries: int = 2,
        stall_seconds: float = 600.0,
    ) -> RecordingHandler:
        handler = handler or RecordingHandler(ledger)
        settings = ChunkSettings(EXECUTION, uuid.uuid4().hex[:8], MODULE, (), max_retries, stall_seconds, describe)
        execute(
            Dispatcher(
                WorkQueue(works, complete=(), num_slots=1), ledger=ledger, settings=settings, on_event=handler.handle
            ),
            study="s",
            slots=Slots(cpus=0.5, gpus=0.0, max_concurrent=max_concurrent),
            max_retries=max_retries,
            stop=stop or threading.Event(),
        )
        return handler

    return run_all


def results_of(ledger: Ledger, *works: Work) -> list[dict[str, Any]]:
    results = [ledger.read(work.kind, work.signature).result for work in works]
    return [result for result in results if result is not None]


def test_a_study_with_every_kind_of_trouble(
    run_all: Callable[..., RecordingHandler], ledger: Ledger, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = make_stage("good stage"), make_stage("fail stage")
    works = [good, bad]
    works += [make_trial(f"finish {number}", good) for number in range(3)] + [make_trial("finish without", bad)]
    works += [make_trial(act) for act in ("fail", "diverge", "dies_once", "dies", "loses_result", "chatter")]
    handler = run_all(*works)
    assert handler.ends() == {
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
    started = handler.started()
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


def test_one_slot_serves_all_trials_with_a_fresh_process_each(
    run_all: Callable[..., RecordingHandler], ledger: Ledger
) -> None:
    works = [make_trial(f"finish {number}") for number in range(5)]
    run_all(*works, max_concurrent=1)
    results = results_of(ledger, *works)
    assert len(results) == 5
    assert len({result["server"] for result in results}) == 1
    assert len({result["pid"] for result in results}) == 5


def test_a_hanging_trial_is_tried_again(run_all: Callable[..., RecordingHandler], ledger: Ledger) -> None:
    work = make_trial("hangs_once")
    assert run_all(work, stall_seconds=4.0).ends() == {"hangs_once": "complete"}
    notes = ledger.folder("trial", work.signature).read_lines("attempts.jsonl")
    assert notes
    assert all("no sign of life" in note["message"] for note in notes)


def test_a_lost_actor_leaves_what_ray_knows_of_it(run_all: Callable[..., RecordingHandler], ledger: Ledger) -> None:
    work = make_trial("ends_actor")
    assert run_all(work, max_retries=0).ends() == {"ends_actor": "failed: crashed"}
    failure = ledger.read("trial", work.signature).failure
    assert failure is not None
    assert "machine or Ray actor ended" in failure["message"]
    assert "actor died" in failure["traceback"]
    assert failure["attempts"] == 1


def test_stopping_ends_running_trials_and_hands_out_nothing_more(
    run_all: Callable[..., RecordingHandler], ledger: Ledger
) -> None:
    works = [make_trial("hang"), *(make_trial(f"finish {number}") for number in range(2))]
    stop, pids = threading.Event(), []

    def stop_when_it_hangs(work: Work, event: dict[str, Any]) -> None:
        if work.name == "hang":
            pids.append(event["pid"])
            stop.set()

    handler = run_all(*works, handler=RecordingHandler(ledger, stop_when_it_hangs), stop=stop, max_concurrent=1)
    assert handler.started() == ["hang"]
    assert ledger.states()[works[0].signature] == "interrupted"
    wait_until(lambda: not is_running(pids[0]), "its process is gone")


def test_actors_take_over_from_the_slots_of_the_driver(ray: dict[str, float], ledger: Ledger) -> None:
    works, handler, stop = (
        [make_trial(f"nap {number}") for number in range(80)],
        RecordingHandler(ledger),
        threading.Event(),
    )
    settings = ChunkSettings(EXECUTION, uuid.uuid4().hex[:8], MODULE, (), 2, 600.0, describe)
    dispatcher = Dispatcher(
        WorkQueue(works, complete=(), num_slots=1), ledger=ledger, settings=settings, on_event=handler.handle
    )
    with LocalExecutor(dispatcher, 2, stop=stop):
        execute(dispatcher, study="s", slots=Slots(1.0, 0.0, None), max_retries=2, stop=stop)
    assert handler.ends() == {work.name: "complete" for work in works}
    slots = Counter(result["slot"] for result in results_of(ledger, *works))
    assert slots.total() == 80
    assert 1 <= slots.pop(os.getpid()) < 80
    assert slots


def test_a_ray_that_is_lost_is_not_waited_for(
    run_all: Callable[..., RecordingHandler], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers any more; the trial that runs then is left alone."""

    def silence(peer: str) -> None:
        raise ConnectionRefusedError(peer)

    def fall_silent(work: Work, event: dict[str, Any]) -> None:
        monkeypatch.setattr(ray_thread, "check_reachable", silence)

    monkeypatch.setattr(ray_thread, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(ray_thread, "PATIENCE_SECONDS", 0.5)
    handler, stop = RecordingHandler(ledger, fall_silent), threading.Event()
    try:
        with pytest.raises(
            ClusterLostError, match=r"lost Ray: [\d.]+:\d+ has not answered .* goes on from its last epoch"
        ):
            run_all(make_trial("hang"), handler=handler, stop=stop)
    finally:
        stop.set()  # this Ray is alive
    (tuning,) = (thread for thread in threading.enumerate() if thread.name == "tune")
    tuning.join()
    assert handler.ends() == {}


def test_a_cluster_that_does_not_answer_is_an_infrastructure_error() -> None:
    with pytest.raises(InfrastructureError, match=r"could not join the Ray cluster at 127.0.0.1:9"):
        connection.connect("127.0.0.1:9")
