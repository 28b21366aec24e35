"""Shipping finished trials of about 500 metric values each to MLflow: to SQLite, and to a server over HTTP.

    python benchmarks/tracking.py --runs 50          # 1,000 for the committed claim

Every trial has what a real one has for its five files: predictions on 360 images under all shifts, and a log. Beside
it, one ``log_metric`` call a value, as Tune's callback does it, for a tenth of a run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from common import Line, mlflow_server

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.projection import project
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.tracker import Tracker
from tests.support.synthetic_ledger import SHIFTS, make_fake_ledger
from trainables.evaluation.predictions import Predictions, save_predictions

#: A trial's record takes four requests, and each of its five files one; the runs of arms some more for all trials.
METRICS_PER_SECOND, REQUESTS_PER_TRIAL = 1500.0, 10.0
NUM_IMAGES, NUM_CLASSES, NUM_LOG_LINES = 360, 2, 40
NUM_ONE_BY_ONE = 50


@contextmanager
def counting_requests() -> Iterator[Callable[[], int]]:
    """Yield how many HTTP requests this process has sent since; counted where ``requests`` sends them."""
    send = requests.Session.send
    count = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return send(*args, **kwargs)

    requests.Session.send = counted  # type: ignore[method-assign]
    try:
        yield lambda: count
    finally:
        requests.Session.send = send  # type: ignore[method-assign]


@dataclass(frozen=True)
class Shipped:
    """What shipping a ledger took."""

    num_values: int
    #: Once per study: the experiment, which runs there are, the parent run.
    num_opening_requests: int
    #: For all trials together.
    num_requests: int
    seconds: float
    #: CPU of this process, which a real study's scheduling loop shares.
    cpu_seconds: float
    #: In the caller's thread, the scheduling loop of a real study.
    notice_microseconds: float
    #: Opening the study again, as the next run does.
    reopen_seconds: float
    num_reopen_requests: int


def add_files(ledger: Ledger) -> None:
    """Write predictions and a log for every trial of a synthetic ledger."""
    random = np.random.default_rng(0)
    shifts = ("identity/0", *(f"{shift}/{severity}" for shift in SHIFTS for severity in range(1, 6)))
    labels = random.integers(0, NUM_CLASSES, NUM_IMAGES)
    logits = random.normal(size=(len(shifts), NUM_IMAGES, NUM_CLASSES)).astype(np.float32)
    for trial in ledger.read_plan()["trials"]:
        folder = ledger.folder("trial", trial["signature"])
        save_predictions(folder, Predictions("test", np.arange(NUM_IMAGES), labels, shifts, logits))
        folder.write("log.txt", b"2026-11-30 12:00:00 epoch 3, training loss 0.312\n" * NUM_LOG_LINES)


def ship(ledger: Ledger, tracking_uri: str) -> Shipped:
    """Ship every trial through the background shipper, all noticed before it starts.

    Raises:
        RuntimeError: not everything arrived.
    """
    signatures = [trial["signature"] for trial in ledger.read_plan()["trials"]]
    num_values = sum(project(ledger.read("trial", signature)).num_points for signature in signatures)
    tracker = Tracker(tracking_uri, ledger, about=ledger.read_plan())
    shipper = Shipper(lambda: tracker, ledger, interval_seconds=0.0)
    started = time.perf_counter()
    for signature in signatures:
        shipper.notify("trial", signature)
    notice_seconds = (time.perf_counter() - started) / len(signatures)
    with counting_requests() as count:
        tracker.open()
        num_opening = count()
        cpu = time.process_time()
        shipper.start()
        num_left = shipper.finish(timeout_seconds=3600.0)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
        num_requests = count() - num_opening
        if num_left:
            raise RuntimeError(f"{num_left} of {len(signatures)} records did not reach {tracking_uri}")
        again = time.perf_counter()
        Tracker(tracking_uri, ledger, about=ledger.read_plan()).open()
        reopen_seconds, num_reopen = time.perf_counter() - again, count() - num_opening - num_requests
    return Shipped(
        num_values, num_opening, num_requests, seconds, cpu, 1e6 * notice_seconds, reopen_seconds, num_reopen
    )


def time_one_by_one(tracking_uri: str) -> float:
    """Return metric values per second when each is a call of its own."""
    client = MlflowClient(tracking_uri)
    run_id = client.create_run(client.create_experiment("one-by-one")).info.run_id
    started = time.perf_counter()
    for step in range(NUM_ONE_BY_ONE):
        client.log_metric(run_id, "loss", 1.0 / (step + 1), step=step)
    return NUM_ONE_BY_ONE / (time.perf_counter() - started)


def measure(store: str, tracking_uri: str, folder: Path, *, num_runs: int) -> Line:
    """Return the line of one store; its ratio is of the bar that is missed by most."""
    MlflowClient(tracking_uri).search_experiments()  # makes the tables of a new database: once, not per trial
    levels = {"augmentation": ("none", "strong")}
    ledger = make_fake_ledger(folder, factors=levels, replicates=num_runs // 2, externals=(), study=f"ship-{store}")
    add_files(ledger)
    shipped = ship(ledger, tracking_uri)
    rate = shipped.num_values / shipped.seconds
    per_trial = shipped.num_requests / num_runs
    ratios = [rate / METRICS_PER_SECOND]
    if store == "http":
        ratios.append(REQUESTS_PER_TRIAL / per_trial)
    one_by_one = time_one_by_one(tracking_uri)
    facts = {
        "runs": num_runs,
        "metrics_per_run": shipped.num_values / num_runs,
        "metrics_per_second": rate,
        "one_by_one_per_second": one_by_one,
        "ours_over_one_by_one": rate / one_by_one,
        "seconds": shipped.seconds,
        "cpu_ms_per_trial": 1e3 * shipped.cpu_seconds / num_runs,
        "notice_microseconds": shipped.notice_microseconds,
        "reopen_seconds": shipped.reopen_seconds,
    }
    if store == "http":
        facts |= {"requests_per_trial": per_trial, "requests_once": shipped.num_opening_requests}
        facts["requests_to_reopen"] = shipped.num_reopen_requests
    return Line(f"tracking.{store}.{num_runs}", min(ratios), 1.0, facts)


def main() -> None:
    """Measure both stores and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="finished trials, an even number")
    num_runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        folder = Path(root)
        measure("sqlite", f"sqlite:///{folder}/direct.db", folder, num_runs=num_runs).emit()
        with mlflow_server(folder) as url:
            measure("http", url, folder, num_runs=num_runs).emit()


if __name__ == "__main__":
    main()
