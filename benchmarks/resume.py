"""``run`` on a finished study, where nothing is started; and after kill -9, to the first training step.

    python benchmarks/resume.py --trials 1000 10000

The ledger is written through its API from the study's real plan, with synthetic results (but not waiting for the disk).
MLflow's database holds every run in full, as after a real study: one trial is shipped, and its rows are copied for the
others. The first ``run`` writes the report and attaches it in MLflow, as the run that ends a study does
(``seconds_to_report``); the claim is the second, of which nothing has changed since.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sqlite3
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from common import Line, Place, make_place

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from orchestrator.study.study_file import load_study
from orchestrator.tracking.run_index import RunIndex
from tests.support.synthetic_ledger import STARTED_MS, make_result

#: 2 × 25 levels, few enough that a page can show them; a larger study has more replicates.
ARMS = 50
#: 10 s for 10,000 trials; the same limit for fewer.
BAR_SECONDS = 10.0
KILLED_BAR_SECONDS = 15.0
NUM_EPOCHS = 12


def finish_study(place: Place, *, num_severities: int) -> Prepared:
    """Write the ledger of a study all of whose trials are complete; return what ``run`` will see."""
    study = load_study(place.study)
    prepared = prepare(study, storage=str(place.storage))
    ledger = prepared.ledger
    ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.trials:
        write_complete(ledger, work, study=study.study, num_severities=num_severities)
    return prepared


def write_complete(ledger: Ledger, work: Work, *, study: str, num_severities: int) -> None:
    """Write one finished trial: ``config.json``, 12 epochs and a result of 14 shifts."""
    ledger.begin(work, study=study, git_commit=None)
    folder = ledger.folder(work.kind, work.signature)
    lines = []
    for epoch in range(1, NUM_EPOCHS + 1):
        metrics = {"train/loss": 1 / epoch, "val/loss": 1.1 / epoch, "val/accuracy": 0.9, "seconds": 1.0}
        lines.append(json.dumps({"epoch": epoch, "timestamp_ms": STARTED_MS + epoch * 1000, "metrics": metrics}))
    folder.write("epochs.jsonl", ("\n".join(lines) + "\n").encode())
    folder.write_json("result.json", make_result(work, (), num_severities))


def fill_mlflow(prepared: Prepared, database: Path) -> int:
    """Ship the first trial, copy its run for all others; return the number of metric values in the database."""
    from orchestrator.tracking.tracker import Tracker

    first, *others = prepared.plan.trials
    about = prepared.about | prepared.plan.as_json()
    tracker = Tracker(f"sqlite:///{database}", prepared.ledger, about=about)
    tracker.open()
    tracker.ship(prepared.ledger.read("trial", first.signature))
    tracker.close_interrupted()
    tracker.close(is_complete=True)
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA synchronous = OFF")
    with connection:
        copy_run(connection, first.signature, [work.signature for work in others])
    index = RunIndex(prepared.ledger.root)
    index.load(tracker.parent_run_id)
    template = index.runs[first.signature]
    runs = {work.signature: replace(template, run_id=work.signature) for work in others}
    index.replace(tracker.parent_run_id, index.runs | runs)
    num_values = int(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])
    connection.close()
    return num_values


def copy_run(connection: sqlite3.Connection, signature: str, signatures: list[str]) -> None:
    """Copy all rows of the run of ``signature``, one copy per signature."""
    query = "SELECT run_uuid FROM tags WHERE key = 'robustsweep.signature' AND value = ?"
    (template,) = connection.execute(query, [signature]).fetchone()
    connection.execute("CREATE TEMP TABLE copies (new_id TEXT, signature TEXT)")
    connection.executemany("INSERT INTO copies VALUES (?, ?)", [(new, new) for new in signatures])
    for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
        described = connection.execute(f"PRAGMA table_info({table})").fetchall()
        columns = [row[1] for row in described]
        values = ", ".join("new_id" if column == "run_uuid" else f"{table}.{column}" for column in columns)
        # In the order of the primary key, so that its tree grows at one end.
        order = ", ".join(str(row[0] + 1) for row in sorted(described, key=lambda row: row[5]) if row[5])
        connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) "
            f"SELECT {values} FROM {table}, copies WHERE run_uuid = ? ORDER BY {order}",
            [template],
        )
    connection.execute(
        "UPDATE tags SET value = copies.signature FROM copies "
        "WHERE tags.run_uuid = copies.new_id AND key = 'robustsweep.signature'"
    )


def call_run(place: Place) -> tuple[float, float]:
    """Run the study; return the seconds it took and the CPU seconds of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = place.call("run")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(num_trials: int, *, num_severities: int) -> Line:
    """Return the line of a finished study of ``num_trials``.

    Raises:
        ValueError: not a multiple of the number of arms.
    """
    if num_trials % ARMS:
        raise ValueError(f"--trials: found {num_trials}, expected a multiple of the {ARMS} arms")
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        folder = Path(root)
        replicates = num_trials // ARMS
        place = make_place(folder, "resume", levels=ARMS // 2, replicates=replicates, cache_dir=folder / "cache")
        started = time.perf_counter()
        with mock.patch.object(os, "fsync"):
            prepared = finish_study(place, num_severities=num_severities)
            num_values = fill_mlflow(prepared, Path(prepared.ledger.root.uri) / "mlflow.db")
        written = time.perf_counter() - started
        plan_seconds = place.call("plan", "--no-pilot", "--json")
        report_seconds, report_cpu = call_run(place)
        seconds, cpu = call_run(place)
        page_mb = (Path(prepared.ledger.root.uri) / "report" / "index.html").stat().st_size / 1e6
    facts = {
        "trials": num_trials,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "seconds_to_report": report_seconds,
        "cpu_seconds_to_report": report_cpu,
        "page_mb": page_mb,
        "plan_seconds": plan_seconds,
        "metric_values_in_mlflow": num_values,
        "seconds_to_fake": written,
    }
    return Line(f"resume.{num_trials}", BAR_SECONDS / seconds, 1.0, facts)


def measure_killed() -> Line:
    """Return the line of a driver killed with kill -9: from ``run`` again to the first new training step.

    Raises:
        RuntimeError: nothing trains.
    """
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        folder = Path(root)
        place = make_place(folder, "killed", levels=6, replicates=2, cache_dir=folder / "cache", epochs=8)
        driver = place.start("run")
        wait_for_step(place, after=0.0)
        driver.kill()
        driver.wait()
        began = time.time()
        said = (place.storage / "output.txt").stat().st_size
        driver = place.start("run")
        try:
            # What the killed driver has left trains on for 2 s; the plan is said later than that.
            while b"plan " not in (place.storage / "output.txt").read_bytes()[said:] and driver.poll() is None:
                time.sleep(0.05)
            step = wait_for_step(place, after=time.time())
        finally:
            driver.send_signal(signal.SIGINT)
            driver.wait(60)
    facts = {"seconds": step - began}
    return Line("resume.killed", KILLED_BAR_SECONDS / (step - began), 1.0, facts)


def wait_for_step(place: Place, *, after: float) -> float:
    """Wait for an epoch that began after a time; return when it began, both in seconds of the clock."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in place.storage.rglob("epochs.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                began = float(record["timestamp_ms"] / 1000 - record["metrics"]["seconds"])
                if began > after:
                    return began
        time.sleep(0.1)
    raise RuntimeError(f"no training step within 120 s:\n{(place.storage / 'output.txt').read_text()[-2000:]}")


def main() -> None:
    """Measure and print one JSON line per size, and that of a killed driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000])
    parser.add_argument("--severities", type=int, default=1, help="of each of 14 shifts, in the synthetic results")
    asked = parser.parse_args()
    for num_trials in asked.trials:
        measure(num_trials, num_severities=asked.severities).emit()
    measure_killed().emit()


if __name__ == "__main__":
    main()
