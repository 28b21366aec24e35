"""Fork a fresh process per trial in milliseconds, from one process per node that has torch imported.

``serve`` listens on a Unix socket, detaches from its parent, imports torch and ``trainables`` once, and never touches
CUDA or Ray. Every slot of the node holds one connection and writes one JSON request per line. For each request the
server forks; the child runs the trial and writes its events as JSON lines to that connection. When the child has ended,
the server adds ``{"event": "exit", …}``. Memory, GPU context and global state end with the child; a crash, an OOM kill
or a hang affects one process only.

When a connection closes (its slot has ended), the server kills the child that runs for it. Without any connection the
server ends. When the server itself is killed, the kernel kills its children (Linux), so no trial runs unobserved.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from orchestrator.ledger.failures import describe_failure
from trainables.preload import imports_kept

#: ``prctl`` option: the signal that the kernel sends when the parent ends (linux/prctl.h).
_PR_SET_PDEATHSIG = 1
#: A fork server without any connection ends after this long: slots come and go, and starting a new one takes seconds.
IDLE_SECONDS = 2.0
#: Largest piece read from a connection at once.
_CHUNK_BYTES = 1 << 20
#: Function that carries out a request in a forked process; its second argument is called with each progress event.
Handle = Callable[[Mapping[str, Any], Callable[[dict[str, Any]], None]], None]


@contextmanager
def start_lock(path: str) -> Iterator[None]:
    """Hold the lock under which the fork server at ``path`` is started, found, and ended."""
    with open(f"{path}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class ForkServer:
    """Server that forks a process per request. It has one thread, so that a fork copies no half-done state.

    Args:
        path: path of the socket; its lock and log lie beside it.
        handle: carries out a request, in a process of its own.
    """

    def __init__(self, path: str, handle: Handle) -> None:
        self._path, self._handle = path, handle
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1024)
        self._selector = selectors.DefaultSelector()
        self._requests: dict[socket.socket, bytes] = {}
        self._children: dict[int, socket.socket] = {}
        self._idle_since = 0.0

    def serve(self) -> None:
        """Answer requests until no slot has been connected for ``IDLE_SECONDS``."""
        self._idle_since = time.monotonic()
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._selector.register(woken, selectors.EVENT_READ, self._reap)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        while not self._close_if_idle():
            for key, _ in self._selector.select(IDLE_SECONDS):
                key.data(key.fileobj)

    def _close_if_idle(self) -> bool:
        if self._requests:
            self._idle_since = time.monotonic()
            return False
        if time.monotonic() - self._idle_since < IDLE_SECONDS:
            return False
        with start_lock(self._path):  # slots connect under the same lock
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
            return  # closed while another event of the same ``select`` was handled
        try:
            data = connection.recv(_CHUNK_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self._disconnect(connection)
            return
        self._requests[connection] += data
        self._begin_next(connection)

    def _begin_next(self, connection: socket.socket) -> None:
        line, newline, rest = self._requests[connection].partition(b"\n")
        if not newline or connection in self._children.values():
            return
        self._requests[connection] = rest
        request = json.loads(line)
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(connection, server)
            _run_child(self._handle, request, connection)
        self._children[pid] = connection

    def _become_child(self, connection: socket.socket, server: int) -> None:
        """Release the fork server's signal handlers and sockets in the forked process, which ends with the server."""
        _die_with(server)
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
            if connection in self._requests:  # else its slot has disconnected
                line = json.dumps({"event": "exit", "code": os.waitstatus_to_exitcode(status)})
                try:
                    connection.sendall(line.encode() + b"\n")
                except ConnectionError:
                    self._disconnect(connection)
                else:
                    self._begin_next(connection)

    def _disconnect(self, connection: socket.socket) -> None:
        del self._requests[connection]
        self._selector.unregister(connection)
        connection.close()
        for pid, its in self._children.items():
            if its is connection:
                os.kill(pid, signal.SIGKILL)  # reaped as every other child


def _run_child(handle: Handle, request: Mapping[str, Any], connection: socket.socket) -> NoReturn:
    """Carry out a request in the forked process, report its events, and exit."""
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
        handle(request, report)
        code = 0
    except Exception as error:  # noqa: BLE001 - the process boundary: every failure becomes a record, then exit 1
        report({"event": "failed", **describe_failure(error)})
    finally:
        with suppress(OSError):  # of the log, on a full disk; the outcome is reported already
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o644)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    os.close(opened)


def _die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends. Only on Linux: elsewhere it finishes its trial."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def serve(path: str, handle: Handle, *, load_imports: Callable[[], None]) -> NoReturn:
    """Bind the socket, detach from the calling process, serve requests, and exit.

    Args:
        path: path of the socket.
        handle: carries out a request, in a process of its own.
        load_imports: imports what all requests need.
    """
    server = ForkServer(path, handle)  # from here on slots can connect; their requests wait
    if os.fork():
        os._exit(0)  # Ray kills the children of a slot that ends, and other slots need this one
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(f"{path}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
    with imports_kept():  # searching it for cycles took a third of the import time, and would copy all of it in a child
        load_imports()
    server.serve()
    os._exit(0)  # tearing down torch takes 2 s, and others wait for this process
