"""A fork server whose real trials find no memory on a GPU after their first and second epoch. Run as a program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.driver import child_process
from orchestrator.execution import fork_server
from trainables.preload import preload
from trainables.storage.folder import Folder

MODULE = __name__ if __name__ != "__main__" else "tests.support.cramped_fork_server"
#: How often a trial has no memory.
TIMES = 2


def run_request(request: Mapping[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Carry out a request as usual, and raise torch's error after an epoch, ``TIMES`` times."""
    import torch

    folder = Folder(request["folder"])

    def tell(event: dict[str, Any]) -> None:
        report(event)
        number = sum(name.startswith("cramped") for name in folder.children())
        if event["event"] == "epoch" and number < TIMES:
            folder.write(f"cramped-{number}", b"")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    child_process.run_request(request, tell)


if __name__ == "__main__":
    fork_server.serve(sys.argv[1], run_request, load_imports=lambda: preload(sys.argv[2:]))
