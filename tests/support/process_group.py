"""Processes of a gloo group, forked from the test's."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from trainables.errors import PeerLostError

#: Exit code of a process that has lost the others.
LOST = 3


def run_processes(body: Callable[[int], None], count: int, folder: Path) -> list[int | None]:
    """Run ``body(rank)`` in so many processes of one group; return their exit codes by rank.

    Args:
        body: function of the rank.
        count: number of processes.
        folder: empty folder, in which they find each other.
    """
    folder.mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_run, args=(body, rank, count, folder)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _run(body: Callable[[int], None], rank: int, count: int, folder: Path) -> None:
    address, timeout = f"file://{folder}/group", timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count, timeout=timeout)
    try:
        body(rank)
    except PeerLostError:
        os._exit(LOST)
    dist.destroy_process_group()
