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
    """Suspend this process just before its ``point``-th change of a folder, or request to an object store."""
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
        if attempt.startswith(("write", "remove", "rename", "look at")):
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
            "matching": None,
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


def _race(root: str, cache: Path, point: int, *, seen_by_older: str) -> dict[str, Any]:
    older = _start(seen_by_older, cache, 1, point=point or None)
    _, status = os.waitpid(older, os.WUNTRACED)
    if not os.WIFSTOPPED(status):  # it makes fewer changes
        return {"point": point, "older": os.waitstatus_to_exitcode(status), "suspended": False, **_look(root, cache)}
    newer = _start(root, cache, 2)
    _, status = os.waitpid(newer, 0)
    before = _look(root, cache)["files"]
    os.kill(older, signal.SIGCONT)
    _, ended = os.waitpid(older, 0)
    return {
        "point": point,
        "suspended": True,
        "newer": os.waitstatus_to_exitcode(status),
        "older": os.waitstatus_to_exitcode(ended),
        "before": before,
        **_look(root, cache),
    }


def _look(root: str, cache: Path) -> dict[str, Any]:
    """Return what is in the folder; read in a process of its own, since clients of object stores survive no fork."""
    seen = cache / "seen.json"
    pid = os.fork()
    if pid == 0:
        try:
            folder = Folder(f"{root}/trials/{SIGNATURE}")
            result = folder.read_json(RESULT)
            found = {
                "files": describe(folder),
                "damage": find_damage(folder, every_byte=True),
                "epochs": [line["epoch"] for line in folder.read_lines("epochs.jsonl")],
                "result": result["metrics"],
                "weights": result["checkpoint_sha256"],
            }
            seen.write_text(json.dumps(found))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    found = json.loads(seen.read_text())
    seen.unlink()
    return found


def main(root: str, cache: str, *points: str) -> None:
    """Race once per point, each in a folder of its own; point 0 is one attempt alone.

    Args:
        root: where the folders lie; ``A|B`` if the older attempt sees them in another place than the newer.
        cache: cache of decoded images.
        points: points, from 1.
    """
    preload([tiny_trial().model.name], contrastive=False)
    ours, _, other = root.partition("|")
    for point in map(int, points):
        found = _race(f"{ours}/{point}", Path(cache), point, seen_by_older=f"{other or ours}/{point}")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
