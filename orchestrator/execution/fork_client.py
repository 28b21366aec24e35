"""Client of the fork server in a slot: send requests, return events, decide how a process ended.

A trial that raises fails for good, with its traceback in the ledger. A process that vanishes or runs out of memory may
be the infrastructure's fault: that raises ``ProcessLostError``, and the caller may try again from the checkpoint.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.execution.fork_server import start_lock
from orchestrator.execution.private_folder import find_private_folder
from orchestrator.ledger.failures import CRASHED, OUT_OF_GPU_MEMORY, OUT_OF_MEMORY
from trainables.errors import InfrastructureError
from trainables.storage.folder import Folder

#: Advice for when memory runs out; which process took the memory is not known.
MEMORY_ADVICE = (
    "let trials ask for less at once (training.batch_size, execution.evaluation_batch_size), or run fewer of them side "
    "by side (execution.max_concurrent_trials)"
)
#: The same for the memory of a GPU.
GPU_MEMORY_ADVICE = (
    "let trials ask for less at once (training.batch_size, execution.evaluation_batch_size), or give each a larger "
    "share of a GPU (execution.gpus_per_trial)"
)

#: Longest path of a socket: Linux allows 107 bytes, macOS 103.
MAX_SOCKET_BYTES = 100


class ProcessLostError(InfrastructureError):
    """The process of a trial vanished, hung, or ran out of memory; trying again may help.

    Args:
        message: text for the user.
        reason: one of ``failures.LOST``.
        traceback: traceback of the exception that the process raised, "" if it raised none.
    """

    def __init__(self, message: str, *, reason: str = CRASHED, traceback: str = "") -> None:
        super().__init__(message)
        self.reason, self.traceback = reason, traceback


def make_command(module: str) -> tuple[str, ...]:
    """Return the command that starts a fork server. ``-P``: files of the current folder are no modules to import."""
    return (sys.executable, "-P", "-m", module)


def make_socket_path(token: str) -> Path:
    """Return the socket path of this user's fork server on this node, for the driver whose token is ``token``.

    Raises:
        InfrastructureError: no folder is short enough and private to this user (``find_private_folder``).
    """
    name = f"{token}.sock"
    room = MAX_SOCKET_BYTES - len(name) - 1
    return find_private_folder(room=room, purpose="the socket of the processes for trials") / name


def connect_fork_server(
    path: Path, *, num_threads: int, command: Sequence[str], preload: Sequence[str] = ()
) -> socket.socket:
    """Return a connection to the node's fork server, started if there is none. Does not wait for its imports.

    Args:
        path: path of its socket.
        num_threads: CPU threads of each trial.
        preload: words that select its imports (``driver.child_process.main``).
        command: command that starts it; ``path`` and ``preload`` are appended.

    Raises:
        InfrastructureError: it does not start.
    """
    with start_lock(str(path)):
        try:
            return _connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)  # left by a server that was killed
        threads = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        # Threads that spin at barriers take the cores from other trials: 2 threads on 2 shared cores needed 5 s of CPU
        # instead of 3.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | threads
        words = [*command, str(path), *preload]
        done = subprocess.run(words, env=environment, capture_output=True, check=False)
        if done.returncode:
            raise InfrastructureError(f"could not start a process for trials: {done.stderr.decode(errors='replace')}")
        return _connect(path)


def _connect(path: Path) -> socket.socket:
    with ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(path))
        stack.pop_all()
    return connection


class ForkClient:
    """Connection of one slot to the fork server: runs one request at a time, each in a fresh process.

    Args:
        num_threads: CPU threads for each trial.
        path: path of the fork server's socket.
        preload: words that select the imports of the fork server.
        command: command that starts the fork server if there is none.
    """

    def __init__(self, *, num_threads: int, path: Path, command: Sequence[str], preload: Sequence[str] = ()) -> None:
        self._path = path
        self._connect = partial(connect_fork_server, path, num_threads=num_threads, preload=preload, command=command)
        self._connection: socket.socket | None = None
        self._buffer = b""
        self._child: int | None = None
        self._folder: Folder | None = None
        self._local_log: Path | None = None
        self._failure: dict[str, Any] | None = None
        self._stopped: dict[str, Any] | None = None

    def begin(self, request: Mapping[str, Any]) -> None:
        """Send a request (see ``driver.child_process.run_request``). Does not wait for the fork server's imports.

        Raises:
            InfrastructureError: there is no fork server, and none can be started.
        """
        self._folder = Folder(request["folder"]) if "folder" in request else None
        self._failure = self._stopped = self._local_log = None
        extra: dict[str, Any] = {"environment": _visible_devices()}
        if self._folder is not None:
            extra["log"] = self._make_log(self._folder)
        line = json.dumps({**request, **extra}).encode() + b"\n"
        if self._connection is not None:
            try:
                self._connection.sendall(line)
            except ConnectionError:
                self._disconnect()
            else:
                return
        try:
            self.connect().sendall(line)
        except ConnectionError as error:
            self._disconnect()
            raise ProcessLostError(self._describe_lost_server()) from error

    def connect(self) -> socket.socket:
        """Return the connection to the node's fork server, which is started, with its imports, if there is none.

        Raises:
            InfrastructureError: no fork server can be started.
            ProcessLostError: the fork server was started and has ended, for example because an import failed.
        """
        if self._connection is None:
            try:
                self._connection = self._connect()
            except ConnectionError as error:
                raise ProcessLostError(self._describe_lost_server()) from error
        return self._connection

    def _make_log(self, folder: Folder) -> str:
        if folder.is_local:
            log = Path(folder.uri) / "log.txt"
        else:
            log = self._local_log = Path(tempfile.mkdtemp(prefix="robustsweep-")) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        return str(log)

    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        """Return the next event of the running process, None if none came in time.

        The last event is ``{"event": "done", "status": "complete" | "stopped_early" | "failed", …}``.

        Raises:
            ProcessLostError: the process or the fork server is gone, or there was no memory.
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
        assert self._connection is not None
        readable, _, _ = select.select([self._connection], [], [], timeout_seconds)
        if not readable:
            return
        try:
            data = self._connection.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self._disconnect()
            raise ProcessLostError(self._describe_lost_server())
        self._buffer += data

    def _describe_lost_server(self) -> str:
        log = Path(f"{self._path}.log")
        text = log.read_text(errors="replace").strip() if log.exists() else ""
        end = f"the end of its log:\n{text[-2000:]}" if text else "it left no message: was it killed?"
        return f"the process that starts trials on this node has ended; {end}"

    def _interpret(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Return the event for the caller, None if only this client needs it."""
        match event["event"]:
            case "forked":
                self._child = event["pid"]
            case "failed":
                self._failure = {key: value for key, value in event.items() if key != "event"}
            case "stopped_early":
                self._stopped = {"event": "done", "status": "stopped_early", "epoch": event["epoch"]}
            case "exit":
                return self._interpret_exit(event["code"])
            case _:
                return event
        return None

    def _interpret_exit(self, code: int) -> dict[str, Any]:
        self._child = None
        self._keep_log()
        if self._failure is not None:
            return interpret_failure(self._failure)
        if code == 0:
            return self._stopped or {"event": "done", "status": "complete"}
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = f"; if nobody did it, the machine ran out of memory: {MEMORY_ADVICE}" if code == -signal.SIGKILL else ""
        where = f"; its log: {self._folder.uri}/log.txt" if self._folder is not None else ""
        raise ProcessLostError(f"the process of the trial {how}{hint}{where}")

    def _keep_log(self) -> None:
        if self._local_log is not None and self._folder is not None and self._local_log.exists():
            self._folder.write("log.txt", self._local_log.read_bytes())
            shutil.rmtree(self._local_log.parent)

    def kill(self) -> None:
        """Kill the running process, if any; the slot stays usable."""
        if self._child is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._child, signal.SIGKILL)

    def close(self) -> None:
        """Kill the running process, if any, and disconnect."""
        self.kill()  # the fork server would do it too, when the connection closes
        self._disconnect()

    def _disconnect(self) -> None:
        self._child, self._buffer = None, b""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def interpret_failure(failure: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``done`` event of a process that has raised.

    Args:
        failure: what it has reported (``ledger.failures.describe_failure``).

    Raises:
        ProcessLostError: there was no memory.
    """
    advice = {OUT_OF_MEMORY: MEMORY_ADVICE, OUT_OF_GPU_MEMORY: GPU_MEMORY_ADVICE}.get(failure["reason"])
    if advice is not None:
        message = f"there was no memory for what the trial asked for: {advice}; {failure['message']}"
        raise ProcessLostError(message, reason=failure["reason"], traceback=failure["traceback"])
    return {"event": "done", "status": "failed", **failure}


def _visible_devices() -> dict[str, str]:
    """Return the variables with the devices that Ray gave to this slot. The fork server serves all slots of a node."""
    return {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES")}
