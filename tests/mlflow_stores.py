"""Real MLflow stores to test against: a fresh database, a server that can be killed, a client that counts, look-ups."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ledger_records import CREATED_MS

from orchestrator.ledger import Ledger
from orchestrator.mlflow_access import MlflowClient
from orchestrator.tracking import Tracker


def make_database(folder: Path, template: Path) -> str:
    """Return the URI of an empty database; the first call makes ``template``, which takes MLflow 2 s."""
    if not template.exists():
        MlflowClient(f"sqlite:///{template}").search_experiments()
    shutil.copy(template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


class Server:
    """``mlflow server`` over a database in ``folder``, on a port that stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class CountingClient:
    """Passes everything on to a client and remembers the names of the methods called."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return method(*args, **kwargs)

        return counted


def make_tracker(uri: str, ledger: Ledger) -> Tracker:
    tracker = Tracker(uri, ledger, about=ledger.read_plan())
    tracker.open()
    return tracker


def ship(tracker: Tracker, ledger: Ledger, signature: str = "t1", kind: str = "trial") -> bool:
    return tracker.ship(ledger.read(kind, signature))


def runs_of(uri: str, signature: str = "t1") -> list[Any]:
    client = MlflowClient(uri)
    return list(client.search_runs(["1"], f"tags.`robustsweep.signature` = '{signature}'"))


def run_of(uri: str, signature: str = "t1") -> Any:
    (run,) = runs_of(uri, signature)
    return run


def points_of(uri: str, key: str, signature: str = "t1") -> list[tuple[int, float, int]]:
    history = MlflowClient(uri).get_metric_history(run_of(uri, signature).info.run_id, key)
    return [(metric.step, metric.value, metric.timestamp - CREATED_MS) for metric in history]
