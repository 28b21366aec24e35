"""Answers of an MLflow server that means harm: nothing is run, written elsewhere, shown to others, or waited for."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.registry import _has_network
from orchestrator.tracking.addresses import RefusedError, TrackingError
from orchestrator.tracking.client import MlflowClient, attach_page, connect, find_study, open_place, translating_errors
from orchestrator.tracking.guard import answers
from orchestrator.tracking.guard.places import check_identifier, check_place
from orchestrator.tracking.registry.models import download_file, upload_model
from orchestrator.tracking.server import check_access
from orchestrator.tracking.shipper import sync
from orchestrator.tracking.tracker import Tracker
from tests.conftest import FinishedStudy
from tests.support.hostile_mlflow import HostileMlflow, reply
from tests.support.ledger_records import finished, make_ledger
from tests.support.tiny_study import copy_place

#: What a terminal would obey: clear the screen, set the title, go back to the line's start, turn the text round.
STEERING = "\x1b[2J\x1b]0;owned\x07\r\x9b1m\u202e"
USER = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "password-1f6e"}
OUTSIDE = [
    "file:///etc", "/etc", "../../etc", "file:../../etc", "c:\\windows", "ftp://user@host/x", "sftp://host/x",
    "runs:/1/x", "models:/a/1", "http://example.org/x", "mlflow-artifacts://example.org/7", "https://127.0.0.1/x",
]  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileMlflow]:
    for name, value in USER.items():
        monkeypatch.setenv(name, value)
    with HostileMlflow() as server:
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = make_ledger(tmp_path / "results", ("t1",))
    finished(ledger)
    return ledger


def is_plain(text: str) -> bool:
    """Return whether a terminal would obey nothing in a text."""
    return all(character.isprintable() or character in "\n\t" for character in text)


def test_the_server_of_these_tests_is_good_enough_to_be_believed(server: HostileMlflow, ledger: Ledger) -> None:
    assert sync(ledger, server.url).shipped == 1
    assert "config.yaml" in server.files


# --------------------------------------------------------------------------- where files lie


@pytest.mark.parametrize("place", OUTSIDE)
def test_no_file_goes_where_the_server_says(
    server: HostileMlflow, ledger: Ledger, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    server.places = place
    tracker = Tracker(server.url, ledger, about=ledger.read_plan())
    with pytest.raises(RefusedError, match=r"files of runs lie in .*nothing is written there"):
        tracker.open()
    server.places, server.run_places = None, place  # the experiment is innocent, its runs are not
    other = HostileMlflow()
    with other:
        other.run_places = place
        tracker = Tracker(other.url, ledger, about=ledger.read_plan())
        tracker.open()
        with pytest.raises(RefusedError, match="nothing is written there"):
            tracker.ship(ledger.read("trial", "t1"))
        with pytest.raises(RefusedError, match="nothing is written there"):
            tracker.log_report(b"page", summary={}, is_complete=True)
    assert sorted(os.listdir(tmp_path)) == before
    assert other.files == server.files == {}


def test_pages_and_models_go_nowhere_else_either(server: HostileMlflow, tmp_path: Path) -> None:
    target = tmp_path / "target"
    lies = {"run_id": "1" * 32, "run_uuid": "1" * 32, "experiment_id": "7", "status": "RUNNING",
            "artifact_uri": target.as_uri(), "lifecycle_stage": "active"}  # fmt: skip
    about = {"experiment_id": "7", "name": "x", "lifecycle_stage": "active", "artifact_location": "mlflow-artifacts:/7"}
    model = {"model_id": "m-1", "experiment_id": "7", "artifact_uri": target.as_uri(), "status": "LOGGED_MODEL_READY"}

    def twist(endpoint: str, answer: dict[str, Any]) -> dict[str, Any]:
        if endpoint == "experiments/get-by-name":
            return {"experiment": about}
        if endpoint == "runs/search":
            return {"runs": [{"info": lies, "data": {}, "inputs": {}}]}
        if endpoint.startswith("logged-models/"):
            return {"model": {"info": model}}
        if endpoint == "model-versions/get-download-uri":
            return {"artifact_uri": target.as_uri()}
        return answer

    MlflowClient(server.url).create_experiment("x")
    server.twist = twist
    for ask in (
        lambda: attach_page(server.url, "x", "page.html", "text"),
        lambda: find_study(server.url, "x"),
        lambda: upload_model(MlflowClient(server.url), "m-1", tmp_path),
        lambda: download_file(MlflowClient(server.url, server.url), "a", "1", "data/model.pt2", tmp_path / "copy"),
    ):
        with pytest.raises(RefusedError, match="nothing is written there"):
            ask()
    assert not target.exists()


def test_places_that_are_used() -> None:
    for place in ("mlflow-artifacts:/7/x", "mlflow-artifacts://host:5000/7", "http://host:5000/api/x", "s3://bucket/x",
                  "gs://bucket/x", "abfss://c@account/x", "oss://bucket/x"):  # fmt: skip
        check_place("http://user:word@host:5000", place)
    check_place("sqlite:////somewhere/mlflow.db", "file:///anywhere/1/x/artifacts", within="file:///anywhere/1")
    check_place("postgresql://host/x", "/anywhere/1/x/artifacts", within="/anywhere/1")


def test_a_folder_that_the_user_has_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("/nfs/runs/7", "file:///nfs/runs/7/x/artifacts", "file:///nfs/runs"):
        with pytest.raises(RefusedError, match="name it in ROBUSTSWEEP_ARTIFACT_ROOT"):
            check_place("http://host:5000", place)
    monkeypatch.setenv("ROBUSTSWEEP_ARTIFACT_ROOT", "/nfs/runs")
    for place in ("/nfs/runs/7", "file:///nfs/runs/7/x/artifacts", "file:///nfs/runs"):
        check_place("http://host:5000", place)
    for place in (
        "/nfs/runs/../x",
        "file:///nfs/other",
        "file://elsewhere/nfs/runs/7",
        "/etc",
        "sftp://host/nfs/runs/7",
    ):
        with pytest.raises(RefusedError, match="nothing is written there"):
            check_place("http://host:5000", place)


@pytest.mark.parametrize("place", ["file:///etc", "/a/../etc", "file:///a/%2e%2e/etc", "s3://a/b", "file://host/a/b"])
def test_files_of_a_run_lie_in_its_experiment(place: str) -> None:
    with pytest.raises(RefusedError, match="outside of those of its experiment"):
        check_place("sqlite:////a/mlflow.db", place, within="file:///a")


def test_the_store_of_a_hostile_ledger_leads_nowhere(ledger: Ledger, tmp_path: Path) -> None:
    database, target = Path(ledger.root.uri, "mlflow.db"), tmp_path / "target"
    sync(ledger, f"sqlite:///{database}")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE runs SET artifact_uri = ?", [target.as_uri()])
        connection.execute("DELETE FROM tags WHERE key = 'robustsweep.shipped'")
    tracker = Tracker(f"sqlite:///{database}", ledger, about=ledger.read_plan())
    tracker.open(query_all=True)
    with pytest.raises(RefusedError, match="outside of those of its experiment"):
        tracker.ship(ledger.read("trial", "t1"))
    assert not target.exists()


def test_names_of_files_lead_nowhere(server: HostileMlflow, tmp_path: Path) -> None:
    for name in ("../../x", "/etc/passwd", "a/../../x", "%2e%2e/x"):
        server.twist = lambda endpoint, answer, name=name: (
            {"files": [{"path": name, "is_dir": False, "file_size": 1}]} if endpoint == "artifacts" else answer
        )
        with pytest.raises(TrackingError), translating_errors(server.url, "look"):
            open_place(server.url, "mlflow-artifacts:/7/1").download_artifacts("", dst_path=str(tmp_path))
    assert os.listdir(tmp_path) == []


# --------------------------------------------------------------------------- what is shown


def test_messages_of_the_server_do_not_steer_the_terminal(
    server: HostileMlflow, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    lie = f"{STEERING}<script>alert(1)</script>\nerror: all is well\n"

    def intrude(request: BaseHTTPRequestHandler) -> bool:
        if "runs/search" in request.path:
            reply(request, 400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": %s}' % json_bytes(lie))
        return "runs/search" in request.path

    server.intrude = intrude
    place = copy_place(finished_study.place, tmp_path)
    done = place.call("sync", "--mlflow", server.url, **USER)
    assert done.returncode == 3
    assert is_plain(done.stdout + done.stderr)
    assert r"\x1b[2J\x1b]0;owned\x07\r\x9b1m\u202e" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: all")] == []


def json_bytes(text: str) -> bytes:
    return json.dumps(text).encode()


@pytest.mark.parametrize("lie", [f"7{STEERING}", "7/../8", "7\n8", "7&x=<script>", "", "7" * 1000])
def test_identifiers_that_mlflow_does_not_make_are_refused(server: HostileMlflow, ledger: Ledger, lie: str) -> None:
    with pytest.raises(RefusedError) as error:
        check_identifier(lie)
    assert is_plain(str(error.value))
    sync(ledger, server.url)

    def twist(endpoint: str, answer: Any) -> Any:
        if isinstance(answer.get("experiment"), dict):
            return {"experiment": answer["experiment"] | {"experiment_id": lie}}
        return answer

    server.twist = twist
    with pytest.raises(TrackingError):
        find_study(server.url, "demo")
    with pytest.raises(TrackingError):
        Tracker(server.url, ledger, about=ledger.read_plan()).open()


@pytest.mark.parametrize(
    "answer",
    [[], 5, "text", None, {"experiment": 5}, {"experiment": {"tags": 5}}, {"experiment": {"experiment_id": {}}},
     {"experiment": {"tags": [{"key": 1}]}}, {"runs": {}}, {"run": []}],
    ids=repr,
)  # fmt: skip
def test_answers_of_any_form_are_an_error_of_ours(server: HostileMlflow, ledger: Ledger, answer: Any) -> None:
    server.twist = lambda endpoint, true: answer
    with pytest.raises(TrackingError):
        Tracker(server.url, ledger, about=ledger.read_plan()).open()


# --------------------------------------------------------------------------- whom is asked, how much is read


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(server: HostileMlflow, ledger: Ledger, status: int) -> None:
    with HostileMlflow() as other:
        server.intrude = lambda request: reply(request, status, b"", Location=f"{other.url}{request.path}")
        check_access(server.url)
        tracker = Tracker(server.url, ledger, about=ledger.read_plan())
        with pytest.raises(TrackingError, match=r"redirects to http://127\.0\.0\.1, where no request follows"):
            tracker.open()
    assert any(shown for _, _, shown in server.asked)
    assert other.asked == []


def send_without_end(request: BaseHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(b"[" * 2**16)
    except OSError:
        return True


def send_drops(request: BaseHTTPRequestHandler) -> bool:
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    try:
        while True:
            request.wfile.write(b" ")
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        return True


def send_bomb(request: BaseHTTPRequestHandler) -> bool:
    return reply(request, 200, gzip.compress(b" " * 2**26), **{"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("send", "said"),
    [(send_without_end, "is larger than 8 MiB"), (send_bomb, "is larger than 8 MiB"),
     (send_drops, "has not ended after 1 s")],
)  # fmt: skip
def test_an_answer_has_an_end(
    server: HostileMlflow,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    send: Callable[[BaseHTTPRequestHandler], bool],
    said: str,
) -> None:
    monkeypatch.setattr(answers, "MAX_BYTES", 8 * 2**20)
    monkeypatch.setattr(answers, "MAX_SECONDS", 1.0)
    server.intrude = send
    with pytest.raises(TrackingError, match=said):
        Tracker(server.url, ledger, about=ledger.read_plan()).open()


def test_pages_have_an_end(server: HostileMlflow, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.client._MAX_PAGES", 7)
    server.twist = lambda endpoint, answer: (
        {"runs": [], "next_page_token": "more"} if endpoint == "runs/search" else answer
    )
    with pytest.raises(TrackingError, match="7 pages"):
        Tracker(server.url, ledger, about=ledger.read_plan()).open()


def test_a_long_message_is_cut_before_it_is_searched(server: HostileMlflow) -> None:
    message = b'{"error_code": "INTERNAL_ERROR", "message": "' + b"token" * 2**21 + b'"}'
    server.intrude = lambda request: reply(request, 500, message)
    with pytest.raises(TrackingError) as error, translating_errors(server.url, "ask"):
        connect(server.url).search_experiments()
    assert len(str(error.value)) < 2000


# --------------------------------------------------------------------------- models


def test_a_model_of_the_server_is_compared_and_never_loaded(server: HostileMlflow, tmp_path: Path) -> None:
    """A ``.pt2`` whose texts torch would evaluate, with other code beside it: its bytes differ, and that is all."""
    target = tmp_path / "exploded"
    bomb = f"__import__('os').mkdir({str(target)!r})"
    ours, theirs = tmp_path / "ours" / "data", tmp_path / "theirs"
    ours.mkdir(parents=True)
    theirs.mkdir()
    for folder, text in ((ours, "{}"), (theirs, bomb)):
        with zipfile.ZipFile(folder / "model.pt2", "w") as archive:
            archive.writestr("model/models/model.json", text)

    def intrude(request: BaseHTTPRequestHandler) -> bool:
        is_model = urlsplit(request.path).path.endswith("model.pt2")
        if is_model:
            reply(request, 200, (theirs / "model.pt2").read_bytes())
        return is_model

    server.intrude = intrude
    server.twist = lambda endpoint, answer: (
        {"artifact_uri": "mlflow-artifacts:/7/models/m-1/artifacts"} if "download-uri" in endpoint else answer
    )
    client = MlflowClient(server.url, server.url)
    assert not _has_network(client, "a", "1", tmp_path / "ours")
    (theirs / "model.pt2").write_bytes((ours / "model.pt2").read_bytes())
    assert _has_network(client, "a", "1", tmp_path / "ours")
    assert not target.exists()
