from __future__ import annotations

import http.client
import os
import socket
import urllib.request
from pathlib import Path

import pytest

from orchestrator.tracking.addresses import TrackingError
from orchestrator.tracking.client import MlflowClient, StudyPages
from orchestrator.tracking.server import make_links, open_page, serve_ui
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


def test_the_server_answers_this_machine_shows_the_study_and_leaves_no_process(uri: str, tmp_path: Path) -> None:
    with serve_ui(uri, "demo") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert 'id="root"' in get(server.links.by_arm.split("#")[0])
        assert server.links.problem is None
        assert '"demo"' in get(f"{server.url}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=demo")
        group = server._process.pid
        os.killpg(group, 0)
        with pytest.raises(StudyError, match="--port"):
            serve_ui(uri, "demo", port=int(server.url.rsplit(":", 1)[1]))
        check_it_answers_this_machine_only_and_leaves_its_folder_to_nobody(server.url, uri, tmp_path)
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


def check_it_answers_this_machine_only_and_leaves_its_folder_to_nobody(server: str, uri: str, folder: Path) -> None:
    (folder / "outside").write_text("private")
    port = int(server.rsplit(":", 1)[1])
    listening = Path("/proc/net/tcp").read_text().upper()
    assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
    assert f"00000000:{port:04X} 00000000:0000 0A" not in listening
    assert ask(server, "/health", "127.0.0.1") == 200
    run = MlflowClient(uri).search_runs(["1"])[0].info.run_id
    list_page = "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=demo"
    assert ask(server, list_page, "127.0.0.1") == 200
    assert ask(server, list_page, "elsewhere.example") == 403  # DNS rebinding
    for climb in ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12, "..%252f" * 12, "/"):
        where = f"{climb}{str(folder / 'outside')[1:]}"
        assert ask(server, f"/get-artifact?run_uuid={run}&path={where}", "127.0.0.1") != 200
        assert ask(server, f"/static-files/{where}", "127.0.0.1") != 200


def test_a_server_that_does_not_start_shows_its_log(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "localhost")
    monkeypatch.setattr("orchestrator.tracking.server.sys.executable", "/bin/false")
    with pytest.raises(TrackingError, match="exit code 1"):
        serve_ui(uri, "demo")


def test_a_study_that_is_not_there_starts_nothing(uri: str) -> None:
    with pytest.raises(StudyError, match="'nonesuch'"):
        serve_ui(uri, "nonesuch")


def test_links_are_short_and_those_of_mlflows_pages() -> None:
    address, run_id = "http://mlflow.radiology.example.org:5000/tracking", "f" * 32
    links = make_links(address, StudyPages("123456789", "3.17.2", True, run_id))
    assert links.by_arm == (
        f"{address}/#/experiments/123456789/runs?workflowType=machine_learning&viewStateShareKey=by-arm"
        "&compareRunsMode=CHART"
    )
    assert links.report == f"{address}/#/experiments/123456789/runs/{run_id}/artifacts/report.html"
    lines = links.describe()
    assert [line.split()[0] for line in lines] == ["by", "trials", "report"]
    assert all(len(link) <= 200 for link in (links.by_arm, links.trials, links.report) if link is not None)


@pytest.mark.parametrize(
    ("version", "has_views", "reason"),
    [
        ("3.18.0", True, "is 3.18.0, views are for MLflow 3.17: this is the plain page"),
        (None, True, "tells no version"),
        ("3.17.2", False, "no views yet, `robustsweep sync` makes them"),
    ],
)
def test_without_a_view_the_plain_page_is_linked_with_the_reason(
    version: str | None, has_views: bool, reason: str
) -> None:
    links = make_links("http://h", StudyPages("7", version, has_views, None))
    assert (links.by_arm, links.trials) == ("http://h/#/experiments/7/runs?workflowType=machine_learning", None)
    lines = links.describe()
    assert lines[0] == f"runs     {links.by_arm}"
    assert lines[1].startswith("no view  ")
    assert reason in lines[1]
    assert lines[2] == "report   none yet: the study has not ended"


def test_no_browser_is_started_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not open_page("http://h")
    monkeypatch.setenv("DISPLAY", ":0")
    assert open_page("http://h")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert not open_page("http://h")
    assert opened == ["http://h"]


def test_a_taken_port_is_told(uri: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StudyError, match="--port"):
            serve_ui(uri, "demo", port=taken.getsockname()[1])
