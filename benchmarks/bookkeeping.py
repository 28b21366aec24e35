"""What a trial costs beside its own work: thousands of trials of 1 s on 16 slots, ours beside plain Tune.

    python benchmarks/bookkeeping.py                         # 640 trials of ours, 160 of the peer
    python benchmarks/bookkeeping.py --trials 10000          # the claim; half an hour

A trial sleeps. Ours is everything ``robustsweep run`` does: a forked process with torch imported per trial, the ledger,
every metric to MLflow (SQLite; one shift, one severity), plan and report. The peer is the cheapest that plain Tune has:
a class trainable with ``reuse_actors``, in the actor's own process, its loggers off, nothing tracked; it does a tenth
of the work (a quarter in the quick size). Both are timed whole, and the ratio is one of seconds per trial.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, Line, describe_machine, environment, make_place

NUM_SLOTS, SECONDS = 16, 1.0
ARMS = 20
BAR, BAR_WALL_SECONDS, BAR_MEMORY_MIB, FLAT = 2.5, 700.0, 512.0, 0.9
#: Trials of the claims.
CLAIM = 10_000


# ------------------------------------------------------------------ ours


def main_ours(study: Path, storage: Path) -> None:
    """Body of our driver; prints its peak memory and what lies in MLflow."""
    from rich.console import Console

    from orchestrator.driver import child_process
    from orchestrator.driver.run import run_study
    from orchestrator.study.study_file import load_study

    child_process.MODULE = "benchmarks.sleeping_child"
    with open(storage.parent / "said.txt", "w") as said:
        run_study(load_study(study), storage=str(storage), mlflow=None, address=None, console=Console(file=said))
    print(json.dumps({"driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measure_ours(folder: Path, num_trials: int) -> dict[str, float]:
    """Return seconds a trial, peak memory of the driver, and how the pace at the end compares with the start."""
    place = make_place(folder, "ours", levels=ARMS // 2, replicates=num_trials // ARMS, cache_dir=folder / "cache")
    cpus = int(describe_machine()["num_cpus"]) / NUM_SLOTS
    place.study.write_text(place.study.read_text().replace("execution: {", f"execution: {{cpus_per_trial: {cpus}, "))
    started = time.perf_counter()
    done = _call("ours", "--study", str(place.study), "--storage", str(place.storage))
    wall = time.perf_counter() - started
    paths = list(place.storage.rglob("trials/*/result.json"))
    if len(paths) != num_trials:
        raise RuntimeError(f"found {len(paths)} results in {place.storage}, expected {num_trials}")
    ends = sorted(json.loads(path.read_text())["finished_ms"] / 1000 for path in paths)
    tenth = num_trials // 10
    return {
        "seconds": wall,
        "per_trial": wall / num_trials,
        "first_tenth_per_trial": (ends[tenth] - ends[0]) / tenth,
        "last_tenth_per_trial": (ends[-NUM_SLOTS] - ends[-NUM_SLOTS - tenth]) / tenth,
        **done,
    }


# ------------------------------------------------------------------ plain Tune


def main_peer(num_trials: int) -> None:
    """Body of the plain Tune driver."""
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "1000000000"}
    import ray
    from ray import tune

    class Sleeper(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None: ...

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(SECONDS)
            return {"loss": 0.5, "done": True}

    num_cpus = int(describe_machine()["num_cpus"])
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        results = tune.Tuner(
            tune.with_resources(Sleeper, {"cpu": num_cpus / NUM_SLOTS}),
            param_space={"x": tune.grid_search(list(range(num_trials)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # there is nothing to be kept
            ),
        ).fit()
    if results.num_terminated != num_trials:
        raise RuntimeError(f"plain Tune: {results.num_terminated} of {num_trials} trials ended")
    print(json.dumps({"driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measure_peer(num_trials: int) -> dict[str, float]:
    """Return what ``measure_ours`` returns, as far as it applies."""
    started = time.perf_counter()
    done = _call("peer", "--trials", str(num_trials))
    wall = time.perf_counter() - started
    return {"seconds": wall, "per_trial": wall / num_trials, **done}


def _call(way: str, *options: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--as", way, *options]
    paths = f"{ROOT}:{ROOT / 'benchmarks'}"
    done = subprocess.run(
        words, env=environment() | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"{way} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


# ------------------------------------------------------------------ measuring


def measure(num_trials: int, num_peer_trials: int) -> list[Line]:
    """Return the lines: against plain Tune, memory of the driver, and for 10,000 trials the wall time.

    Raises:
        ValueError: the number is no multiple of the number of arms.
    """
    if num_trials % ARMS:
        raise ValueError(f"--trials: found {num_trials}, expected a multiple of the {ARMS} arms")
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        ours = measure_ours(Path(root), num_trials)
    print(json.dumps({"ours": ours}), flush=True)
    peer = measure_peer(num_peer_trials)
    facts = {"trials": num_trials, "slots": NUM_SLOTS, "peer_trials": num_peer_trials}
    facts |= ours | {f"peer_{name}": value for name, value in peer.items()}
    name = f"bookkeeping.{num_trials}"
    is_claim = num_trials >= CLAIM  # fewer are over before starting is paid off
    said = {} if is_claim else {"bar_is": f"none below {CLAIM} trials"}
    flat = ours["first_tenth_per_trial"] / ours["last_tenth_per_trial"]
    ideal = num_trials * SECONDS / NUM_SLOTS
    bar_wall = BAR_WALL_SECONDS / 625.0 * ideal  # 700 s for 10,000 trials
    pace = {"first": ours["first_tenth_per_trial"], "last": ours["last_tenth_per_trial"]}
    return [
        Line(f"{name}.plain_tune", peer["per_trial"] / ours["per_trial"], BAR if is_claim else 0.0, facts | said),
        Line(f"{name}.memory", BAR_MEMORY_MIB / ours["driver_mib"], 1.0, {"mib": ours["driver_mib"]}),
        # The first tenth holds the ramp up, so that only a growing cost brings this below the bar.
        Line(f"{name}.flat", flat, FLAT if is_claim else 0.0, pace | said),
        Line(
            f"{name}.wall",
            bar_wall / ours["seconds"],
            1.0 if is_claim else 0.0,
            {"seconds": ours["seconds"], "ideal": ideal, **said},
        ),
    ]


def main() -> None:
    """Measure and print the JSON lines, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=640)
    parser.add_argument("--peer-trials", type=int, help="default: a tenth, at least 160")
    for hidden in ("--as", "--study", "--storage"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = vars(parser.parse_args())
    if asked["as"] == "ours":
        main_ours(Path(asked["study"]), Path(asked["storage"]))
    elif asked["as"] == "peer":
        main_peer(asked["trials"])
    else:
        for line in measure(asked["trials"], asked["peer_trials"] or max(160, asked["trials"] // 10)):
            line.emit()


if __name__ == "__main__":
    main()
