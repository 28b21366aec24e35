"""A fork server whose trials sleep instead of training, for ``bookkeeping.py`` and ``simulation.py``.

It imports what the real one imports.

python -m benchmarks.sleeping_child SOCKET NAME …
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from bookkeeping import SECONDS

from orchestrator.driver import child_process
from tests.support import synthetic_ledger
from tests.support.plans import make_trial
from trainables.storage.folder import Folder

#: Environment variables: seconds of a trial, by how much two trials differ at most, and epochs, which take half of it.
SLEEP_SECONDS, SLEEP_SPREAD, SLEEP_EPOCHS = "SLEEP_SECONDS", "SLEEP_SPREAD", "SLEEP_EPOCHS"
#: Content of ``result.json``, filled before the first fork.
RESULT: dict[str, Any] = {}


def find_seconds(signature: str) -> float:
    """Return the seconds of a trial: other ones for each, the same in every attempt."""
    spread = float(os.environ.get(SLEEP_SPREAD, "0"))
    return float(os.environ.get(SLEEP_SECONDS, str(SECONDS))) + spread * (int(signature[:8], 16) / 2**32 - 0.5)


def sleep_instead(request: Mapping[str, Any], report: Any) -> None:
    """Stand in for a trial in the forked process: epochs, from the last one on, and a result like a real one."""
    began = time.time()
    folder = Folder(request["folder"])
    signature = folder.read_json("config.json")["signature"]
    seconds, epochs = find_seconds(signature), int(os.environ.get(SLEEP_EPOCHS, "1"))
    each, before = seconds / 2 / epochs, len(folder.read_lines("epochs.jsonl"))
    for epoch in range(before + 1, epochs + 1):
        time.sleep(max(0.0, began + (epoch - before) * each - time.time()))
        metrics = {"train/loss": 0.5, "val/loss": 0.6, "val/accuracy": 0.9, "seconds": each}
        line = {"epoch": epoch, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        folder.append_line("epochs.jsonl", json.dumps(line))
        report({"event": "epoch", **line})
    left = seconds - before * each
    time.sleep(max(0.0, began + left - time.time()))
    stamps = {"started_ms": int(began * 1000), "finished_ms": int(time.time() * 1000), "duration_seconds": left}
    folder.write_json("result.json", {**RESULT, **stamps, "signature": signature})


def main(path: str, *words: str) -> None:
    """Serve requests on a socket; those that are not stages or trials are carried out for real."""
    synthetic_ledger.SHIFTS = synthetic_ledger.SHIFTS[:1]  # as the study says
    RESULT.update(synthetic_ledger.make_result(make_trial("any"), (), 1))
    really = child_process.run_request
    child_process.run_request = lambda request, report: (sleep_instead if "folder" in request else really)(
        request, report
    )
    child_process.main(path, *words)


if __name__ == "__main__":
    main(*sys.argv[1:])
