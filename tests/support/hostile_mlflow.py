"""A server that speaks as much of MLflow's REST API as a driver needs, and answers what a test wants. Tests only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_API = "/api/2.0/mlflow/"


class HostileMlflow:
    """A store of one experiment in memory, on 127.0.0.1; a context manager.

    Attributes:
        asked: method, path and ``Authorization`` header of every request.
        places: artifact URI of the experiment and of its runs; None: in the server, as MLflow's own does.
        twist: changes an answer, given its endpoint; the identity unless a test replaces it.
        intrude: answers a request in place of the server, and returns whether it has.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.places: str | None = None
        self.run_places: str | None = None
        self.twist: Callable[[str, dict[str, Any]], Any] = lambda endpoint, answer: answer
        self.intrude: Callable[[BaseHTTPRequestHandler], bool] = lambda request: False
        self.files: dict[str, bytes] = {}
        self._experiment: dict[str, Any] | None = None
        self._runs: dict[str, dict[str, Any]] = {}
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                store.treat(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HostileMlflow:
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def treat(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = urlsplit(request.path).path
        self.asked.append((request.command, path, request.headers.get("Authorization", "")))
        if self.intrude(request):
            request.close_connection = True
            return
        if path == "/version":
            reply(request, 200, b"3.17.2")
        elif path.startswith("/api/2.0/mlflow-artifacts/"):
            if request.command == "PUT":
                self.files[path.rsplit("/", 1)[-1]] = body
            reply(request, 200, json.dumps(self.twist("artifacts", {"files": []})).encode())
        elif path.startswith(_API):
            given = json.loads(body) if body else {}
            status, answer = self._answer(path.removeprefix(_API), given)
            reply(request, status, json.dumps(self.twist(path.removeprefix(_API), answer)).encode())
        else:
            reply(request, 404, b"{}")

    def _answer(self, endpoint: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer: dict[str, Any] = {"runs": []} if endpoint == "runs/search" else {}
        if endpoint in ("experiments/get-by-name", "experiments/get"):
            if self._experiment is None:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
            answer = {"experiment": self._experiment}
        elif endpoint == "experiments/create":
            about = {"experiment_id": "7", "name": given["name"], "lifecycle_stage": "active", "tags": []}
            self._experiment = about | {"artifact_location": self.places or "mlflow-artifacts:/7"}
            answer = {"experiment_id": "7"}
        elif endpoint == "runs/create":
            answer = {"run": self._create_run(given.get("tags", []))}
        elif endpoint == "runs/get":
            answer = {"run": next(iter(self._runs.values()))}
        elif endpoint == "runs/update":
            answer = {"run_info": self._runs[given["run_id"]]["info"]}
        return 200, answer

    def _create_run(self, tags: list[Any]) -> dict[str, Any]:
        run_id = f"{len(self._runs):032x}"
        place = self.run_places or f"{self.places or 'mlflow-artifacts:/7'}/{run_id}/artifacts"
        info: dict[str, Any] = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "7", "status": "RUNNING"}
        info |= {"artifact_uri": place, "lifecycle_stage": "active", "run_name": "x", "start_time": 1}
        data = {"tags": tags, "metrics": [], "params": []}
        self._runs[run_id] = {"info": info, "data": data, "inputs": {}}
        return self._runs[run_id]


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> bool:
    """Send an answer; return that there is one."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
    return True
