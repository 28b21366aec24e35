"""A fork server whose trials do what a test asks for instead of training. Run as a program.

The act is ``request["act"]``, or else the first word of the work's name in the ledger; then a result is written too.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.execution import fork_server
from orchestrator.execution.heartbeat import ending_if_orphaned
from trainables.errors import DivergedError, SupersededError
from trainables.storage.folder import Folder

MODULE = __name__ if __name__ != "__main__" else "tests.support.scripted_fork_server"
COMMAND = (sys.executable, "-m", MODULE)

_memory: list[str] = []


class OutOfMemoryError(RuntimeError):
    """An error with the name of torch's, which would take seconds to import."""


def finish(report: Any) -> None:
    report({"event": "epoch", "epoch": 1})


def describe(report: Any) -> None:
    """Tell who we are and what an earlier trial left behind, then leave something behind."""
    report({"event": "about", "pid": os.getpid(), "server": os.getppid(), "memory": list(_memory), "cwd": os.getcwd(),
            "left": os.environ.get("LEFT"), "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ["OMP_NUM_THREADS"],
            "stdin": sys.stdin.read()})  # fmt: skip
    _memory.append("used")
    os.environ["LEFT"] = "behind"
    os.chdir("/")


def chatter(report: Any) -> None:
    """What libraries do to stdout."""
    print('{"event": "exit", "code": 7}')
    sys.stdout.write("no newline at the end of this")
    os.write(1, b'{"event": "broken')
    os.system("echo a child of the child; echo and its stderr >&2")
    print("progress 100%\r", file=sys.stderr)
    report({"event": "epoch", "epoch": 1, "note": 'line\nbreak "quoted" é'})


def nap(report: Any) -> None:
    """As long as a short trial."""
    time.sleep(0.3)


def stops(report: Any) -> None:
    """As a trial that finds stop.json."""
    report({"event": "stopped_early", "epoch": 4})


def fail(report: Any) -> None:
    raise ValueError("shape (3, 4) does not fit\nsecond line")


def diverge(report: Any) -> None:
    raise DivergedError("the loss became nan in epoch 5")


def fill(report: Any) -> None:
    """What a library says that writes on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache")


def leave(report: Any) -> None:
    sys.exit(3)


def hang(report: Any) -> None:
    report({"event": "about", "pid": os.getpid(), "server": os.getppid()})
    time.sleep(600)


def starves(report: Any) -> None:
    """Ask for more memory than can be addressed."""
    bytearray(2**60)


def shout(report: Any) -> None:
    """A failure larger than what a pipe takes at once."""
    report({"event": "started"})
    for step in range(200):
        report({"event": "epoch", "epoch": step, "note": "x" * 5000})
    raise ValueError("y" * 200_000)


def refused(report: Any) -> None:
    raise SupersededError("could not write model.safetensors: refused, since attempt 2 has taken over")


def wait_to_be_asked(request: Mapping[str, Any], report: Any) -> None:
    """Train on until nobody asks for the epochs."""
    checked = ending_if_orphaned(report, Path(request["heard"]), request["orphan_seconds"])
    for epoch in range(1, 600):
        checked({"event": "epoch", "epoch": epoch})
        time.sleep(0.1)


ACTS: dict[str, Callable[[Any], None]] = {
    act.__name__: act
    for act in (finish, nap, describe, chatter, stops, fail, fill, diverge, leave, hang, starves, shout, refused)
}


def find_peer() -> int:
    """Return the process at the other end of this trial's connection."""
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as each:
                pid, _, _ = struct.unpack("3i", each.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:  # no socket
            continue
        if pid not in (0, os.getppid()):  # the fork server has sockets of its own
            return int(pid)
    raise AssertionError("no connection")


def run_cramped(act: str, folder: Folder, report: Any) -> None:
    """Find no memory on the GPU, as often as the name of the trial says."""
    if act not in ("cramped", "cramped_in_evaluation"):
        return
    tried = [name for name in folder.children() if name.startswith("tried")]
    if len(tried) < int(folder.read_json("config.json")["name"].split()[1]):
        folder.write(f"tried-{len(tried)}", b"")
        report({"event": "started", "epochs": 1})
        if act == "cramped_in_evaluation":
            report({"event": "evaluation", "done": 1, "total": 2})
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def is_only_trained(act: str, folder: Folder, report: Any) -> bool:
    """Tell, the first time, that a trial is trained, as one of several processes does."""
    if act != "is_trained" or folder.exists("trained"):
        return False
    folder.write("trained", b"")
    report({"event": "trained"})
    return True


def run_request(request: Mapping[str, Any], report: Any) -> None:
    if "act" in request:
        ACTS[request["act"]](report)
        return
    folder = Folder(request["folder"])
    act = folder.read_json("config.json")["name"].split()[0]
    if act in ("dies_once", "hangs_once", "starves_once") and not folder.exists("tried"):
        folder.write("tried", b"")
        report({"event": "started", "epochs": 1})
        if act == "dies_once":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "starves_once":
            starves(report)
        time.sleep(600)
    run_cramped(act, folder, report)
    if act == "waits_once" and not folder.exists("tried"):
        folder.write("tried", b"")
        wait_to_be_asked(request, report)
    if act == "ends_actor":
        os.kill(find_peer(), signal.SIGKILL)
        time.sleep(600)
    if act == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    ACTS.get(act, finish)(report)
    if act in ("loses_result", "stops") or is_only_trained(act, folder, report):
        return
    encoder = request["encoder"] and Folder(request["encoder"]).read_json("result.json")["name"]
    result = {"name": act, "encoder": encoder, "pid": os.getpid(), "server": os.getppid(), "slot": find_peer()}
    if act == "takes_gpu":
        result |= {"peak_gpu_memory_mib": 5000.0, "gpu_memory_mib": 16_000.0}
    folder.write_json("result.json", result)


if __name__ == "__main__":
    fork_server.IDLE_SECONDS = 0.3
    fork_server.serve(sys.argv[1], run_request, load_imports=lambda: None)
