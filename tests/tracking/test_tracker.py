from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.usage import record_dashboard
from orchestrator.tracking.addresses import RefusedError, TrackingError
from orchestrator.tracking.client import MlflowClient, StudyPages, find_study
from orchestrator.tracking.tracker import Tracker
from tests.support.ledger_records import (
    CREATED_MS,
    FINGERPRINT,
    add_epochs,
    begin,
    complete,
    fail,
    finished,
    make_ledger,
    stop,
)
from tests.support.mlflow_stores import CountingClient, make_database, make_tracker, points_of, run_of, ship
from trainables.errors import StudyError


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture
def uri(tmp_path: Path, template: Path) -> str:
    return make_database(tmp_path, template)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return make_ledger(tmp_path)


def test_a_finished_trial_is_all_there(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    assert ship(tracker, ledger)
    run = run_of(uri)
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (CREATED_MS, CREATED_MS + 9000)
    assert run.info.run_name == "scratch · 0.5 · r0"
    assert run.data.params["pretraining"] == "scratch"
    assert run.data.params["replicate"] == "0"
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["robustsweep.arm"] == "scratch · 0.5"
    assert run.data.tags["robustsweep.kind"] == "trial"
    assert run.data.tags["robustsweep.undefined"] == "id/auroc: one class only"
    assert run.data.metrics["robustness/mean_accuracy"] == 0.7
    assert points_of(uri, "train/loss") == [(1, 1.0, 1000), (2, 0.5, 2000), (3, 1 / 3, 3000)]
    assert [p[:2] for p in points_of(uri, "shift/jpeg/accuracy")] == [(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.9 - 0.3)]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", FINGERPRINT[:36])


def test_a_trial_takes_four_calls_beside_its_files_and_a_replay_none(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    counting = tracker._client = CountingClient(tracker._client)
    assert ship(tracker, ledger)
    assert counting.calls == ["create_run", "log_inputs", "log_batch", "set_terminated"]
    files = MlflowClient(uri).list_artifacts(run_of(uri).info.run_id)
    assert [file.path for file in files] == ["config.yaml"]  # it has no balanced accuracy to be drawn
    assert not ship(tracker, ledger)
    assert len(counting.calls) == 4


def test_a_replay_by_another_driver_changes_nothing(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    ship(make_tracker(uri, ledger), ledger)
    before = run_of(uri).to_dictionary()
    again = make_tracker(uri, ledger)
    assert not ship(again, ledger)
    again._runs["t1"].shipped = None  # as if the last answer had been lost
    assert ship(again, ledger)
    assert run_of(uri).to_dictionary() == before
    assert len(points_of(uri, "train/loss")) == 3
    assert len(points_of(uri, "shift/jpeg/accuracy")) == 4


def test_a_running_trial_grows_and_each_epoch_is_sent_once(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    tracker = make_tracker(uri, ledger)
    assert ship(tracker, ledger)
    assert not ship(tracker, ledger)
    add_epochs(ledger, last=2)
    counting = tracker._client = CountingClient(tracker._client)
    assert ship(tracker, ledger)
    assert counting.calls == ["log_batch"]
    assert run_of(uri).info.status == "RUNNING"
    add_epochs(ledger, first=3, last=3)
    complete(ledger)
    assert ship(tracker, ledger)
    assert counting.calls == ["log_batch", "log_batch", "set_terminated"]
    assert [point[0] for point in points_of(uri, "train/loss")] == [1, 2, 3]


def test_a_note_on_a_trial_is_kept(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    ship(make_tracker(uri, ledger), ledger)
    MlflowClient(uri).set_tag(run_of(uri).info.run_id, "mlflow.note.content", "mine")
    add_epochs(ledger, last=3)
    complete(ledger)
    ship(make_tracker(uri, ledger), ledger)
    assert run_of(uri).info.status == "FINISHED"
    assert run_of(uri).data.tags["mlflow.note.content"] == "mine"


def test_a_resumed_trial_keeps_its_run_and_repeats_no_epoch(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    add_epochs(ledger, last=2)
    first = make_tracker(uri, ledger)
    ship(first, ledger)
    assert first.close_interrupted() == 1
    killed = run_of(uri)
    assert (killed.info.status, killed.info.end_time) == ("KILLED", CREATED_MS + 2000)
    # The checkpoint was of epoch 1: epoch 2 is done, and stamped, again.
    ledger.folder("trial", "t1").remove("epochs.jsonl")
    add_epochs(ledger, last=1)
    add_epochs(ledger, first=2, last=3, delay_ms=60_000)
    second = make_tracker(uri, ledger)
    assert ship(second, ledger)
    assert run_of(uri).info.run_id == killed.info.run_id
    assert run_of(uri).info.status == "RUNNING"
    complete(ledger)
    ship(second, ledger)
    assert points_of(uri, "train/loss") == [(1, 1.0, 1000), (2, 0.5, 2000), (3, 1 / 3, 63_000)]
    assert run_of(uri).info.status == "FINISHED"


def test_a_failure_is_shown_and_forgotten_when_the_retry_succeeds(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    add_epochs(ledger)
    fail(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    run = run_of(uri)
    assert (run.info.status, run.info.end_time) == ("FAILED", CREATED_MS + 7000)
    assert run.data.tags["robustsweep.failure"] == "diverged: the loss became nan"
    artifact = MlflowClient(uri).download_artifacts(run.info.run_id, "traceback.txt")
    assert Path(artifact).read_text() == "Traceback: line 1"
    ledger.folder("trial", "t1").remove("failure.json")
    complete(ledger)
    ship(tracker, ledger)
    run = run_of(uri)
    assert run.info.status == "FINISHED"
    assert "robustsweep.failure" not in run.data.tags


def test_runs_left_by_a_crash_are_closed_resumed_and_foreign_ones_are_not(uri: str, ledger: Ledger) -> None:
    tracker = make_tracker(uri, ledger)
    for signature in ("dead", "resumed", "done"):
        begin(ledger, signature)
        ship(tracker, ledger, signature)
    complete(ledger, "done")  # and the driver died before it shipped it
    other = MlflowClient(uri).create_run("1", tags={"robustsweep.signature": "foreign", "robustsweep.kind": "trial"})
    later = make_tracker(uri, ledger)
    assert later.close_interrupted(resumed={"resumed"}) == 1
    states = {signature: run_of(uri, signature).info.status for signature in ("dead", "resumed", "done", "foreign")}
    assert states == {"dead": "KILLED", "resumed": "RUNNING", "done": "FINISHED", "foreign": "RUNNING"}
    assert run_of(uri, "foreign").info.run_id == other.info.run_id


def test_an_outcome_said_at_once_counts_for_nothing_before_the_run_has_ended(uri: str, ledger: Ledger) -> None:
    finished(ledger)

    class Dying(MlflowClient):
        def log_batch(self, *_: Any, **__: Any) -> None:
            raise OSError("the driver is killed here")

    first = make_tracker(uri, ledger)
    first._client = Dying(uri)
    with pytest.raises(TrackingError):
        ship(first, ledger)
    half = run_of(uri)
    assert (half.info.status, half.data.metrics) == ("RUNNING", {})
    assert int(half.data.tags["robustsweep.shipped"]) > 0
    second = make_tracker(uri, ledger)
    assert not second.has_shipped("t1", "complete")
    assert ship(second, ledger)
    assert second.has_shipped("t1", "complete")
    assert run_of(uri).info.run_id == half.info.run_id
    assert len(points_of(uri, "train/loss")) == 3


def test_a_failure_that_was_only_announced_is_forgotten_by_the_retry(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    fail(ledger)
    tracker = make_tracker(uri, ledger)
    tracker._client.log_inputs, log_inputs = None, tracker._client.log_inputs
    with pytest.raises(TypeError):
        ship(tracker, ledger)
    tracker._client.log_inputs = log_inputs
    ledger.folder("trial", "t1").remove("failure.json")
    add_epochs(ledger)
    complete(ledger)
    ship(tracker, ledger)
    assert "robustsweep.failure" not in run_of(uri).data.tags
    assert run_of(uri).info.status == "FINISHED"


def test_a_trial_made_again_after_damage_is_there_once(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    before, points = run_of(uri).info.run_id, points_of(uri, "robustness/mean_accuracy")
    ledger.folder("trial", "t1").remove("result.json")
    assert not ship(tracker, ledger)  # what it shows is still right
    assert run_of(uri).info.status == "FINISHED"
    complete(ledger, finished_ms=CREATED_MS + 99_000)
    assert not ship(tracker, ledger)  # the same values, computed later
    assert (run_of(uri).info.run_id, points_of(uri, "robustness/mean_accuracy")) == (before, points)
    add_epochs(ledger, first=4, last=4)  # trained anew, and otherwise
    complete(ledger, finished_ms=CREATED_MS + 99_000)
    assert ship(tracker, ledger)
    assert run_of(uri).info.run_id != before  # the other is deleted
    assert points_of(uri, "robustness/mean_accuracy") == [(0, 0.7, 99_000)]
    assert not ship(make_tracker(uri, ledger), ledger)


def test_a_second_run_of_a_signature_is_removed(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    kept = run_of(uri).info.run_id
    MlflowClient(uri).create_run("1", tags={"robustsweep.signature": "t1", "robustsweep.kind": "trial"})
    tracker.open()
    assert run_of(uri).info.run_id == kept


def test_a_second_run_that_says_the_outcome_too_is_removed(uri: str, ledger: Ledger) -> None:
    """As when the answer to a create_run was lost, and the server carried it out late."""
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    kept = run_of(uri)
    MlflowClient(uri).create_run("1", tags=kept.data.tags)
    tracker.open(query_all=True)
    assert run_of(uri).info.run_id == kept.info.run_id
    assert not ship(tracker, ledger)


def test_a_second_run_of_the_study_is_removed(uri: str, ledger: Ledger) -> None:
    """As when the answer to its create_run was lost, and the server carried it out late."""
    tracker = make_tracker(uri, ledger)
    client = MlflowClient(uri)
    for _ in range(4):  # MLflow sorts runs of the same time by their random ids
        client.create_run("1", start_time=CREATED_MS, tags={"robustsweep.kind": "study"})
    again = make_tracker(uri, ledger)
    assert again.parent_run_id == tracker.parent_run_id
    (left,) = client.search_runs(["1"], "tags.`robustsweep.kind` = 'study'")
    assert left.info.run_id == tracker.parent_run_id


def test_stages_are_runs_of_their_own_kind(uri: str, ledger: Ledger) -> None:
    begin(ledger, "s1", "stage")
    result = {"finished_ms": CREATED_MS + 5, "duration_seconds": 1.0, "metrics": {"ssl/final_loss": 0.5}}
    ledger.folder("stage", "s1").write_json("result.json", result | {"environment": {"device": "cpu"}})
    tracker = make_tracker(uri, ledger)
    assert ship(tracker, ledger, "s1", "stage")
    run = run_of(uri, "s1")
    assert run.data.tags["robustsweep.kind"] == "stage"
    assert run.data.metrics["ssl/final_loss"] == 0.5
    assert "replicate" not in run.data.params


def test_one_parent_run_that_reopens_and_holds_the_report(uri: str, ledger: Ledger) -> None:
    client = MlflowClient(uri)
    tracker = make_tracker(uri, ledger)
    tracker.log_report(b"<html>\xc3\xa9</html>", summary={"complete": 1, "missing": 1}, is_complete=False)
    parent = client.get_run(tracker.parent_run_id)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["robustsweep.summary.missing"] == "1"
    assert parent.data.tags["factor.pretraining"] == "scratch, imagenet"
    assert parent.data.tags["mlflow.note.content"] == "Does it hold?"
    artifact = client.download_artifacts(tracker.parent_run_id, "report.html")
    assert Path(artifact).read_bytes() == b"<html>\xc3\xa9</html>"
    assert len(list(Path(ledger.root.uri, "mlartifacts").rglob("report.html"))) == 1
    assert "robustsweep.ray_dashboard" not in parent.data.tags
    record_dashboard(ledger, "http://10.0.0.1:8265")
    again = make_tracker(uri, ledger)
    assert again.parent_run_id == tracker.parent_run_id
    assert client.get_run(again.parent_run_id).info.status == "RUNNING"
    assert client.get_run(again.parent_run_id).data.tags["robustsweep.ray_dashboard"] == "http://10.0.0.1:8265"
    again.close(is_complete=True)
    assert client.get_run(again.parent_run_id).info.status == "FINISHED"


def test_a_deleted_experiment_comes_back(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    ship(make_tracker(uri, ledger), ledger)
    MlflowClient(uri).delete_experiment("1")
    assert not ship(make_tracker(uri, ledger), ledger)
    assert run_of(uri).info.status == "FINISHED"


def test_a_deleted_run_is_refused_then_made_again(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    MlflowClient(uri).delete_run(run_of(uri).info.run_id)
    add_epochs(ledger)
    with pytest.raises(RefusedError, match="trial t1"):
        ship(tracker, ledger)
    tracker.open()
    assert ship(tracker, ledger)
    assert len(points_of(uri, "train/loss")) == 3


def test_more_runs_than_a_page(uri: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = [f"t{number}" for number in range(5)]
    tracker = make_tracker(uri, ledger)
    for signature in signatures:
        begin(ledger, signature)
        ship(tracker, ledger, signature)
    monkeypatch.setattr("orchestrator.tracking.client._RUNS_PER_PAGE", 2)
    assert sorted(make_tracker(uri, ledger)._runs) == signatures


def test_an_unreachable_server_is_named_without_its_password(ledger: Ledger) -> None:
    tracker = Tracker("http://me:hunter2@127.0.0.1:9", ledger, about=ledger.read_plan())
    with pytest.raises(TrackingError, match="robustsweep sync") as caught:
        tracker.open()
    assert "hunter2" not in str(caught.value)
    assert not tracker.is_open


def test_a_database_that_is_away_costs_one_attempt(ledger: Ledger) -> None:
    """MLflow's own ten take 100 s."""
    pytest.importorskip("psycopg2")
    attempts = []

    class Closing(BaseRequestHandler):
        def handle(self) -> None:
            attempts.append(self.client_address)

    with ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        uri = f"postgresql+psycopg2://me:hunter2@127.0.0.1:{server.server_address[1]}/db?sslmode=disable"
        try:
            with pytest.raises(TrackingError, match="closed the connection") as caught:
                Tracker(uri, ledger, about=ledger.read_plan()).open()
        finally:
            server.shutdown()
            thread.join()
    assert len(attempts) == 1
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("fault", ["answers 500", "hangs"])
def test_a_sick_server_costs_one_short_request(ledger: Ledger, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own seven retries would take minutes, and might create a run twice."""
    asked = []
    healed = threading.Event()

    class Sick(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if fault == "hangs":
                healed.wait(60)
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sick)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tracker = Tracker(f"http://127.0.0.1:{server.server_port}", ledger, about=ledger.read_plan())
        with pytest.raises(TrackingError):
            tracker.open()
    finally:
        healed.set()
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(asked) == 1


def test_what_is_there_to_be_opened(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    assert find_study(uri, "demo") == StudyPages("1", version("mlflow"), has_views=False, report_run_id=None)
    tracker.show_arms()
    tracker.log_report(b"<html></html>", summary={}, is_complete=True)
    assert find_study(uri, "demo") == StudyPages("1", version("mlflow"), True, tracker.parent_run_id)
    with pytest.raises(StudyError, match="'nonesuch'"):
        find_study(uri, "nonesuch")


def test_nothing_is_left_in_the_working_directory(
    uri: str, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    finished(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    tracker.log_report(b"<html></html>", summary={}, is_complete=True)
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_trial_that_was_stopped_early_ends_and_goes_on_in_the_same_run(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    add_epochs(ledger, last=2)
    ship(make_tracker(uri, ledger), ledger)
    stop(ledger)
    tracker = make_tracker(uri, ledger)
    assert ship(tracker, ledger)
    stopped = run_of(uri)
    assert (stopped.info.status, stopped.info.end_time) == ("KILLED", CREATED_MS + 2500)
    assert stopped.data.tags["robustsweep.stopped_early"].startswith("after epoch 2 of 3: validation/accuracy 0.7")
    assert not ship(tracker, ledger)
    assert tracker.has_shipped("t1", "stopped_early")
    assert not ship(make_tracker(uri, ledger), ledger)
    ledger.folder("trial", "t1").remove("stop.json")
    add_epochs(ledger, first=3)
    tracker = make_tracker(uri, ledger)
    assert ship(tracker, ledger)
    running = run_of(uri)
    assert running.info.status == "RUNNING"
    assert "robustsweep.stopped_early" not in running.data.tags
    complete(ledger)
    assert ship(tracker, ledger)
    finished = run_of(uri)
    assert (finished.info.status, finished.info.run_id) == ("FINISHED", stopped.info.run_id)
    assert len(points_of(uri, "train/loss")) == 3


def test_one_that_was_faster_than_its_stop_is_complete(uri: str, ledger: Ledger) -> None:
    begin(ledger)
    add_epochs(ledger)
    stop(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    complete(ledger)
    assert ship(tracker, ledger)
    run = run_of(uri)
    assert run.info.status == "FINISHED"
    assert "robustsweep.stopped_early" not in run.data.tags
