"""Body of one stage or trial on a worker: hand the request to this slot's zygote, pass its events on, judge its end.

A slot is one long-lived process of the scheduler (a Tune actor) with one zygote. A trial that raises fails for good,
with its traceback in the ledger. A trial whose process vanishes or stops giving signs of life is the
infrastructure's fault: ``WorkerLostError``, and the scheduler tries again from the checkpoint.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.errors import InfrastructureError
from trainables.storage import Folder

ZYGOTE = (sys.executable, "-m", "orchestrator.zygote")


class WorkerLostError(InfrastructureError):
    """The process of a trial vanished or hung; trying again may help."""


class Worker:
    """One slot: runs one stage or trial at a time, each in a fresh process.

    Args:
        num_threads: CPU threads for each trial.
        command: how the zygote is started.
    """

    def __init__(self, *, num_threads: int, command: Sequence[str] = ZYGOTE) -> None:
        threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        self._zygote = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads
        )
        self._buffer = b""
        self._child: int | None = None
        self._folder: Folder | None = None
        self._local_log: Path | None = None
        self._failure: dict[str, Any] | None = None

    def begin(self, request: Mapping[str, Any]) -> None:
        """Start a stage or trial (see ``zygote.run_request``); at once, without waiting for imports.

        That the zygote is gone shows in ``next_event``.
        """
        self._folder = Folder(request["folder"])
        self._failure = None
        if self._folder.is_local:
            self._local_log = None
            log = Path(self._folder.uri) / "log.txt"
        else:
            log = self._local_log = Path(tempfile.mkdtemp(prefix="robustsweep-")) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        assert self._zygote.stdin is not None
        with suppress(BrokenPipeError):
            self._zygote.stdin.write(json.dumps({**request, "log": str(log)}).encode() + b"\n")
            self._zygote.stdin.flush()

    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        """Return the next event of the running trial, None when none came in time.

        The last event is ``{"event": "done", "status": "complete" | "failed", …}``.

        Raises:
            WorkerLostError: the trial's process, or the zygote, is gone.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                event = self._interpret(json.loads(line))
                if event is not None:
                    return event
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self._fill(remaining)

    def _fill(self, timeout_seconds: float) -> None:
        assert self._zygote.stdout is not None
        readable, _, _ = select.select([self._zygote.stdout], [], [], timeout_seconds)
        if not readable:
            return
        data = os.read(self._zygote.stdout.fileno(), 1 << 16)
        if not data:
            self._child = None
            raise WorkerLostError(f"the zygote of this slot {_describe_end(self._zygote.wait())}")
        self._buffer += data

    def _interpret(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the caller should see; None for the zygote's own bookkeeping."""
        match event["event"]:
            case "ready":
                pass
            case "forked":
                self._child = event["pid"]
            case "failed":
                self._failure = {key: value for key, value in event.items() if key != "event"}
            case "exit":
                return self._judge(event["code"])
            case _:
                return event
        return None

    def _judge(self, code: int) -> dict[str, Any]:
        self._child = None
        self._keep_log()
        if self._failure is not None:
            return {"event": "done", "status": "failed", **self._failure}
        if code == 0:
            return {"event": "done", "status": "complete"}
        hint = "; out of memory is the usual cause" if code == -signal.SIGKILL else ""
        where = self._folder.uri if self._folder is not None else ""
        raise WorkerLostError(f"the process of the trial {_describe_end(code)}{hint}; its log: {where}/log.txt")

    def _keep_log(self) -> None:
        if self._local_log is not None and self._folder is not None and self._local_log.exists():
            self._folder.write("log.txt", self._local_log.read_bytes())
            shutil.rmtree(self._local_log.parent)

    def kill(self) -> None:
        """Kill the running trial's process, if any; its slot stays usable."""
        if self._child is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._child, signal.SIGKILL)

    def close(self) -> None:
        """End the slot: the zygote kills a running trial when its stdin closes."""
        if self._zygote.stdin is not None:
            with suppress(BrokenPipeError):  # a request that never went out
                self._zygote.stdin.close()
        try:
            self._zygote.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()
        if self._zygote.stdout is not None:
            self._zygote.stdout.close()


def _describe_end(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
