from __future__ import annotations

import http.client
import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from orchestrator.tracking.addresses import TrackingError
from orchestrator.tracking.client import TrialRuns
from orchestrator.tracking.server import MAX_COMPARED_RUNS, make_links, serve_ui
from orchestrator.tracking.shipper import sync
from tests.support.ledger_records import finished, make_ledger
from trainables.errors import StudyError


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ui")
    ledger = make_ledger(folder)
    finished(ledger)
    uri = f"sqlite:///{folder}/mlflow.db"
    sync(ledger, uri)
    return uri


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_the_server_answers_shows_the_study_and_leaves_no_process(uri: str) -> None:
    with serve_ui(uri, "demo") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert 'id="root"' in get(server.compare_url.split("#")[0])
        assert '"demo"' in get(f"{server.url}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=demo")
        group = server._process.pid
        os.killpg(group, 0)
        with pytest.raises(StudyError, match="--port"):
            serve_ui(uri, "demo", port=int(server.url.rsplit(":", 1)[1]))
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    server.wait()


def ask(server: str, path: str, host: str) -> int:
    """Return the status of the answer to a browser that believes to talk to ``host``."""
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_server_answers_this_machine_only_and_leaves_its_folder_to_nobody(uri: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("private")
    with serve_ui(uri, "demo") as server:
        port = int(server.url.rsplit(":", 1)[1])
        listening = Path("/proc/net/tcp").read_text().upper()
        assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
        assert f"00000000:{port:04X} 00000000:0000 0A" not in listening
        assert ask(server.url, "/health", "127.0.0.1") == 200
        run = server.links.compare.split("%22")[1]
        list_page = "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=demo"
        assert ask(server.url, list_page, "127.0.0.1") == 200
        assert ask(server.url, list_page, "elsewhere.example") == 403  # DNS rebinding
        for climb in ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12, "..%252f" * 12, "/"):
            where = f"{climb}{str(tmp_path / 'outside')[1:]}"
            assert ask(server.url, f"/get-artifact?run_uuid={run}&path={where}", "127.0.0.1") != 200
            assert ask(server.url, f"/static-files/{where}", "127.0.0.1") != 200


def test_a_server_that_does_not_start_shows_its_log(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "localhost")
    monkeypatch.setattr("orchestrator.tracking.server.sys.executable", "/bin/false")
    with pytest.raises(TrackingError, match="exit code 1"):
        serve_ui(uri, "demo")


def test_a_study_that_is_not_there_starts_nothing(uri: str) -> None:
    with pytest.raises(StudyError, match="'nonesuch'"):
        serve_ui(uri, "nonesuch")


def test_links_are_those_of_mlflows_pages() -> None:
    links = make_links("http://h", TrialRuns("7", ["a", "b"], ["shift/jpeg/auroc", "shift/jpeg/balanced_accuracy"]))
    assert links.compare == "http://h/#/compare-runs?runs=[%22a%22,%22b%22]&experiments=[%227%22]"
    assert links.curves is not None
    query = urllib.parse.parse_qs(links.curves.split("?", 1)[1])
    assert query["metric"] == ['"shift/jpeg/balanced_accuracy"']
    assert query["x_axis"] == ["step"]


def test_links_compare_no_more_than_mlflow_can_show() -> None:
    links = make_links("http://h", TrialRuns("7", [str(number) for number in range(250)], []))
    assert links.compare.count("%22") == 2 * MAX_COMPARED_RUNS + 2
    assert (links.num_compared, links.num_trials, links.curves) == (MAX_COMPARED_RUNS, 250, None)


def test_a_taken_port_is_told(uri: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StudyError, match="--port"):
            serve_ui(uri, "demo", port=taken.getsockname()[1])
