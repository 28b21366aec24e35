"""What ``robustsweep simulate`` predicts beside what runs take, and how long a simulation takes.

    python benchmarks/simulation.py                          # 100,000 trials simulated; a run on this machine
    python benchmarks/simulation.py --cluster                # also 16 slots on two nodes, one of which is lost

The run on this machine is a small study that trains. On the cluster (two raylets here, eight slots each) trials sleep;
one node is killed while it works, and another one joins. Both are compared with simulations of the same plan with the
durations of the run's own ledger; a ratio of 1 is a prediction that fits exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from common import ROOT, Line, Place, environment, make_place
from sleeping_child import SLEEP_EPOCHS, SLEEP_SECONDS, SLEEP_SPREAD

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.simulation.cluster import Cluster, Overheads
from orchestrator.driver.simulation.durations import Durations
from orchestrator.driver.simulation.simulate import choose_cluster, find_durations, make_scenario, simulate
from orchestrator.driver.simulation.simulator import NextLoss
from orchestrator.driver.simulation.summary import summarise
from orchestrator.study.study_file import load_study

#: Trials of the claim on speed, and the CPU seconds of one thread in which they are simulated, plan included.
CLAIM, BAR_SECONDS = 100_000, 120.0
#: Worst ratio of predicted and measured time that counts as right.
BAR = 0.9
REPEATS = 50
#: Slots of each of the two nodes; sleeping trials, their seconds and by how much these differ, their epochs.
NODE_SLOTS, TRIALS, SECONDS, SPREAD, EPOCHS = 8, 320, 6.0, 3.0, 4
#: Seconds after the first trial until a node is lost, and from then until another one is started.
LOST_AFTER, REPLACED_AFTER = 40.0, 20.0
#: Time until a node whose processes are killed is noticed: their connections end.
NOTICE = 2.0


def measure_speed(num_trials: int) -> Line:
    """Plan and simulate trials of 60 s on 64 nodes with 8 GPUs each that are lost now and then."""
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        folder = Path(root)
        place = make_place(folder, "big", levels=25, replicates=num_trials // 50, cache_dir=folder / "cache")
        started, wall = time.process_time(), time.perf_counter()
        prepared = prepare(load_study(place.study), storage=str(place.storage))
        planned = time.process_time() - started
        cluster = choose_cluster(prepared, nodes=64, gpus=8, spot_loss=0.05)
        scenario = make_scenario(prepared, find_durations(prepared, seconds="60±10"), cluster, whole=True)
        (outcome,) = simulate(scenario, repeats=1, seed=0)
        seconds, wall = time.process_time() - started, time.perf_counter() - wall
    if outcome.complete != num_trials:
        raise RuntimeError(f"{outcome.complete} of {num_trials} trials are complete")
    facts = {
        "cpu_seconds": seconds,
        "of_these_planning": planned,
        "wall_seconds": wall,
        "trials": num_trials,
        "slots": cluster.num_slots,
    }
    facts |= {"nodes_lost": outcome.nodes_lost, "attempts_lost": outcome.attempts_lost, "makespan": outcome.makespan}
    is_claim = num_trials >= CLAIM
    said = {} if is_claim else {"bar_is": f"none below {CLAIM} trials"}
    return Line(f"simulation.{num_trials}", BAR_SECONDS / seconds, 1.0 if is_claim else 0.0, facts | said)


def compare(  # noqa: PLR0913 - a prediction has that many parts
    name: str,
    prepared: Prepared,
    durations: Durations,
    cluster: Cluster,
    overheads: Overheads,
    *,
    measured: float,
    next_loss: NextLoss | None = None,
    facts: dict[str, Any],
) -> Line:
    """Return the line of a run: the smaller of predicted / measured and its inverse, and the range predicted."""
    scenario = make_scenario(prepared, durations, cluster, whole=True, overheads=overheads)
    outcomes = simulate(scenario, repeats=REPEATS, seed=0, next_loss=next_loss)
    found = summarise(outcomes, cluster, price=None).figures["makespan_seconds"]
    ratio = found.median / measured
    facts |= {"predicted_over_measured": ratio, "measured_seconds": measured, "predicted_seconds": found.median}
    facts |= {"range": [found.low, found.high], "is_in_range": found.low <= measured <= found.high}
    facts |= {"trial_seconds": durations.by_kind["trial"].mean, "sigma": durations.sigma}
    return Line(name, min(ratio, 1 / ratio), BAR, facts | {"overheads": vars(overheads)})


def find_last_end(place: Place) -> float:
    """Return when the last trial of a ledger ended, in seconds since the epoch."""
    paths = place.storage.rglob("trials/*/result.json")
    return max(float(json.loads(path.read_text())["finished_ms"]) for path in paths) / 1000


# ------------------------------------------------------------------ a run on this machine


def measure_local(num_replicates: int) -> Line:
    """Run a small study for real on the slots of this machine, and simulate it with its own durations."""
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-", ignore_cleanup_errors=True) as root:
        folder = Path(root)
        place = make_place(folder, "ours", levels=6, replicates=num_replicates, cache_dir=folder / "cache")
        prepare(load_study(place.study), storage=str(place.storage))  # decodes the images
        began = time.time()
        place.call("run")
        measured = find_last_end(place) - began
        prepared = prepare(load_study(place.study), storage=str(place.storage))
        durations, cluster = find_durations(prepared), choose_cluster(prepared, nodes=1, gpus=0)
        overheads = Overheads(per_trial=durations.overhead or 0.0)
        facts = {"trials": len(prepared.plan.trials), "slots": cluster.num_slots}
        return compare("simulation.local", prepared, durations, cluster, overheads, measured=measured, facts=facts)


# ------------------------------------------------------------------ a cluster that loses a node


def main_driver(study: Path, storage: Path, address: str) -> None:
    """Body of the driver's process."""
    from rich.console import Console

    from orchestrator.driver import child_process
    from orchestrator.driver.run import run_study

    child_process.MODULE = "benchmarks.sleeping_child"
    with open(storage.parent / "said.txt", "w") as said:
        run_study(load_study(study), storage=str(storage), mlflow=None, address=address, console=Console(file=said))


def measure_cluster() -> Line:
    """Run trials that sleep on two nodes, lose one of them, and simulate the same."""
    from tests.support.ray_clusters import running_cluster

    sleep = {SLEEP_SECONDS: str(SECONDS), SLEEP_SPREAD: str(SPREAD), SLEEP_EPOCHS: str(EPOCHS)}
    os.environ |= environment() | sleep | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}  # nodes inherit it
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-", ignore_cleanup_errors=True) as root:
        folder = Path(root)
        place = make_place(folder, "ours", levels=10, replicates=TRIALS // 20, cache_dir=folder / "cache")
        prepare(load_study(place.study), storage=str(place.storage))
        with running_cluster(uuid.uuid4().hex, num_workers=0) as machines:
            first = machines.add_worker(num_cpus=NODE_SLOTS)
            machines.add_worker(num_cpus=NODE_SLOTS)
            began = time.time()
            words = [sys.executable, __file__, "--as", "driver", "--study", str(place.study)]
            words += ["--storage", str(place.storage), "--address", machines.address]
            with open(folder / "driver.txt", "wb") as output:
                driver = subprocess.Popen(words, stdout=output, stderr=output, cwd=ROOT)
            wait_for_first(place, driver)
            time.sleep(LOST_AFTER)
            first.send(signal.SIGKILL)
            lost = time.time()
            time.sleep(REPLACED_AFTER)
            machines.add_worker(num_cpus=NODE_SLOTS)
            code = driver.wait(900)
        if code:
            raise RuntimeError(f"the driver ended with {code}:\n{(folder / 'driver.txt').read_text()[-3000:]}")
        return predict_cluster(place, began=began, lost=lost)


def predict_cluster(place: Place, *, began: float, lost: float) -> Line:
    """Return the line of the run on the cluster.

    16 processes that start at once on few cores take what they take: when the slots begin, and when those of the new
    node do, is as measured. The rest is predicted.
    """
    prepared = prepare(load_study(place.study), storage=str(place.storage))
    durations, attempts = find_durations(prepared), read_attempts(place, lost)
    num_slots = 2 * NODE_SLOTS
    start = statistics.mean(sorted(begin for begin, _ in attempts)[:num_slots]) - began
    replaced = statistics.mean(find_recovery(attempts, lost)) - lost
    overheads = Overheads(start=start, actor=0.0, notice=NOTICE, per_trial=durations.overhead or 0.0)
    cluster = Cluster(2, NODE_SLOTS, replacement_seconds=replaced)
    after = {0: iter([lost - began - start])}
    facts = {"trials": TRIALS, "slots": num_slots, "attempts": len(attempts), "lost_at": lost - began}
    return compare(
        "simulation.cluster", prepared, durations, cluster, overheads,
        measured=max(end for _, end in attempts) - began,
        next_loss=lambda node: next(after.get(node, iter(())), float("inf")),
        facts=facts | {"slots_begin": start, "node_is_back_after": replaced},
    )  # fmt: skip


def read_attempts(place: Place, lost: float) -> list[tuple[float, float]]:
    """Return begin and end of every attempt, in seconds since the epoch; one without a result ended with its node."""
    found = []
    for path in place.storage.rglob("trials/*/result.json"):
        result = json.loads(path.read_text())
        first = json.loads((path.parent / "epochs.jsonl").read_text().splitlines()[0])
        begin, end = result["started_ms"] / 1000, result["finished_ms"] / 1000
        at_first = first["timestamp_ms"] / 1000 - first["metrics"]["seconds"]
        found.append((begin, end))
        if at_first < begin - 1.0:  # another attempt had begun before
            found.append((at_first, lost))
    return found


def find_recovery(attempts: list[tuple[float, float]], lost: float) -> list[float]:
    """Return when more than the slots of the other node run again, when one more than that, and so on."""
    begins = sorted(begin for begin, _ in attempts if begin > lost)
    running = [(sum(begin <= at < end for begin, end in attempts), at) for at in begins]
    return [
        next(at for count, at in running if count >= wanted) for wanted in range(NODE_SLOTS + 1, 2 * NODE_SLOTS + 1)
    ]


def wait_for_first(place: Place, driver: subprocess.Popen[bytes]) -> None:
    """Wait until a trial has an epoch behind it."""
    while driver.poll() is None:
        if next(place.storage.rglob("trials/*/epochs.jsonl"), None) is not None:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the driver ended with {driver.returncode} before the first trial")


def main() -> None:
    """Measure and print the JSON lines, or be the driver on the cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=CLAIM, help="trials of the simulation that is timed")
    parser.add_argument("--replicates", type=int, default=3, help="of the run on this machine, for 12 arms")
    parser.add_argument("--only", choices=["speed", "local", "cluster"])
    parser.add_argument("--cluster", action="store_true")
    for hidden in ("--as", "--study", "--storage", "--address"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = vars(parser.parse_args())
    if asked["as"] == "driver":
        main_driver(Path(asked["study"]), Path(asked["storage"]), asked["address"])
        return
    if asked["only"] in (None, "speed"):
        measure_speed(asked["trials"]).emit()
    if asked["only"] in (None, "local"):
        measure_local(asked["replicates"]).emit()
    if asked["cluster"] or asked["only"] == "cluster":
        measure_cluster().emit()


if __name__ == "__main__":
    main()
