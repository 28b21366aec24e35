"""What a cluster has on its head: an object store, and MLflow's server over PostgreSQL. Tests only, Linux only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.hosts import Host, Hosts
from tests.support.object_stores import serve_s3
from tests.support.postgres import Postgres
from tests.support.processes import wait_until

BUCKET, PORT = "studies", 5000
#: Makes a bucket.
_MAKE_BUCKET = """
import os, sys
from tests.support.object_stores import connect
connect(os.environ).mkdir(sys.argv[1])
"""
#: Looks at a study in the storage argv[1] and in MLflow at argv[2]: each run and each value once, as the ledger has it.
_LOOK = """
import json, sys
from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.support.mlflow_stores import check_shown, show
ledger = Ledger(sys.argv[1], "tiny")
shown = show(sys.argv[2], "tiny")
check_shown(shown, ledger)
trials = {record.signature: record for record in ledger.records("trial")}
print(json.dumps({
    "results": results_sha256(load_results(ledger)),
    "epochs": {signature: [line["epoch"] for line in record.epochs] for signature, record in trials.items()},
    "claims": list((ledger.root / "claims").children()),
    "runs": [each.tags["robustsweep.kind"] for each in shown.values()],
}))
"""
#: Prints the epochs in the ledger of the storage argv[1], of all trials.
_COUNT_EPOCHS = """
import sys
from orchestrator.ledger.ledger import Ledger
print(sum(len(record.epochs) for record in Ledger(sys.argv[1], "tiny").records("trial")))
"""
#: Prints the ms that a connection to argv[1]:argv[2] takes: a round trip.
_CONNECT = """
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
print((time.monotonic() - began) * 1000)
"""
#: Of every Python process: notes the files and folders that are renamed to a place in the cache.
_WATCH = """
import os, sys
def note(event, arguments):
    if event == "os.rename":
        place = os.fsdecode(arguments[1])
        if place.startswith(os.environ["WATCHED"] + "/"):
            notes = os.open(os.environ["TMPDIR"] + "/built.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(notes, os.path.relpath(place, os.environ["WATCHED"]).encode() + b"\\n")
            os.close(notes)
sys.addaudithook(note)
"""
_NOTES = "built.txt"
_SECONDS = 120.0


@dataclass(frozen=True)
class Services:
    """Storage and MLflow of all hosts; ``serving`` yields it."""

    head: Host
    storage: str
    #: Port of the storage.
    port: int
    mlflow: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Options of ``robustsweep``."""
        return ("--storage", self.storage, "--mlflow", self.mlflow)

    def look(self) -> dict[str, Any]:
        """Check that MLflow shows what the ledger has; return what there is, as the head sees it."""
        found: dict[str, Any] = json.loads(_run_python(self.head, _LOOK, self.storage, self.mlflow))
        return found

    def count_epochs(self) -> int:
        """Return how many epochs of trials the ledger has."""
        return int(_run_python(self.head, _COUNT_EPOCHS, self.storage))

    def measure_round_trip(self, host: Host) -> float:
        """Return the ms that a round trip from a host to the storage takes."""
        return float(_run_python(host, _CONNECT, self.head.address, str(self.port)))


def _run_python(host: Host, program: str, *words: str) -> str:
    done = subprocess.run([*host.prefix, sys.executable, "-c", program, *words], capture_output=True, text=True,
                          check=False, timeout=_SECONDS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(hosts: Hosts) -> Iterator[Services]:
    """Run the services on the first host, with a bucket; all that is started on the hosts from now on finds them."""
    head = hosts.hosts[0]
    with (
        serve_s3(address=head.address, prefix=head.prefix) as environment,
        Postgres(prefix=head.prefix) as postgres,
        _serving_mlflow(head, postgres.uri.replace("postgresql:", "postgresql+psycopg2:")) as mlflow,
    ):
        hosts.set_environment(environment)
        _run_python(head, _MAKE_BUCKET, BUCKET)
        port = int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        yield Services(head, f"s3://{BUCKET}/some/where", port, mlflow)


@contextmanager
def _serving_mlflow(head: Host, uri: str) -> Iterator[str]:
    """Run MLflow's server; yield its URL, with the head's name."""
    log = head.scratch / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", head.address, "--port", str(PORT), "--workers", "1"]
    command += ["--allowed-hosts", f"{head.name}:{PORT}", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(head.scratch / "artifacts")]
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*head.prefix, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", *command],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: _answers(head) or server.poll() is not None, "MLflow answers", _SECONDS)
        assert server.poll() is None, log.read_text()
        yield f"http://{head.name}:{PORT}"
    finally:
        with suppress(ProcessLookupError):  # it has ended, which the test is told
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(head: Host) -> bool:
    words = [*head.prefix, "bash", "-c", f"exec 3<>/dev/tcp/{head.address}/{PORT}"]
    return subprocess.run(words, capture_output=True, check=False, timeout=_SECONDS).returncode == 0


def watch_cache(hosts: Hosts, cache: Path) -> None:
    """Make every process of the hosts, from now on, note what it puts in place in ``cache``; see ``list_built``."""
    folder = hosts.scratch / "watch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_WATCH)
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    hosts.set_environment({"PYTHONPATH": path, "WATCHED": str(cache)})


def list_built(hosts: Hosts, host: Host) -> list[str]:
    """Return what the processes of a host have put in place in their cache, relative to it, once for each time."""
    notes = hosts.scratch / f"tmp-{host.name}" / _NOTES
    return notes.read_text().splitlines() if notes.exists() else []


def measure_shared_memory(host: Host) -> int:
    """Return how many bytes a host's shared memory holds: pages that Ray's object store has ever used stay there."""
    found = os.statvfs(Path("/proc", str(host.first_pid), "root", "dev", "shm"))
    return (found.f_blocks - found.f_bfree) * found.f_frsize
