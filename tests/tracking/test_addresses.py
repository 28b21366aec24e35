from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger.databases import create_database, is_database_server
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.addresses import resolve_tracking_uri
from orchestrator.tracking.artifacts import choose_artifact_location
from trainables.errors import StudyError, redact


def resolve(ledger: Ledger, flag: str | None = None, study: str | None = None, variable: str | None = None) -> str:
    environment = {} if variable is None else {"MLFLOW_TRACKING_URI": variable}
    return resolve_tracking_uri(ledger, flag=flag, study_value=study, environment=environment)


def test_the_flag_then_the_environment_then_the_study_then_beside_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "demo")
    assert resolve(ledger, "http://flag", "http://study", "http://variable") == "http://flag"
    assert resolve(ledger, None, "http://study", "http://variable") == "http://variable"
    assert resolve(ledger, None, "http://study/") == "http://study"
    assert resolve(ledger) == f"sqlite:///{tmp_path}/demo/mlflow.db"


def test_a_relative_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger("runs", "demo")
    assert resolve(ledger, "sqlite:///a/b.db?timeout=30") == f"sqlite:///{tmp_path}/a/b.db?timeout=30"
    assert resolve(ledger, "sqlite:////data/b.db") == "sqlite:////data/b.db"
    assert resolve(ledger) == f"sqlite:///{tmp_path}/runs/demo/mlflow.db"


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///tmp/mlruns", "ftp://x", "http", "sqlite://", "sqlite:///:memory:"]
)
def test_what_mlflow_cannot_share_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StudyError, match=r"sqlite:///runs/mlflow\.db"):
        resolve(Ledger(str(tmp_path), "demo"), uri)


def test_postgresql_means_the_driver_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, installed = Ledger(str(tmp_path), "demo"), ["psycopg"]
    monkeypatch.setattr("orchestrator.ledger.databases.find_spec", lambda name: name if name in installed else None)
    assert resolve(ledger, "postgresql://me:pw@host:5/db") == "postgresql+psycopg://me:pw@host:5/db"
    installed.append("psycopg2")
    assert resolve(ledger, "postgresql://me:pw@host:5/db") == "postgresql+psycopg2://me:pw@host:5/db"
    installed.clear()
    assert resolve(ledger, "postgresql+pg8000://host/db") == "postgresql+pg8000://host/db"  # the user knows
    with pytest.raises(StudyError, match="psycopg2-binary") as caught:
        resolve(ledger, "postgresql://me:hunter2@host/db")
    assert "hunter2" not in str(caught.value)


def test_a_remote_ledger_needs_a_store_of_its_own() -> None:
    with pytest.raises(StudyError, match="--mlflow"):
        resolve(Ledger("s3://bucket/runs", "demo"))


def test_artifacts_of_a_database_lie_beside_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "a b"), "demo")
    assert choose_artifact_location("sqlite:////x.db", ledger) == f"file://{tmp_path}/a%20b/demo/mlartifacts"
    assert choose_artifact_location("http://host", ledger) is None
    assert choose_artifact_location("postgresql://h/d", Ledger("s3://b", "demo")) == "s3://b/demo/mlartifacts"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@host/x",
        "postgresql+psycopg2://me:hunter2@host:5432/db failed",
        "no http://host?token=hunter2&a=1",
        "mysql://h/d?ssl_password=hunter2",
        "http://me:hun@hunter2@host",
    ],
)
def test_secrets_are_never_shown(text: str) -> None:
    shown = redact(text)
    assert "hunter2" not in shown
    assert "h" in shown.split("://", 1)[1]


# ------------------------------------------------------------------ a new SQLite file


def test_a_database_is_created_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "below" / "mlflow.db"
    uri = f"sqlite:///{path}"

    def file_of(other: str) -> Path:
        return Path(other.removeprefix("sqlite:///"))

    def half(other: str) -> None:
        file_of(other).write_bytes(b"half")
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_database(uri, half)
    assert list(path.parent.iterdir()) == []
    create_database(uri, lambda other: file_of(other).write_bytes(b"whole"))
    assert [(each.name, each.read_bytes()) for each in path.parent.iterdir()] == [("mlflow.db", b"whole")]
    create_database(uri, lambda other: pytest.fail("it is there already"))
    path.unlink()

    def slow(other: str) -> None:
        path.write_bytes(b"another process was faster")
        file_of(other).write_bytes(b"whole")

    create_database(uri, slow)
    assert [each.read_bytes() for each in path.parent.iterdir()] == [b"another process was faster"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("postgresql+psycopg2://h/d", True), ("mysql://h/d", True), ("sqlite:////x.db", False), ("http://h", False)],
)
def test_databases_over_the_network_are_known(uri: str, expected: bool) -> None:
    assert is_database_server(uri) is expected


def test_servers_make_their_own_tables() -> None:
    for uri in ("http://127.0.0.1:5000", "postgresql://user@host/db"):
        create_database(uri, lambda other: pytest.fail("nothing is to be made"))
