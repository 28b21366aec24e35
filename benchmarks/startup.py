"""How long one waits: for ``--help``, for the plan of 1,000 trials, for the first training step after ``run``.

    python benchmarks/startup.py --repeat 3

The first step is compared with what nobody can avoid, a process that imports torch and starts Ray, measured in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Line, Place, environment, make_place, median_of, time_process

HELP_SECONDS, PLAN_SECONDS, FIRST_STEP_FACTOR = 0.5, 3.0, 1.3

#: Ray as ``orchestrator.cluster.tune_executor`` starts it: no dashboard. Ended without ``ray.shutdown`` being timed.
FLOOR = """
import json, sys, time
began = float(sys.argv[1])
import torch
imported = time.time()
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
print(json.dumps([imported - began, time.time() - began]))
"""


def measure_help() -> float:
    """Return the seconds of ``robustsweep --help``."""
    return time_process([sys.executable, "-m", "robustsweep", "--help"])


def measure_floor() -> float:
    """Return the seconds from the start of a process until torch is imported and Ray has started."""
    words = [sys.executable, "-c", FLOOR, str(time.time())]
    done = subprocess.run(words, check=True, env=environment(), capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])[1])


def measure_first_step(folder: Path, cache_dir: Path) -> float:
    """Return the seconds from the start of ``run`` on a new study to the start of its first epoch."""
    name = f"first-{time.time_ns()}"
    place = make_place(folder, name, levels=1, replicates=1, cache_dir=cache_dir, epochs=1)
    began = time.time()
    place.call("run")
    return find_first_step(place) - began


def find_first_step(place: Place) -> float:
    """Return when the first epoch of any trial started, as seconds since the epoch of the clock.

    Raises:
        ValueError: no trial has trained.
    """
    records = [json.loads(path.read_text().splitlines()[0]) for path in place.storage.rglob("epochs.jsonl")]
    return min(record["timestamp_ms"] / 1000 - record["metrics"]["seconds"] for record in records)


def measure(repeat: int) -> list[Line]:
    """Return the three lines."""
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        folder, cache_dir = Path(root), Path(root) / "cache"
        thousand = make_place(folder, "plan", levels=50, replicates=10, cache_dir=cache_dir)
        thousand.call("plan", "--no-pilot", "--json")  # decodes the images and compiles Python's bytecode
        help_seconds = median_of(repeat, measure_help)
        plan_seconds = median_of(repeat, lambda: thousand.call("plan", "--no-pilot", "--json"))
        pairs = [(measure_floor(), measure_first_step(folder, cache_dir)) for _ in range(repeat)]
    floor, first = sorted(pairs, key=lambda pair: pair[1] / pair[0])[len(pairs) // 2]
    facts = {"repeat": repeat}
    return [
        Line("startup.help", HELP_SECONDS / help_seconds, 1.0, facts | {"seconds": help_seconds}),
        Line("startup.plan.1000", PLAN_SECONDS / plan_seconds, 1.0, facts | {"seconds": plan_seconds}),
        Line(
            "startup.first_step",
            floor / first,
            1 / FIRST_STEP_FACTOR,
            facts | {"seconds": first, "peer_seconds": floor, "ours_over_peer": first / floor},
        ),
    ]


def main() -> None:
    """Measure and print one JSON line per claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    for line in measure(parser.parse_args().repeat):
        line.emit()


if __name__ == "__main__":
    main()
