"""A fresh process per trial in milliseconds: one process per node has torch imported, and forks whenever a slot asks.

``python -m orchestrator.zygote SOCKET`` listens on a Unix socket, leaves its parent, imports torch and ``trainables``
once, and never touches CUDA or Ray. Every slot of the node holds one connection. It writes one JSON request a line; for
each the zygote forks, and the child runs the trial and writes its events as JSON lines to that connection; when the
child is gone, the zygote adds ``{"event": "exit", …}``. Memory, GPU context and global state end with the child; a
crash, an OOM kill or a hang is one process's.

When a connection closes (its slot died), its running child is killed; without any connection the zygote ends; when the
zygote itself is killed, the kernel kills its children (Linux): nothing trains on unseen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.garbage import made_to_stay

#: ``prctl`` option: the signal that the kernel sends when the parent ends (linux/prctl.h).
_PR_SET_PDEATHSIG = 1
#: A zygote to which nobody is connected ends after this long: slots come and go, and a new one takes seconds.
IDLE_SECONDS = 2.0
#: Reason of a trial that ended because there was no room for what it wrote: it has not failed, and goes on later.
DISK_FULL = "disk full"
#: Reasons of a trial whose process was lost, each time it was tried.
LOST = CRASHED, HUNG, OUT_OF_MEMORY = "crashed", "hung", "out of memory"
#: Among the words that say what to import: contrastive stages will run.
CONTRASTIVE = "contrastive"
#: Largest piece read from a connection at once.
_CHUNK_BYTES = 1 << 20


def run_request(request: Mapping[str, Any], report: Any) -> None:
    """Carry out a request in this process.

    Args:
        request: ``{"check": configs, "cache_dir": …}``: build what these trials would build; ``{"report": study,
            "storage": …, "cache_dir": …}``: write the report; or the stage or trial whose ``config.json`` lies in
            ``request["folder"]``: ``folder``, ``encoder`` (folder of the finished stage, or None) and ``execution``.
            What writes has the ``lease`` of its driver (``lease.fence``), None for anybody.
        report: called with each progress event.
    """
    from orchestrator.lease import guarded
    from trainables.config import Execution, StageConfig, TrialConfig
    from trainables.storage import Folder

    if "check" in request:
        from orchestrator.world import World, check_trials

        configs = [TrialConfig.model_validate(config) for config in request["check"]]
        check_trials(configs, World(Path(request["cache_dir"])))
        return
    if "report" in request:
        from orchestrator.ledger import Ledger
        from orchestrator.report.write import write_report

        ledger = Ledger(request["storage"], request["report"])
        ledger.root = guarded(ledger.root.uri, request["lease"])
        report({"event": "report", **asdict(write_report(ledger, cache_dir=Path(request["cache_dir"])))})
        return
    from trainables.stopping import StopTraining
    from trainables.trial import run_stage, run_trial

    folder, execution = guarded(request["folder"], request["lease"]), Execution.model_validate(request["execution"])
    record = folder.read_json("config.json")
    signature = record["signature"]
    if record["kind"] == "stage":
        stage = StageConfig.model_validate(record["config"])
        run_stage(stage, signature=signature, folder=folder, execution=execution, report=report)
        return
    encoder = Folder(request["encoder"]) if request["encoder"] else None
    trial = TrialConfig.model_validate(record["config"])
    try:
        run_trial(trial, signature=signature, folder=folder, execution=execution, encoder=encoder, report=report)
    except StopTraining as stop:
        report({"event": "stopped_early", "epoch": stop.epoch})


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return class, reason, message and traceback of a trial that raised."""
    from trainables.errors import DivergedError, RobustSweepError
    from trainables.storage import is_disk_full

    reason = "diverged" if isinstance(error, DivergedError) else DISK_FULL if is_disk_full(error) else "error"
    reason = OUT_OF_MEMORY if is_out_of_memory(error) else reason
    message = str(error) if isinstance(error, RobustSweepError) else f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "reason": reason, "message": message, "traceback": text}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, the system, or torch's allocator for CPUs or GPUs had no more memory to give."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU; importing torch for it would take seconds
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # c10/core/impl/alloc_cpu.cpp
    )


@contextmanager
def starting(path: str) -> Iterator[None]:
    """Hold the lock under which the zygote at ``path`` is started, found, and ended."""
    with open(f"{path}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Zygote:
    """The server. One thread, so that a fork copies nothing half done.

    Args:
        path: of the socket; its lock and log lie beside it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1024)
        self._selector = selectors.DefaultSelector()
        self._requests: dict[socket.socket, bytes] = {}
        self._children: dict[int, socket.socket] = {}
        self._idle_since = 0.0

    def serve(self) -> None:
        """Answer requests until nobody is connected any more."""
        self._idle_since = time.monotonic()
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._selector.register(woken, selectors.EVENT_READ, self._reap)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while not self._is_over():
            for key, _ in self._selector.select(IDLE_SECONDS):
                key.data(key.fileobj)

    def _is_over(self) -> bool:
        if self._requests:
            self._idle_since = time.monotonic()
            return False
        if time.monotonic() - self._idle_since < IDLE_SECONDS:
            return False
        with starting(self._path):  # nobody can be about to connect
            self._listener.setblocking(False)
            try:
                self._accept(self._listener)
            except BlockingIOError:
                for name in (self._path, f"{self._path}.log", f"{self._path}.lock"):
                    os.unlink(name)
                return True
            self._listener.setblocking(True)
            return False

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(True)
        self._requests[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ, self._read)

    def _read(self, connection: socket.socket) -> None:
        if connection not in self._requests:
            return  # hung up while what the same ``select`` returned was dealt with
        try:
            data = connection.recv(_CHUNK_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self._hang_up(connection)
            return
        self._requests[connection] += data
        self._begin_next(connection)

    def _begin_next(self, connection: socket.socket) -> None:
        line, newline, rest = self._requests[connection].partition(b"\n")
        if not newline or connection in self._children.values():
            return
        self._requests[connection] = rest
        request = json.loads(line)
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(connection, zygote)
            _run_child(request, connection)
        self._children[pid] = connection

    def _become_child(self, connection: socket.socket, zygote: int) -> None:
        """Let go of everything that is the zygote's."""
        _die_with(zygote)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._listener.close()
        for other in self._requests:
            if other is not connection:
                other.close()
        self._selector.close()

    def _reap(self, woken: socket.socket) -> None:
        with suppress(BlockingIOError):
            woken.recv(4096)
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == 0:
                continue
            connection = self._children.pop(pid)
            if connection in self._requests:  # else its slot has hung up
                line = json.dumps({"event": "exit", "code": os.waitstatus_to_exitcode(status)})
                try:
                    connection.sendall(line.encode() + b"\n")
                except ConnectionError:
                    self._hang_up(connection)
                else:
                    self._begin_next(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        del self._requests[connection]
        self._selector.unregister(connection)
        connection.close()
        for pid, its in self._children.items():
            if its is connection:
                os.kill(pid, signal.SIGKILL)  # reaped as every other child


def _run_child(request: Mapping[str, Any], connection: socket.socket) -> NoReturn:
    """Body of the forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which stops trials in order
    os.environ.update(request.get("environment", {}))
    _redirect(os.devnull, os.O_RDONLY, 0)
    if request.get("log"):
        _redirect(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
    events = connection.makefile("w", encoding="utf-8")

    def report(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    code = 1
    try:
        report({"event": "forked", "pid": os.getpid()})
        run_request(request, report)
        code = 0
    except Exception as error:  # noqa: BLE001 - the process boundary: every failure becomes a record, then exit 1
        report({"event": "failed", **describe_failure(error)})
    finally:
        with suppress(OSError):  # of the log, on a full disk; what has happened is told already
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o644)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; elsewhere than on Linux it finishes its trial."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)


def _preload(model_names: Sequence[str], *, contrastive: bool) -> None:
    from trainables.preload import preload

    preload(model_names, contrastive=contrastive)


def main(path: str, *words: str) -> None:
    """Bind the socket, leave the process that asked for a zygote, serve, and end.

    Args:
        path: of the socket.
        words: names of the networks that trials will build, and ``contrastive`` when stages will run.
    """
    zygote = Zygote(path)  # from here on slots can connect; their requests wait
    if os.fork():
        os._exit(0)  # Ray kills the children of a slot that ends, and other slots need this one
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(f"{path}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
    with made_to_stay():  # searching it for cycles took a third of the imports, and would copy all of it in a child
        _preload([word for word in words if word != CONTRASTIVE], contrastive=CONTRASTIVE in words)
    zygote.serve()
    os._exit(0)  # tearing down torch takes 2 s, and somebody waits


if __name__ == "__main__":
    main(*sys.argv[1:])
