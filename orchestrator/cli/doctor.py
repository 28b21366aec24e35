"""Checks of this machine for a study: Python, packages, device, storage, MLflow and Ray."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import ssl
import sys
import tempfile
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.tracking.addresses import DENIALS, TrackingError, strip_credentials
from orchestrator.tracking.server import check_access, open_here
from trainables.cpus import count_cpus
from trainables.errors import ConfigError, StorageError, redact
from trainables.storage.folder import Folder

_PACKAGES = ("ray", "mlflow", "optuna", "torch", "torchvision", "timm", "lightly", "numpy", "pydantic")
#: Least free disk space for a ledger; checkpoints of a large network fill this quickly.
_MIN_FREE_GIB = 5.0
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """Result of one check. ``ok`` is False only if a study cannot run on this machine as it is."""

    what: str
    ok: bool
    found: str


def examine(*, storage: str, mlflow: str | None, address: str | None) -> list[Finding]:
    """Return the findings of all checks. Each server has ``_TIMEOUT_SECONDS`` to answer."""
    return [*_examine_python(), _examine_device(), *_examine_storage(storage), *_examine_servers(mlflow, address)]


def _examine_python() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", (3, 11) <= sys.version_info[:2] < (3, 14), f"{version} at {sys.executable}")
    for package in _PACKAGES:
        try:
            yield Finding(package, True, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, False, f"not installed; pip install {package}")


def _examine_device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("device", True, ", ".join(names))
    return Finding("device", True, f"no GPU; {count_cpus()} CPU cores")


def _examine_storage(storage: str) -> Iterator[Finding]:
    try:
        folder = Folder(storage)
        folder.write(".doctor", b"written by robustsweep doctor")
        folder.remove(".doctor")
        yield Finding("storage", True, f"{folder.uri} can be written")
    except (StorageError, ConfigError) as error:
        yield Finding("storage", False, str(error))
        return
    if folder.is_local:
        free = shutil.disk_usage(folder.uri).free / 2**30
        yield Finding("disk", free > _MIN_FREE_GIB, f"{free:.0f} GiB free for the ledger")
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    yield Finding("scratch", free > 1.0, f"{free:.0f} GiB free in {tempfile.gettempdir()}")
    # As torch does: for a user without a home folder the ~ stays.
    hub = Path(os.path.expanduser(os.environ.get("TORCH_HOME", "~/.cache/torch")), "hub", "checkpoints")
    weights = sorted(path.name for path in hub.glob("*.pth")) if hub.is_dir() else []
    yield Finding(
        "weights", True, f"{len(weights)} files in {hub}" + (f": {', '.join(weights[:5])}" if weights else "")
    )


def _examine_servers(mlflow: str | None, address: str | None) -> Iterator[Finding]:
    uri = mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        yield Finding("MLflow", True, "a SQLite file beside the ledger")
    elif uri.startswith("http"):
        yield _ask(uri)
    else:
        yield Finding("MLflow", True, redact(uri))
    if address is None:
        yield Finding("Ray", True, "a local one is started for each run")
    else:
        yield _reach(address)


def _ask(uri: str) -> Finding:
    try:
        try:
            open_here(f"{strip_credentials(uri)}/health", timeout_seconds=_TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in DENIALS:
                raise
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):
                raise
            from orchestrator.tracking.client import require_access  # importing it imports MLflow: 2 s

            require_access(uri, "/health")  # MLflow's settings may name another authority
        check_access(uri)
    except TrackingError as error:
        return Finding("MLflow", False, str(error))
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("MLflow", False, redact(f"{uri} does not answer: {error}"))
    return Finding("MLflow", True, f"{redact(uri)} answers")


def _reach(address: str) -> Finding:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if parts.hostname is None or parts.port is None:
        return Finding("Ray", address == "auto", f"{address}: expected host:port, ray://host:port or auto")
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=_TIMEOUT_SECONDS).close()
    except OSError as error:
        return Finding("Ray", False, f"{address} cannot be reached: {error}")
    return Finding("Ray", True, f"{address} accepts connections")


def render_findings(findings: list[Finding], console: Console) -> None:
    """Print the findings as a table, failed checks in red."""
    table = Table("", "looked at", "found")
    for finding in findings:
        table.add_row("[green]ok[/green]" if finding.ok else "[red]no[/red]", finding.what, escape(finding.found))
    console.print(table)
