"""A fork server whose trials sleep instead of training, for ``bookkeeping.py``; it imports what the real one imports.

python -m benchmarks.sleeping_child SOCKET NAME …
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from bookkeeping import SECONDS

from orchestrator.driver import child_process
from tests.support import synthetic_ledger
from tests.support.plans import make_trial
from trainables.storage.folder import Folder

#: Content of ``result.json``, filled before the first fork.
RESULT: dict[str, Any] = {}


def sleep_instead(request: Mapping[str, Any], report: Any) -> None:
    """Stand in for a trial in the forked process: one epoch, a result like a real one, ``SECONDS`` in all."""
    began = time.time()
    folder = Folder(request["folder"])
    signature = folder.read_json("config.json")["signature"]
    time.sleep(SECONDS / 2)
    metrics = {"train/loss": 0.5, "val/loss": 0.6, "val/accuracy": 0.9, "seconds": SECONDS / 2}
    epoch = {"epoch": 1, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
    folder.append_line("epochs.jsonl", json.dumps(epoch))
    report({"event": "epoch", **epoch})
    time.sleep(max(0.0, began + SECONDS - time.time()))
    stamps = {"started_ms": int(began * 1000), "finished_ms": int(time.time() * 1000), "duration_seconds": SECONDS}
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
