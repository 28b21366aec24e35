"""A sick way to a healthy HTTP server: passes requests on or treats them badly, switchable meanwhile. Tests only."""

from __future__ import annotations

import base64
import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: What a request may meet. Of ``lose`` and ``late`` every second one, at random: it is carried out and its answer lost,
#: or it is carried out when whoever asked may have given up; of ``throttle`` it is refused as one of too many.
PASS, SLOW, ERROR_500, ERROR_503, CLOSE, HANG, GARBAGE, LOSE, LATE, AWAY, FORBID, THROTTLE = (
    "pass", "slow", "500", "503", "close", "hang", "garbage", "lose", "late", "away", "403", "throttle",
)  # fmt: skip
#: What happens, whatever the fault of the moment, to a request without the right user name and password.
UNKNOWN = "401"
#: What S3 says to those who ask too often.
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
#: Fault → status, body and headers of its answer.
_ANSWERS = {
    GARBAGE: (200, b"<html>Please log in</html>", [("Content-Type", "text/html")]),
    ERROR_500: (500, b"<html>upstream is not well</html>", [("Content-Type", "text/html")]),
    ERROR_503: (503, b"<html>upstream is not well</html>", [("Content-Type", "text/html")]),
    THROTTLE: (503, _SLOW_DOWN, [("Content-Type", "application/xml")]),
}
_NOT_PASSED_ON = ("connection", "transfer-encoding", "content-length")


class FaultyProxy:
    """A proxy on 127.0.0.1 before the server at ``target``; a context manager.

    Args:
        target: address of the server.
        seconds: by how much ``slow`` and ``late`` delay a request.
        seed: of ``lose`` and ``late``.
        user: user name and password that every request has to show (HTTP's basic authentication); None for nobody's.
    """

    def __init__(
        self, target: str, *, seconds: float = 5.0, seed: int = 0, user: tuple[str, str] | None = None
    ) -> None:
        self.user = user
        self._host = urlsplit(target).netloc
        self._seconds = seconds
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._healed = threading.Event()
        self.fault = PASS
        #: Share of the requests that ``lose``, ``late`` and ``throttle`` affect.
        self.share = 0.5
        #: What happened to how many requests.
        self.counts: Counter[str] = Counter()
        self._server: ThreadingHTTPServer | None = None
        self._listen(0)

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.switch(AWAY)

    @property
    def url(self) -> str:
        """The address, the same however often it went away."""
        return f"http://127.0.0.1:{self.port}"

    def switch(self, fault: str) -> None:
        """Treat every request from now on like this; ``away`` refuses connections."""
        self._healed.set()  # those that hang are let go
        self._healed = threading.Event()
        self.fault = fault
        if fault == AWAY and self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        elif fault != AWAY and self._server is None:
            self._listen(self.port)

    def _listen(self, port: int) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # boto sends a body only when it is told to continue

            def log_message(self, *_: object) -> None:
                pass

            def __getattr__(self, name: str) -> object:
                if name.startswith("do_"):
                    return lambda: proxy.treat(self)
                raise AttributeError(name)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def treat(self, request: BaseHTTPRequestHandler) -> None:
        """Do to a request what the fault of the moment does."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        fault = self.fault
        with self._lock:
            if self.user is not None and request.headers.get("Authorization") != encode_user(*self.user):
                fault = UNKNOWN
            if fault in (LOSE, LATE, THROTTLE) and self._random.random() >= self.share:
                fault = PASS
            self.counts[fault] += 1
        if fault in (SLOW, LATE):
            time.sleep(self._seconds)
        elif fault == HANG:
            self._healed.wait()
        if fault in (PASS, SLOW, LATE, LOSE):
            status, headers, answer = self._forward(request, body)
            if fault != LOSE:
                _answer(request, status, answer, headers)
        elif fault in (UNKNOWN, FORBID):  # as nginx says it
            asks = [("WWW-Authenticate", 'Basic realm="MLflow"')] if fault == UNKNOWN else []
            page = {UNKNOWN: b"<html>401 Authorization Required</html>", FORBID: b"<html>403 Forbidden</html>"}[fault]
            _answer(request, int(fault), page, [("Content-Type", "text/html"), *asks])
        elif fault in _ANSWERS:
            _answer(request, *_ANSWERS[fault])
        request.close_connection = True

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            headers = {key: value for key, value in request.headers.items() if key.lower() != "connection"}
            connection.request(request.command, request.path, body, headers | {"Host": self._host})
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        except OSError:  # the server behind is away
            return 502, [], b"bad gateway"
        finally:
            connection.close()


def encode_user(name: str, password: str) -> str:
    """Return the header ``Authorization`` of HTTP's basic authentication."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
    try:
        request.send_response(status)
        request.send_header("Connection", "close")
        for key, value in headers:
            if key.lower() not in _NOT_PASSED_ON:
                request.send_header(key, value)
        size = next((value for key, value in headers if key.lower() == "content-length"), "0")
        request.send_header("Content-Length", size if request.command == "HEAD" else str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
    except OSError:
        pass  # who asked has given up
