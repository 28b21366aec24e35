"""Submitters of studies to the job server of the tests, which seldom sleep. Tests only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.cluster.jobs.study_jobs import Jobs, Submission
from orchestrator.ledger.ledger import Ledger
from tests.support.job_servers import LocalJobServer, make_package


class Submitter:
    """``Jobs`` that remembers what is said and written, and seldom sleeps."""

    def __init__(self, server: LocalJobServer, ledger: Ledger, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.said: list[str] = []
        self.written: list[str] = []
        self.slept = 0.0

        def sleep(seconds: float) -> None:
            self.slept += seconds
            on_sleep()
            time.sleep(0.005)

        self.jobs = Jobs(server, ledger, self.said.append, self.written.append, sleep)

    def run(self, *entrypoints: str, retries: int = 0) -> int:
        return self.jobs.run(self.submission(*entrypoints), retries=retries)

    def submission(self, *entrypoints: str) -> Submission:
        """Return what is submitted: the first command in the first attempt, the last in all that follow."""
        package = make_package(Path(self.jobs.ledger.storage).parent)
        return Submission(
            lambda attempt: entrypoints[min(attempt.number, len(entrypoints)) - 1], package, {"LEVEL": "3"}
        )


def hold_lease(ledger: Ledger, *, age_seconds: float = 0.0, host: str = "far-away") -> None:
    """Write the lease of a driver on another machine, as it was renewed some time ago."""
    alive_ms = int((time.time() - age_seconds) * 1000)
    holder = {"host": host, "pid": 77, "since_ms": alive_ms - 5000, "alive_ms": alive_ms, "token": "of the driver"}
    ledger.root.write_json("lease.json", holder)


def names(server: LocalJobServer) -> list[str]:
    return [request.name for request in server.requests]
