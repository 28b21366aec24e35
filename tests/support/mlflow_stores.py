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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger.derived import TABLES
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.tracker import Tracker
from tests.support.ledger_records import CREATED_MS


def make_database(folder: Path, template: Path) -> str:
    """Return the URI of an empty database; the first call makes ``template``, which takes MLflow 2 s."""
    if not template.exists():
        MlflowClient(f"sqlite:///{template}").search_experiments()
    shutil.copy(template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


class Server:
    """``mlflow server``, on a port that stays the same over restarts.

    Args:
        folder: folder of its files.
        store: URI of its database; None for an SQLite file in ``folder``.
        num_workers: number of its processes.
        options: further options of the command.
        variables: further variables of its environment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: str | None = None,
        num_workers: int = 1,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._store = store or f"sqlite:///{folder}/server.db"
        self._options = ["--workers", str(num_workers), *options]
        self._variables = variables or {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), *self._options]
        environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": self._store,  # not an argument: everybody on the machine could read a password
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **self._variables,
        }
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

    def lose_everything(self) -> None:
        """Kill it, delete its database and all artifacts, start it again."""
        self.kill()
        for path in self.folder.glob("server.db*"):
            path.unlink()
        shutil.rmtree(self.folder / "artifacts")
        self.start()


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


@dataclass(frozen=True)
class Shown:
    """All that MLflow shows of one run, without what it makes up itself (ids, times of the study's own run)."""

    status: str
    params: dict[str, str]
    tags: dict[str, str]
    #: (key, step, value, timestamp) of every value, sorted.
    points: list[tuple[str, int, float, int]]
    artifacts: list[str]
    datasets: list[tuple[str, str]]


def show(uri: str, study: str, points: Mapping[str, Sequence[Any]] | None = None) -> dict[str, Shown]:
    """Return signature → run of a study that MLflow shows; its own run is called ``study``. None may be there twice.

    Args:
        uri: address of the store.
        study: name of the study.
        points: values of each run; None asks MLflow, metric by metric.
    """
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    shown = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        tags, run_id = run.data.tags, run.info.run_id
        kind = tags["robustsweep.kind"]
        name = tags.get("robustsweep.signature", f"arm {tags['robustsweep.arm']}" if kind == "arm" else kind)
        assert name not in shown
        if points is None:
            history = [point for key in run.data.metrics for point in client.get_metric_history(run_id, key)]
        else:
            history = list(points.get(run_id, ()))
        shown[name] = Shown(
            run.info.status,
            run.data.params,
            {
                key: value
                for key, value in tags.items()
                if key.startswith(("robustsweep.", "factor.", "mlflow.runName"))
            },
            sorted((point.key, point.step, point.value, point.timestamp) for point in history),
            sorted(artifact.path for artifact in client.list_artifacts(run_id)),
            [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs],
        )
    return shown


def check_shown(shown: dict[str, Shown], ledger: Ledger) -> None:
    """Every record once and ended, with its values; the study's own run with the report."""
    check_records(shown, ledger)
    assert shown["study"].artifacts == sorted({"report.html", *TABLES})


def check_records(shown: dict[str, Shown], ledger: Ledger) -> None:
    """Every record once and ended, its epochs as ``epochs.jsonl`` has them, its results as of when it ended."""
    records = {record.signature: record for kind in ("stage", "trial") for record in ledger.records(kind)}
    shown = {name: each for name, each in shown.items() if not name.startswith("arm ")}
    assert set(shown) == {"study", *records}
    assert {each.status for each in shown.values()} == {"FINISHED"}
    for signature, record in records.items():
        each = shown[signature]
        times = Counter((key, step) for key, step, _, _ in each.points)
        assert set(times.values()) == {1}, f"twice in {signature}: {[key for key, n in times.items() if n > 1]}"
        epochs = [
            (name_in_mlflow(key), line["epoch"], value, line["timestamp_ms"])
            for line in record.epochs
            for key, value in line["metrics"].items()
        ]
        assert record.result is not None
        of_epochs = {(key, step) for key, step, _, _ in epochs}
        assert [point for point in each.points if point[:2] in of_epochs] == sorted(epochs)
        others = [point for point in each.points if point[:2] not in of_epochs]
        assert {moment for _, _, _, moment in others} == {record.result["finished_ms"]}
        values = {(key, value) for key, _, value, _ in others}
        assert {(key, value) for key, value in record.result["metrics"].items()} <= values
        assert len(each.datasets) == 1


def name_in_mlflow(key: str) -> str:
    """Return the key that an epoch's metric of the ledger has in MLflow."""
    return "validation/nll" if key == "val/loss" else key.replace("val/", "validation/")
