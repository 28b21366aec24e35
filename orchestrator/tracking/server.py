"""MLflow's own web server for a study's store, on this machine only, links to the study's pages, access to a server."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from orchestrator.tracking.addresses import DENIALS, DeniedError, TrackingError, strip_credentials
from orchestrator.tracking.views import BY_ARM, KNOWN_VERSIONS, TRIALS, is_known, make_path, make_report_path
from trainables.errors import StudyError, redact

if TYPE_CHECKING:
    from orchestrator.tracking.client import StudyPages

_POLL_SECONDS = 0.2
_STOP_SECONDS = 10.0
_TAIL_LINES = 20
#: A question that every user of a server may ask.
_PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"
_PROBE_SECONDS = 5.0


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: an answer sends this process nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_StayHere)


@dataclass(frozen=True)
class Links:
    """URLs of a study's pages, each of at most 200 characters below a short address."""

    #: Charts of the arms; without views the plain page of all runs.
    by_arm: str
    #: Table of all trials; None without views.
    trials: str | None
    #: The report, None before there is one.
    report: str | None
    #: Why there are no views; None if there are.
    problem: str | None = None

    def describe(self) -> list[str]:
        """Return a line per page, and one with the reason if there are no views."""
        pages = [f"by arm   {self.by_arm}", f"trials   {self.trials}"]
        if self.problem is not None:
            pages = [f"runs     {self.by_arm}", f"no view  {self.problem}"]
        return [*pages, f"report   {self.report or 'none yet: the study has not ended'}"]


class UiServer:
    """Running server, started here or elsewhere; as a context manager it stops a server that was started here.

    Attributes:
        url: address of the server.
        links: pages of the study.
    """

    def __init__(self, url: str, links: Links, process: subprocess.Popen[bytes] | None) -> None:
        self.url = url
        self.links = links
        self._process = process

    def __enter__(self) -> UiServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> None:
        """Wait until the server has ended; return at once if it was started elsewhere."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """Stop the server and its workers; do nothing if it was started elsewhere."""
        if self._process is not None:
            _stop(self._process)


def serve_ui(tracking_uri: str, study: str, *, port: int | None = None, timeout_seconds: float = 60.0) -> UiServer:
    """Start a server for the store of ``tracking_uri`` and return it when it answers.

    For an http address nothing is started: the server at that address is returned.

    Args:
        tracking_uri: absolute URI, see ``resolve_tracking_uri``.
        study: name of the study whose pages are linked.
        port: port on 127.0.0.1; None chooses a free one.
        timeout_seconds: longest wait for the first answer; 6 s are usual.

    Raises:
        StudyError: the port is taken, or MLflow has no such study.
        TrackingError: the store cannot be read, or the server did not start; the message ends with the server's log.
    """
    from orchestrator.tracking.client import find_study  # importing it imports MLflow: 2 s

    shown = find_study(tracking_uri, study)
    if tracking_uri.startswith(("http:", "https:")):
        url = strip_credentials(tracking_uri)
        return UiServer(url, make_links(url, shown), None)
    port = _choose_port(port)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = _start(tracking_uri, port, log)
        try:
            _wait_until_healthy(url, process, log, timeout_seconds)
        except BaseException:
            _stop(process)
            raise
    return UiServer(url, make_links(url, shown), process)


def make_links(url: str, shown: StudyPages) -> Links:
    """Return the links to a study's pages below ``url``.

    Source: the routes ``experiments`` and ``runs`` of MLflow 3.17's pages.
    """
    experiment = shown.experiment_id
    report = None
    if shown.report_run_id is not None:
        report = f"{url}/{make_report_path(experiment, shown.report_run_id)}"
    problem = None
    if not is_known(shown.version):
        found = "tells no version" if shown.version is None else f"is {shown.version}"
        problem = f"MLflow's server {found}, views are for MLflow {', '.join(KNOWN_VERSIONS)}: this is the plain page"
    elif not shown.has_views:
        problem = "the study has no views yet, `robustsweep sync` makes them: this is the plain page"
    if problem is not None:
        return Links(f"{url}/{make_path(experiment, None)}", None, report, problem)
    return Links(f"{url}/{make_path(experiment, BY_ARM)}", f"{url}/{make_path(experiment, TRIALS)}", report)


def open_page(url: str) -> bool:
    """Open a page in a web browser if somebody sits at this terminal with a desktop; return whether one was asked to.

    Without a desktop Python would start a browser for terminals in this one.
    """
    has_desktop = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return sys.stdout.isatty() and has_desktop and webbrowser.open(url)


def _choose_port(port: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise StudyError(
                f"could not serve on 127.0.0.1:{port}: {error.strerror}; give another --port, or none for a free one"
            ) from error
        return int(probe.getsockname()[1])


def _start(tracking_uri: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri,  # not an argument: everybody on the machine could read a password
        # The server reports usage to MLflow's vendor unless told not to; the second is the general convention.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Runners for scheduled scoring of language models: 3 more processes, of no use here.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # its workers end with it: stop() signals the whole session
    )


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: IO[bytes], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(_POLL_SECONDS)
    log.seek(0)
    tail = "\n".join(redact(log.read().decode(errors="replace")).splitlines()[-_TAIL_LINES:])
    found = "no answer" if process.poll() is None else f"exit code {process.returncode}"
    raise TrackingError(
        f"started MLflow's server on {url} and found {found} within {timeout_seconds:.0f} s; "
        f"read the end of its log:\n{tail}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def open_here(url: str, *, timeout_seconds: float) -> Any:
    """Return the answer to a request without credentials; a redirection is an ``HTTPError``."""
    return _OPENER.open(url, timeout=timeout_seconds)


def check_access(uri: str) -> None:
    """Raise if a server accepts no request of this process; a server that cannot be reached passes, as an outage.

    Asks without credentials first, which needs no MLflow; a server that wants some is asked again by MLflow's client,
    since there are many ways to give them.

    Args:
        uri: absolute URI, see ``resolve_tracking_uri``; a database passes.

    Raises:
        DeniedError: the server answers 401 or 403.
    """
    if not uri.startswith(("http:", "https:")) or not _wants_credentials(uri):
        return
    from orchestrator.tracking.client import require_access  # importing it imports MLflow: 2 s

    try:
        require_access(uri, _PROBE)
    except DeniedError:
        raise
    except TrackingError:
        return  # an outage: the ledger keeps what MLflow lacks


def _wants_credentials(uri: str) -> bool:
    """Return whether a server denies a request without credentials, or could only be asked by MLflow's client."""
    try:
        open_here(strip_credentials(uri) + _PROBE, timeout_seconds=_PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code in DENIALS
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # MLflow's settings may name another authority
    except (OSError, http.client.HTTPException):
        return False
    return False
