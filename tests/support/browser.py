"""A headless Chromium driven over WebDriver's HTTP interface, for pages that draw themselves."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRIVERS = ("chromedriver",)


def find_program(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


has_browser = find_program(CHROMIUMS) is not None and find_program(DRIVERS) is not None


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        _request(f"{self._session}/url", {"url": "about:blank"})  # a change of the fragment alone loads nothing
        _request(f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what the body of a JavaScript function returns."""
        return _request(f"{self._session}/execute/sync", {"script": script, "args": []})

    def wait_for(self, condition: str, seconds: float = 60.0) -> float:
        """Wait until a JavaScript expression is true; return the seconds that took."""
        started = time.monotonic()
        while not self.run(f"return Boolean({condition})"):
            if time.monotonic() > started + seconds:
                raise AssertionError(f"{condition} after {seconds} s; the page: {self.text()[:2000]}")
            time.sleep(0.05)
        return time.monotonic() - started

    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def save_picture(self, target: Path) -> None:
        target.write_bytes(base64.b64decode(_request(f"{self._session}/screenshot")))


@contextmanager
def open_browser(folder: Path, *, width: int = 1400, height: int = 900) -> Iterator[Browser]:
    """Yield a window; ``folder`` takes the browser's profile."""
    driver, chromium = find_program(DRIVERS), find_program(CHROMIUMS)
    assert driver is not None
    assert chromium is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        arguments += ["--hide-scrollbars", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        options = {"binary": chromium, "args": arguments}
        asked = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        address = f"http://127.0.0.1:{port}/session"
        session = f"{address}/{_wait_for_session(address, asked)['sessionId']}"
        try:
            yield Browser(session)
        finally:
            _request(session, method="DELETE")
    finally:
        process.terminate()
        process.wait()


def _wait_for_session(address: str, asked: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        try:
            found: dict[str, Any] = _request(address, asked)
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return found


def _request(address: str, content: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]
