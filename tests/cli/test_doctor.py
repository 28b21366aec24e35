from __future__ import annotations

import pwd
import socket
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.doctor import Finding, examine, render_findings


def findings(**arguments: str | None) -> dict[str, Finding]:
    given = {"storage": "", "mlflow": None, "address": None} | arguments
    return {finding.what: finding for finding in examine(**given)}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_machine_that_runs_the_tests_can_run_a_study(tmp_path: Path) -> None:
    found = findings(storage=str(tmp_path / "results"))
    assert {"python", "ray", "mlflow", "torch", "device", "storage", "disk", "scratch", "weights", "MLflow", "Ray"} <= (
        set(found)
    )
    assert [name for name, finding in found.items() if not finding.ok and name != "disk"] == []
    assert found["torch"].found[0].isdecimal()
    assert list((tmp_path / "results").iterdir()) == []  # it cleans up after itself


def test_a_user_without_a_home_folder_is_told_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getpwuid(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    found = {finding.what: finding for finding in examine(storage=str(tmp_path), mlflow=None, address=None)}
    assert found["weights"] == Finding("weights", True, "0 files in ~/.cache/torch/hub/checkpoints")


def test_storage_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = findings(storage=str(tmp_path / "file" / "results"))
    assert not found["storage"].ok
    assert "could not write" in found["storage"].found
    assert not findings(storage="nonsense://bucket")["storage"].ok


def test_servers_that_do_not_answer_are_found_and_passwords_are_not_shown(tmp_path: Path) -> None:
    port = free_port()
    found = findings(storage=str(tmp_path), mlflow=f"http://me:hunter2@127.0.0.1:{port}", address=f"127.0.0.1:{port}")
    for name in ("MLflow", "Ray"):
        assert not found[name].ok
        assert str(port) in found[name].found
        assert "hunter2" not in found[name].found


def test_a_ray_that_listens_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        assert findings(storage=str(tmp_path), address=address)["Ray"].ok
    assert findings(storage=str(tmp_path), address="auto")["Ray"].ok
    assert not findings(storage=str(tmp_path), address="no-port")["Ray"].ok


def test_the_table_shows_what_was_found_literally() -> None:
    console = Console(file=StringIO(), width=100)
    render_findings([Finding("storage", False, "[/] could not be written [red]"), Finding("disk", True, "9")], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[/] could not be written [red]" in text
    assert "no" in text
