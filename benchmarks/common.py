"""What the benchmarks share: the study they run, timing, the JSON line each claim ends with, a name for the machine."""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Synthetic ledgers are written with the results that the tests use.
sys.path.append(str(ROOT))

#: A trial of 1.4 to 1.9 s on one core: see ``docs/performance.md``. 12 arms of 2 × 6 levels.
STUDY = """\
study: bench
question: What does scheduling cost?
data: {kind: digits, image_size: 16}
model: {name: timm/test_resnet, input_size: 16, stem: original}
training: {epochs: EPOCHS, batch_size: 64}
evaluation: {shifts: [gaussian_noise], severities: [3], store_features: []}
factors:
  regulariser: [none, label_smoothing]
  training.learning_rate: [LEVELS]
replicates: REPLICATES
execution: {cache_dir: CACHE, device: cpu}
"""
EPOCHS = 4


@dataclass(frozen=True)
class Place:
    """A study file and the root of its ledger."""

    study: Path
    storage: Path

    def start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        """Start ``robustsweep``; what it prints goes to ``output.txt`` beside the ledger."""
        self.storage.mkdir(parents=True, exist_ok=True)
        with open(self.storage / "output.txt", "ab") as output:
            words = [sys.executable, "-m", "robustsweep", command, str(self.study), "--storage", str(self.storage)]
            return subprocess.Popen([*words, *options], stdout=output, stderr=output, env=environment(), cwd=ROOT)

    def call(self, command: str, *options: str) -> float:
        """Run ``robustsweep`` to its end; return the seconds from the start of its process to its end.

        Raises:
            RuntimeError: it did not end with exit code 0.
        """
        started = time.perf_counter()
        code = self.start(command, *options).wait()
        seconds = time.perf_counter() - started
        if code != 0:
            text = (self.storage / "output.txt").read_text(errors="replace")
            raise RuntimeError(f"robustsweep {command} ended with exit code {code}:\n{text[-3000:]}")
        return seconds


def make_place(
    folder: Path, name: str, *, levels: int, replicates: int, cache_dir: Path, epochs: int = EPOCHS
) -> Place:
    """Write a study of 2 × ``levels`` arms into ``folder``; its ledger will lie below ``folder/name``."""
    rates = ", ".join(f"{1e-3 * (1 + number / 1000):.6f}" for number in range(levels))
    values = {"EPOCHS": epochs, "LEVELS": rates, "REPLICATES": replicates, "CACHE": cache_dir}
    return Place(fill_study(STUDY, values, folder / f"{name}.yaml"), folder / name)


def fill_study(text: str, values: Mapping[str, Any], path: Path) -> Path:
    """Write ``text`` with its words in capitals replaced by their values to ``path``, and return it."""
    for key, value in values.items():
        text = text.replace(key, str(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def environment() -> dict[str, str]:
    """Return the environment of every measured process: one thread per trial, no tracking server of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return kept | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}


def time_process(words: Sequence[str]) -> float:
    """Return the seconds that a command takes; its output is dropped.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started = time.perf_counter()
    subprocess.run(words, check=True, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def median_of(repeat: int, measure: Callable[[], float]) -> float:
    """Return the median of ``repeat`` measurements."""
    return statistics.median(measure() for _ in range(repeat))


@dataclass(frozen=True)
class Line:
    """One claim and what was measured of it; a ratio above 1 is better than the peer, or than the bar."""

    benchmark: str
    ratio: float
    bar: float
    facts: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the ratio reaches its bar."""
        return self.ratio >= self.bar

    def as_json(self) -> dict[str, Any]:
        """Return the JSON line, numbers rounded to what can be read."""
        head = {"benchmark": self.benchmark, "ratio": self.ratio, "bar": self.bar, "ok": self.ok}
        return _round({**head, **self.facts, "machine": describe_machine()})

    def emit(self) -> None:
        """Print the JSON line."""
        print(json.dumps(self.as_json()), flush=True)


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _round(below) for key, below in value.items()}
    return [_round(below) for below in value] if isinstance(value, list | tuple) else value


def describe_machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, memory in GiB, versions."""
    names = ("torch", "ray", "mlflow")
    return {
        "cpu": platform.processor() or platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    } | {name: _find_version(name) for name in names}


def _find_version(package: str) -> str:
    """Return the version of a package; "absent" where a benchmark needs no ray or mlflow and there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Yield the address of an MLflow server over a SQLite database in ``folder``.

    Raises:
        RuntimeError: it does not answer within two minutes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    settings = environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server.txt", "ab") as log:
        server = subprocess.Popen(words, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", folder / "server.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait_until_healthy(url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the MLflow server did not answer within 120 s; its log:\n{log.read_text()[-2000:]}")
