"""A server that wants a password: what is said of a wrong one, when, and what is kept silent."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.doctor import examine
from orchestrator.tracking.addresses import DeniedError, TrackingError
from orchestrator.tracking.client import MlflowClient, translating_errors
from orchestrator.tracking.server import check_access
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.tracker import Tracker
from tests.support.faulty_proxy import AWAY, ERROR_500, FORBID, PASS, UNKNOWN, FaultyProxy, encode_user
from tests.support.ledger_records import finished, make_ledger
from tests.support.processes import wait_until
from tests.support.tiny_study import make_place

NAME, PASSWORD = "team", "password-7d20bb1e"
SECRETS = (PASSWORD, encode_user(NAME, PASSWORD).split()[1], encode_user(NAME, "wrong-4be1").split()[1], "wrong-4be1")
VARIABLES = {"MLFLOW_TRACKING_USERNAME": NAME, "MLFLOW_TRACKING_PASSWORD": PASSWORD}


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    """Before nothing: what it lets through is answered with 502."""
    with FaultyProxy("http://127.0.0.1:9", user=(NAME, PASSWORD)) as proxy:
        yield proxy


def log_in(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    for name, value in (VARIABLES | {"MLFLOW_TRACKING_PASSWORD": password}).items():
        monkeypatch.setenv(name, value)


def check_said(said: str, status: int = 401) -> None:
    assert f"HTTP {status}" in said
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    assert ("--allowed-hosts" in said) == (status == 403)
    assert not any(secret in said for secret in SECRETS)


def test_a_wrong_or_missing_password_is_no_outage(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeniedError) as missing:
        check_access(proxy.url)
    check_said(str(missing.value))
    log_in(monkeypatch, "wrong-4be1")
    for uri in (proxy.url, proxy.url.replace("://", "://team:wrong-4be1@")):
        with pytest.raises(DeniedError) as wrong:
            check_access(uri)
        check_said(str(wrong.value))
    assert proxy.counts[PASS] == 0


@pytest.mark.parametrize("is_in_address", [False, True])
def test_the_right_password_is_found_where_mlflow_looks_for_it(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, is_in_address: bool
) -> None:
    uri = proxy.url
    if is_in_address:
        uri = uri.replace("://", f"://{NAME}:{PASSWORD}@")
    else:
        log_in(monkeypatch, PASSWORD)
    check_access(uri)
    assert proxy.counts == {UNKNOWN: 1, PASS: 1}  # the first question shows no password


def test_an_outage_is_no_denial(proxy: FaultyProxy) -> None:
    proxy.user = None
    for fault in (PASS, ERROR_500, AWAY):
        proxy.switch(fault)
        check_access(proxy.url)
    check_access("sqlite:////nowhere/mlflow.db")


def test_forbidden_names_permissions_and_hosts(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    log_in(monkeypatch, PASSWORD)
    proxy.switch(FORBID)
    with pytest.raises(DeniedError) as error:
        check_access(proxy.url)
    check_said(str(error.value), 403)
    with pytest.raises(DeniedError) as error, translating_errors(proxy.url, "find experiments"):
        MlflowClient(proxy.url).search_experiments()
    check_said(str(error.value), 403)


def test_what_a_server_repeats_of_the_credentials_is_not_shown() -> None:
    echo = f"500 for {encode_user(NAME, PASSWORD)} and Bearer {PASSWORD}"
    with pytest.raises(TrackingError) as error, translating_errors("http://host", "ask"):
        raise OSError(echo)
    assert "500 for Basic *** and Bearer ***" in str(error.value)
    assert not any(secret in str(error.value) for secret in SECRETS)


def test_a_denial_is_said_also_in_an_outage_and_nobody_waits_for_it(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_in(monkeypatch, PASSWORD)
    ledger = make_ledger(tmp_path)
    finished(ledger)
    tracker = Tracker(proxy.url, ledger, about=ledger.read_plan())
    shipper = Shipper(lambda: tracker, ledger, interval_seconds=0.01)
    with caplog.at_level(logging.WARNING):
        shipper.start()
        shipper.notify("trial", "t1")
        wait_until(lambda: "pauses" in caplog.text, "the outage is told")
        proxy.user = (NAME, "another")  # changed while the study runs
        assert shipper.finish(1000) == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "HTTP 401" not in said[0]
    check_said(said[1])
    assert shipper.problem in said[1]


def test_a_run_ends_before_it_writes_or_reads_anything(proxy: FaultyProxy, tmp_path: Path) -> None:
    place = make_place(tmp_path, tmp_path / "cache")
    done = place.call("run", "--mlflow", proxy.url, **VARIABLES | {"MLFLOW_TRACKING_PASSWORD": "wrong-4be1"})
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    check_said(done.stderr.replace("\n", " "))
    assert not any(secret in done.stdout for secret in SECRETS)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_doctor_tells_a_server_that_lets_nobody_in(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = (each for each in examine(storage="", mlflow=proxy.url, address=None) if each.what == "MLflow")
    assert not found.ok
    check_said(found.found)
    log_in(monkeypatch, PASSWORD)
    (found,) = (each for each in examine(storage="", mlflow=proxy.url, address=None) if each.what == "MLflow")
    assert found.ok
