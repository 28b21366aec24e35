"""Requests of two processes, for tests of how their end is understood."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainables.errors import ConfigError
from trainables.training.joint.processes import find_processes


def handle(request: Mapping[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Add the ranks, tell the sum, and end in the way that ``request["end"]`` names."""
    processes = find_processes()
    report({"event": "epoch", "sum": int(processes.add(torch.tensor(processes.rank + 1))), "pid": os.getpid()})
    if request["end"] == "raise" and not processes.is_first:
        raise ConfigError("this process cannot do it")
    if request["end"] == "die" and not processes.is_first:
        os.kill(os.getpid(), signal.SIGKILL)
    if request["end"] != "well":
        processes.wait()  # without the other
        if request["end"] == "hang":
            signal.pause()
