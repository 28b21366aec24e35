"""N trials of about 1.3 s three ways: ours with MLflow, plain Tune with MLflowLoggerCallback, bare processes.

    python benchmarks/orchestration.py                                       # 24 trials, all three
    python benchmarks/orchestration.py --trials 120 --peers bare
    python benchmarks/orchestration.py --store http                          # MLflow behind a server instead of SQLite

All three call ``trainables.trial.run_trial`` with the same configs, one thread each, as many at once as there are CPUs.
Each is timed from the start of its first process to the end of its last, imports included; ours also reads the study
file, plans, and writes the report, and the peers do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Line, Place, describe_machine, environment, make_place, mlflow_server

ARMS = 12
BARS = {"plain_tune": 5.0, "bare": 1 / 1.15}


@dataclass(frozen=True)
class Job:
    """The same trials for every way of running them."""

    place: Place
    #: One JSON file per trial: signature and config.
    trials: Path
    num_cpus: int


def make_job(folder: Path, *, num_trials: int) -> Job:
    """Write the study and, from its real plan, the trials; the images are decoded on the way.

    Raises:
        ValueError: the number is no multiple of the number of arms.
    """
    from orchestrator.driver.prepare import prepare
    from orchestrator.study.study_file import load_study

    if num_trials % ARMS:
        raise ValueError(f"--trials: found {num_trials}, expected a multiple of the {ARMS} arms")
    place = make_place(folder, "ours", levels=ARMS // 2, replicates=num_trials // ARMS, cache_dir=folder / "cache")
    plan = prepare(load_study(place.study), storage=str(place.storage)).plan
    trials = folder / "trials.json"
    rows = [{"signature": work.signature, "config": work.config.model_dump(mode="json")} for work in plan.trials]
    trials.write_text(json.dumps(rows))
    return Job(place, trials, int(describe_machine()["num_cpus"]))


# ------------------------------------------------------------------ the three ways


def run_ours(job: Job, folder: Path, tracking_uri: str) -> None:
    """Run the study from the command line, a fresh ledger in ``folder``."""
    Place(job.place.study, folder).call("run", "--mlflow", tracking_uri)


def run_plain_tune(job: Job, folder: Path, tracking_uri: str) -> None:
    """Run the trials as a user of plain Tune would."""
    _call("plain_tune", job, folder, "--mlflow", tracking_uri)


def run_bare(job: Job, folder: Path, tracking_uri: str) -> None:
    """Run the trials in one process per CPU, each working through its share; nothing is tracked."""
    words = [_command("bare", job, folder, "--share", str(number)) for number in range(job.num_cpus)]
    processes = [subprocess.Popen(command, env=environment()) for command in words]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"bare processes ended with exit codes {codes}")


def _command(way: str, job: Job, folder: Path, *options: str) -> list[str]:
    words = [sys.executable, __file__, "--as", way, "--job", str(job.trials), "--folder", str(folder)]
    return [*words, "--num-cpus", str(job.num_cpus), *options]


def _call(way: str, job: Job, folder: Path, *options: str) -> None:
    with open(folder / "output.txt", "wb") as output:
        code = subprocess.call(_command(way, job, folder, *options), env=environment(), stdout=output, stderr=output)
    if code:
        text = (folder / "output.txt").read_text(errors="replace")
        raise RuntimeError(f"{way} ended with exit code {code}:\n{text[-3000:]}")


WAYS: dict[str, Callable[[Job, Path, str], None]] = {
    "ours": run_ours,
    "plain_tune": run_plain_tune,
    "bare": run_bare,
}


def train_one(row: dict[str, Any], folder: str, cache_dir: str, report: Callable[[Any], None]) -> dict[str, Any]:
    """Train and evaluate one trial in this process; return its result."""
    from trainables.config import Execution, TrialConfig
    from trainables.storage.folder import Folder
    from trainables.trial import run_trial

    return run_trial(
        TrialConfig.model_validate(row["config"]),
        signature=row["signature"],
        folder=Folder(folder) / row["signature"],
        execution=Execution(device="cpu", num_threads=1, cache_dir=Path(cache_dir)),
        report=report,
    )


def main_bare(trials: Path, folder: Path, *, share: int, num_cpus: int) -> None:
    """Body of one bare process."""
    for row in json.loads(trials.read_text())[share::num_cpus]:
        train_one(row, str(folder / "trials"), str(trials.parent / "cache"), lambda event: None)


def main_plain_tune(trials: Path, folder: Path, *, num_cpus: int, tracking_uri: str) -> None:
    """Body of the plain Tune process: a function trainable, a checkpoint an epoch, Ray's own MLflow callback."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    root, cache_dir = str(folder / "trials"), str(trials.parent / "cache")

    def train(config: dict[str, Any]) -> None:
        from ray import tune

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                with tempfile.TemporaryDirectory() as kept:
                    shutil.copy(f"{root}/{config['trial']['signature']}/checkpoint.safetensors", kept)
                    tune.report(event["metrics"], checkpoint=tune.Checkpoint.from_directory(kept))

        result = train_one(config["trial"], root, cache_dir, report)
        tune.report(result["metrics"])

    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False)
    results = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"trial": tune.grid_search(json.loads(trials.read_text()))},
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(folder / "tune"),
            callbacks=[MLflowLoggerCallback(tracking_uri=tracking_uri, experiment_name="plain")],
        ),
    ).fit()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} trials of plain Tune failed, the first: {results.errors[0]}")


# ------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Run:
    """One measured run, in seconds."""

    wall: float
    #: From the start of the first process to the start of the first trial.
    before_first: float
    #: From the end of the last trial to the end of the last process.
    after_last: float
    #: Mean length of a trial in its process.
    per_trial: float


def measure(way: str, job: Job, *, num_trials: int, store: str) -> Run:
    """Run all trials one way in a fresh folder and look at what they left."""
    folder = Path(tempfile.mkdtemp(prefix=f"{way}-", dir=job.trials.parent))
    with mlflow_server(folder) if store == "http" else nullcontext(f"sqlite:///{folder}/mlflow.db") as tracking_uri:
        began, started = time.time(), time.perf_counter()
        WAYS[way](job, folder, tracking_uri)
        wall = time.perf_counter() - started
    # Tune writes a result.json per trial too, in folders of its own.
    results = [json.loads(path.read_text()) for path in folder.rglob("trials/*/result.json")]
    if len(results) != num_trials:
        raise RuntimeError(f"{way}: found {len(results)} results in {folder}, expected {num_trials}")
    run = Run(
        wall=wall,
        before_first=min(result["started_ms"] for result in results) / 1000 - began,
        after_last=began + wall - max(result["finished_ms"] for result in results) / 1000,
        per_trial=statistics.mean(result["duration_seconds"] for result in results),
    )
    shutil.rmtree(folder)
    note = f"{way:<10} {wall:7.1f} s: {run.before_first:5.1f} before the first trial, {run.after_last:5.1f} after"
    print(f"{note} the last, {run.per_trial:.2f} a trial", flush=True)
    return run


def median_run(runs: list[Run]) -> Run:
    """Return the run of median wall time."""
    return sorted(runs, key=lambda run: run.wall)[len(runs) // 2]


def describe(ours: Run, peer: Run, *, num_trials: int, repeat: int, store: str) -> dict[str, Any]:
    """Return the facts of a line."""
    return {
        "trials": num_trials,
        "repeat": repeat,
        "store": store,
        "ours_seconds": ours.wall,
        "peer_seconds": peer.wall,
        "ours": vars(ours),
        "peer": vars(peer),
    }


def compare(num_trials: int, peers: list[str], *, repeat: int, store: str) -> list[Line]:
    """Return one line per peer; ways alternate, so that a slow minute of the machine hits all of them."""
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-", ignore_cleanup_errors=True) as folder:
        job = make_job(Path(folder), num_trials=num_trials)
        runs: dict[str, list[Run]] = {way: [] for way in ("ours", *peers)}
        for _ in range(repeat):
            for way, done in runs.items():
                done.append(measure(way, job, num_trials=num_trials, store=store))
    medians = {way: median_run(done) for way, done in runs.items()}
    ours = medians["ours"]
    return [
        Line(
            f"orchestration.{peer}.{num_trials}" + (".http" if store == "http" else ""),
            medians[peer].wall / ours.wall,
            BARS[peer],
            describe(ours, medians[peer], num_trials=num_trials, repeat=repeat, store=store),
        )
        for peer in peers
    ]


def main() -> None:
    """Measure and print one JSON line per peer; with ``--as``, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--peers", nargs="+", choices=list(BARS), default=list(BARS))
    parser.add_argument("--store", choices=["sqlite", "http"], default="sqlite")
    for hidden in ("--as", "--job", "--folder", "--share", "--num-cpus", "--mlflow"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = vars(parser.parse_args())
    if asked["as"] == "bare":
        share, num_cpus = int(asked["share"]), int(asked["num_cpus"])
        main_bare(Path(asked["job"]), Path(asked["folder"]), share=share, num_cpus=num_cpus)
    elif asked["as"] == "plain_tune":
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        folder, num_cpus = Path(asked["folder"]), int(asked["num_cpus"])
        main_plain_tune(Path(asked["job"]), folder, num_cpus=num_cpus, tracking_uri=asked["mlflow"])
    else:
        for line in compare(asked["trials"], asked["peers"], repeat=asked["repeat"], store=asked["store"]):
            line.emit()


if __name__ == "__main__":
    main()
