"""Two real processes that train one trial in one folder: the older is suspended at a chosen call, the newer completes.

``python -m tests.support.attempt_race URI CACHE POINT …`` prints one JSON line per point: how the older process ended
after it was woken, and the state of the folder before and after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.driver.child_process import run_request
from orchestrator.ledger.record import begin_record
from tests.support.tiny_configs import tiny_trial
from trainables.config import Execution
from trainables.preload import preload
from trainables.storage.claims import ClaimedFolder, take_claim
from trainables.storage.completeness import RESULT, find_damage
from trainables.storage.folder import Folder

SIGNATURE = "a1b2c3d4"
#: Calls that change a folder, or that come just before.
CALLS = ("fsync", "replace", "rename", "link", "unlink", "makedirs")
#: What the older process ends with: it was refused, or it failed in another way.
REFUSED, OTHER = 41, 42


def describe(folder: Folder) -> dict[str, str]:
    """Return file → digest of everything in a record's folder but its notes."""
    names = {name for name in folder.children() if name not in ("attempts.jsonl", "predictions")}
    names |= {f"predictions/{name}" for name in (folder / "predictions").children()}
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in sorted(names)}


def _suspend_at(point: int) -> None:
    """Suspend this process just before its ``point``-th change of a folder, or request that changes an object."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGSTOP)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            count()
            return function(*args, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    put = ClaimedFolder._fs

    def fs(self: ClaimedFolder, attempt: str) -> Any:
        if attempt.startswith(("write", "remove")):
            count()
        return put(self, attempt)

    ClaimedFolder._fs = fs  # type: ignore[method-assign]


def _start(root: str, cache: Path, number: int, *, point: int | None = None) -> int:
    """Start an attempt in a process of its own; return its ID."""
    pid = os.fork()
    if pid:
        return pid
    code = OTHER
    try:
        folder, claims = Folder(f"{root}/trials/{SIGNATURE}"), Folder(f"{root}/claims/{SIGNATURE}")
        claim = take_claim(claims, number)
        config = tiny_trial(training={"epochs": 3, "batch_size": 64})
        record = {"signature": SIGNATURE, "kind": "trial", "config": config.model_dump(mode="json")}
        begin_record(folder, record)
        if point is not None:
            _suspend_at(point)
        request = {
            "folder": folder.uri,
            "claims": claims.uri,
            "claim": claim.name,
            "encoder": None,
            "lease": None,
            "execution": Execution(cache_dir=cache, device="cpu").model_dump(mode="json"),
        }
        run_request(request, lambda event: None)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the boundary of the process
        code = REFUSED if type(error).__name__ == "SupersededError" else OTHER
        if code == OTHER:
            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _race(root: str, cache: Path, point: int) -> dict[str, Any]:
    older = _start(root, cache, 1, point=point)
    _, status = os.waitpid(older, os.WUNTRACED)
    if not os.WIFSTOPPED(status):  # it has no so many changes
        return {"point": point, "older": os.waitstatus_to_exitcode(status), "suspended": False}
    newer = _start(root, cache, 2)
    _, status = os.waitpid(newer, 0)
    reader = os.fork()  # object stores are read in a process of its own: their clients do not survive a fork
    if reader == 0:
        print(json.dumps(describe(Folder(f"{root}/trials/{SIGNATURE}"))), file=open(f"{cache}/before.json", "w"))  # noqa: SIM115
        os._exit(0)
    os.waitpid(reader, 0)
    os.kill(older, signal.SIGCONT)
    _, ended = os.waitpid(older, 0)
    reader = os.fork()
    if reader == 0:
        folder = Folder(f"{root}/trials/{SIGNATURE}")
        found = {
            "files": describe(folder),
            "damage": find_damage(folder, every_byte=True),
            "epochs": [line["epoch"] for line in folder.read_lines("epochs.jsonl")],
            "result": folder.read_json(RESULT)["metrics"],
            "weights": folder.read_json(RESULT)["checkpoint_sha256"],
        }
        print(json.dumps(found), file=open(f"{cache}/after.json", "w"))  # noqa: SIM115
        os._exit(0)
    os.waitpid(reader, 0)
    return {
        "point": point,
        "suspended": True,
        "newer": os.waitstatus_to_exitcode(status),
        "older": os.waitstatus_to_exitcode(ended),
        "before": json.loads(Path(f"{cache}/before.json").read_text()),
        **json.loads(Path(f"{cache}/after.json").read_text()),
    }


def main(root: str, cache: str, *points: str) -> None:
    """Race once per point, each in a folder of its own; point 0 is one attempt alone."""
    preload([tiny_trial().model.name], contrastive=False)
    for point in map(int, points):
        print(json.dumps(_race(f"{root}/{point}", Path(cache), point)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
