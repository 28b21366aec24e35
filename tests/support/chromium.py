"""A headless Chromium that tests steer by pipe (Chrome DevTools Protocol): no port, no package. Tests only."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)

#: Chromium reads commands from file descriptor 3 and writes answers to 4.
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Page:
    """One tab. Sizes are CSS px, as a device of that width shows them."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self._buffer, self._number, self._session = b"", 0, ""
        #: Events since the last ``open``: method → parameters of each.
        self.events: dict[str, list[dict[str, Any]]] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a command.

        Raises:
            RuntimeError: the browser refused it, or said nothing for a minute.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        number = self._number
        while (answer := self._read()).get("id") != number:
            self.events.setdefault(answer.get("method", ""), []).append(answer.get("params", {}))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + 60
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0.0, until - time.monotonic()))[0]:
                raise RuntimeError("the browser said nothing for a minute")
            self._buffer += os.read(self._answers, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, path: Path, *, width: int, height: int, dark: bool = False) -> Self:
        """Load a file as a device of that size shows it, and wait until it is loaded."""
        return self.visit(path.resolve().as_uri(), width=width, height=height, dark=dark)

    def visit(self, url: str, *, width: int, height: int, dark: bool = False) -> Self:
        """Load a page as a device of that size shows it, and wait until it is loaded."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self.events:
            answer = self._read()
            self.events.setdefault(answer.get("method", ""), []).append(answer.get("params", {}))
        return self

    def wait_for(self, condition: str, seconds: float = 30.0) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            AssertionError: it is not after some time.
        """
        until = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > until:
                text = self.evaluate("document.body.innerText")
                raise AssertionError(f"{condition} after {seconds} s; the page: {text}")
            time.sleep(0.03)

    def press(self, key: str) -> None:
        """Press and release a key, by its name in DOM events."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def mouse(self, kind: str, x: float, y: float, *, shift: bool = False) -> None:
        """Send a mouse event: mouseMoved, mousePressed or mouseReleased."""
        button = "none" if kind == "mouseMoved" else "left"
        more = {"clickCount": 1, "modifiers": 8 * shift}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, **more)

    def click(self, x: float, y: float) -> None:
        """Move the mouse to a point of the window and click."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)

    @contextmanager
    def inside_frame(self) -> Iterator[None]:
        """Steer the page's one frame of another origin instead of the page, until the context ends.

        ``watch_frames`` has to be called before the page is loaded.
        """
        until = time.monotonic() + 30
        while "Target.attachedToTarget" not in self.events:
            assert time.monotonic() < until, "no frame of another origin"
            self.evaluate("0")
            time.sleep(0.03)
        outside, self._session = self._session, self.events["Target.attachedToTarget"][-1]["sessionId"]
        try:
            for domain in ("Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            yield
        finally:
            self._session = outside

    def watch_frames(self) -> None:
        """Attach to frames of another origin, which are processes of their own."""
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)

    def resize(self, width: int, height: int) -> None:
        """Show the page on a device of that size."""
        is_mobile = width < 500
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_mobile
        )

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, awaited.

        Raises:
            RuntimeError: it threw.
        """
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def photograph(self, target: Path, *, whole: bool = False) -> None:
        """Write a PNG of what is in view, or of the whole page."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(image["data"]))

    def print(self, target: Path) -> None:
        """Write the page as PDF, A4."""
        found = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        target.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """Yield a page of a headless Chromium, which ends with the block.

    Args:
        profile: empty folder for the browser's own files.
    """
    assert browser_path is not None
    (read_commands, commands), (answers, write_answers) = os.pipe(), os.pipe()
    # Above 9, so that duplicating one to 3 or 4 does not close the other.
    theirs = [fcntl.fcntl(each, fcntl.F_DUPFD, 10) for each in (read_commands, write_answers)]
    os.close(read_commands)
    os.close(write_answers)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--remote-debugging-pipe",
        "--hide-scrollbars",
        "--enable-unsafe-swiftshader",
        f"--user-data-dir={profile}",
    ]
    with (profile / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, theirs), browser_path, *options],
            pass_fds=theirs,
            stdout=log,
            stderr=log,
        )
        for each in theirs:
            os.close(each)
        try:
            yield Page(process, commands, answers)
        finally:
            os.close(commands)  # Chromium ends when the pipe does
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answers)
