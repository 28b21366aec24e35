"""A Ray head with a job server on this machine, as ``ray start`` starts it. Tests only, Linux only."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import find_marked, wait_until


@dataclass(frozen=True)
class Head:
    """A running head; ``variables`` let a process of this machine talk to it."""

    address: str
    folder: Path
    variables: dict[str, str]


def _find_ports(number: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def running_head(marker: str, *, num_cpus: int = 2) -> Iterator[Head]:
    """Yield a head that asks for a token; its processes and its jobs' carry ``marker`` in their environment."""
    gcs, dashboard, agent, client = _find_ports(4)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables = os.environ | token | {"ROBUSTSWEEP_TEST": marker, "COLUMNS": "200", "NO_COLOR": "1"}
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        variables.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="rs-", ignore_cleanup_errors=True) as folder:
        with Path(folder, "head.log").open("w") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={gcs}",
                 "--include-dashboard=true", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
                 f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0",
                 f"--temp-dir={folder}/ray", f"--num-cpus={num_cpus}", "--num-gpus=0",
                 "--object-store-memory=100000000", "--disable-usage-stats", "--block"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True,
                cwd=folder,
            )  # fmt: skip
        try:
            wait_until(
                lambda: "Ray runtime started" in Path(folder, "head.log").read_text() or process.poll() is not None,
                "the head is up",
            )
            assert process.poll() is None, Path(folder, "head.log").read_text()
            yield Head(f"http://127.0.0.1:{dashboard}", Path(folder, "ray"), token)
        finally:
            for pid in find_marked(marker):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(60)
            wait_until(lambda: not find_marked(marker), "nothing is left of the head")
