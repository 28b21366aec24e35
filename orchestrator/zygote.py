"""A fresh process per trial in milliseconds: a plain child that has torch imported forks one on demand.

``python -m orchestrator.zygote`` imports torch and ``trainables`` once, never touches CUDA or Ray, and then reads one
JSON request a line from stdin. For each it forks; the child runs the trial and writes its events as JSON lines to
stdout; when the child is gone, the zygote adds ``{"event": "exit", …}``. Memory, GPU context and global state end with
the child; a crash, an OOM kill or a hang is one process's.

When stdin closes (the parent died), a running child is killed; when the zygote itself is killed, the kernel kills its
child (Linux): nothing trains on unseen.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

from trainables.config import Execution, StageConfig, TrialConfig
from trainables.errors import DivergedError, RobustSweepError
from trainables.storage import Folder

#: ``prctl`` option: the signal that the kernel sends when the parent ends (linux/prctl.h).
_PR_SET_PDEATHSIG = 1


def run_request(request: Mapping[str, Any], report: Any) -> None:
    """Run the stage or trial whose ``config.json`` lies in ``request["folder"]``, in this process.

    Args:
        request: ``folder``, ``encoder`` (folder of the finished stage, or None) and ``execution``.
        report: called with each progress event.
    """
    from trainables.trial import run_stage, run_trial

    folder, execution = Folder(request["folder"]), Execution.model_validate(request["execution"])
    record = folder.read_json("config.json")
    signature = record["signature"]
    if record["kind"] == "stage":
        stage = StageConfig.model_validate(record["config"])
        run_stage(stage, signature=signature, folder=folder, execution=execution, report=report)
        return
    encoder = Folder(request["encoder"]) if request["encoder"] else None
    trial = TrialConfig.model_validate(record["config"])
    run_trial(trial, signature=signature, folder=folder, execution=execution, encoder=encoder, report=report)


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return reason, message and traceback of a trial that raised."""
    reason = "diverged" if isinstance(error, DivergedError) else "error"
    message = str(error) if isinstance(error, RobustSweepError) else f"{type(error).__name__}: {error}"
    return {"reason": reason, "message": message, "traceback": "".join(traceback.format_exception(error))}


def _child(request: Mapping[str, Any], events: TextIO) -> None:
    """Body of the forked process; never returns."""

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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork(request: Mapping[str, Any], events: TextIO) -> tuple[int, int]:
    """Return the child's process id and a descriptor that becomes readable when it ends."""
    alive, held_by_child = os.pipe()
    zygote = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        _die_with(zygote)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which stops trials in order
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # requests are the zygote's to read
        if request.get("log"):
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
        _child(request, events)
    os.close(held_by_child)
    return pid, alive


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; elsewhere than on Linux it finishes its trial."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)


def _preload() -> None:
    """Import what every fork needs."""
    import sklearn.utils  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    import trainables.trial  # noqa: F401


def serve() -> None:
    """Answer requests from stdin until it closes."""
    # Events leave through a private descriptor: what a library prints must not corrupt the protocol.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _preload()
    events.write(json.dumps({"event": "ready", "pid": os.getpid()}) + "\n")
    events.flush()
    buffer = b""
    while True:
        line, newline, rest = buffer.partition(b"\n")
        if not newline:
            data = os.read(0, 1 << 20)
            if not data:
                return
            buffer += data
            continue
        buffer = rest
        pid, alive = _fork(json.loads(line), events)
        if not _wait(pid, alive, events):
            return


def _wait(pid: int, alive: int, events: TextIO) -> bool:
    """Wait for the child; return False when the parent is gone, after killing the child."""
    readable, _, _ = select.select([alive, 0], [], [])
    parent_gone = alive not in readable  # nothing is ever sent while a child runs: stdin readable means closed
    if parent_gone:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(alive)
    if parent_gone:
        return False
    code = os.waitstatus_to_exitcode(status)
    events.write(json.dumps({"event": "exit", "code": code}) + "\n")
    events.flush()
    return True


if __name__ == "__main__":
    serve()
    os._exit(0)  # tearing down torch takes 2 s, and somebody waits
