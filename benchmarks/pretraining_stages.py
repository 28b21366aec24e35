"""Claims: sharing stages costs a study nothing beyond them, and K encoders are K stage runs, whatever happens.

    python benchmarks/pretraining_stages.py                # 3 × 4 × 6 trials, 6 encoders: perhaps an hour
    python benchmarks/pretraining_stages.py --quick        # 3 × 1 × 2 trials, 2 encoders: minutes

The study has three initialisations (scratch, ImageNet, SimCLR from ImageNet with K encoders), a regulariser as its
second factor, and R replicates.

*Wall*: the study from the command line on an empty storage, beside its two halves alone, their sum. The stages alone:
``run_stage`` of the same K stages in bare processes, one per CPU, imports included, no study around them. The
fine-tunings alone: the same study from the command line on a storage where its stages, and nothing else, are complete.
All three from the start of their first process to the end of their last, in turns; ``ratio_by_cpu_seconds`` is the same
ratio of the CPU seconds of all their processes, for busy machines.

*Runs*: the driver of a study is killed (SIGKILL) while its stages are trained, and the same command is given again;
then a second study on the storage has the same stages and other regularisers. A stage run is a stage that a study has
trained and not copied, as the ledgers say it; one whose epochs from before the kill have other times at the end was
trained again, and counts twice. MLflow's databases have to agree. What the kill cuts off within an epoch is lost, and
not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import Line, Place, describe_machine, environment, fill_study

WALL_BAR = 1 / 1.05
STUDY = """\
study: NAME
question: Which initialisation needs which regulariser?
data: {kind: digits, image_size: 32, channels: 3}
model: {name: timm/tf_efficientnet_lite0, input_size: 32, stages: 2, stem: original}
training: {epochs: EPOCHS, batch_size: 64}
evaluation: {shifts: [gaussian_noise], severities: [3], store_features: []}
factors:
  pretraining:
    scratch: scratch
    imagenet: imagenet
    contrastive:
    - imagenet
    - {kind: contrastive, epochs: STEPS, batch_size: 256, encoders: ENCODERS, horizontal_flip: false}
  regulariser: [REGULARISERS]
replicates: REPLICATES
execution: {cache_dir: CACHE, device: cpu}
"""
NUM_INITIALISATIONS = 3
#: Study → its regularisers: no trial of one is a trial of the other.
REGULARISERS = {
    "first": ("none", "weight_decay", "label_smoothing", "mixup"),
    "second": ("dropout", "cutmix", "spectral_decoupling", "sam"),
}
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Sizes:
    """Sizes of both studies."""

    regularisers: int
    replicates: int
    encoders: int
    epochs: int
    stage_epochs: int

    @property
    def num_trials(self) -> int:
        """Trials of one study."""
        return NUM_INITIALISATIONS * self.regularisers * self.replicates


def make_study(folder: Path, name: str, storage: Path, sizes: Sizes, cache_dir: Path) -> Place:
    """Write one of the two studies into ``folder``."""
    values = {
        "NAME": name, "EPOCHS": sizes.epochs, "STEPS": sizes.stage_epochs, "ENCODERS": sizes.encoders,
        "REGULARISERS": ", ".join(REGULARISERS[name][: sizes.regularisers]), "REPLICATES": sizes.replicates,
        "CACHE": cache_dir,
    }  # fmt: skip
    return Place(fill_study(STUDY, values, folder / f"{name}.yaml"), storage)


# ------------------------------------------------------------------ processes


def adopt_orphans() -> None:
    """Make this process the parent of all that its children leave behind: fork servers detach themselves.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def wait_for_silence() -> None:
    """Wait until no descendant is left; their CPU seconds are this process's children's then.

    Raises:
        RuntimeError: one is left after two minutes.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.05)
    raise RuntimeError("waited 120 s for the processes of a study to end, and found some left")


@dataclass(frozen=True)
class Took:
    """Seconds of a measured run."""

    wall: float
    #: Of all its processes.
    cpu: float


def measure(call: Callable[[], object]) -> Took:
    """Return what a call took whose processes all end with it, or soon after."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    call()
    wall = time.perf_counter() - started
    wait_for_silence()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


# ------------------------------------------------------------------ wall


def write_stages(place: Place, file: Path) -> int:
    """Write signature and config of all stages of a study's plan into a JSON file; return their number."""
    from orchestrator.driver.prepare import prepare
    from orchestrator.study.study_file import load_study

    stages = prepare(load_study(place.study), storage=str(place.storage)).plan.stages
    rows = [{"signature": stage.signature, "config": stage.config.model_dump(mode="json")} for stage in stages]
    file.write_text(json.dumps(rows))
    return len(rows)


def run_stages_alone(stages: Path, cache_dir: Path, folder: Path) -> None:
    """Train all stages in one process per CPU, each working through its share.

    Raises:
        RuntimeError: a process failed.
    """
    num_cpus = int(describe_machine()["num_cpus"])
    words = [sys.executable, __file__, "--as", "stages", "--job", str(stages), "--folder", str(folder)]
    words += ["--cache-dir", str(cache_dir), "--num-cpus", str(num_cpus)]
    shares = [[*words, "--share", str(number)] for number in range(num_cpus)]
    processes = [subprocess.Popen(each, env=environment()) for each in shares]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"bare processes ended with exit codes {codes}")


def main_stages(stages: Path, cache_dir: Path, folder: Path, *, share: int, num_cpus: int) -> None:
    """Body of one bare process."""
    from trainables.config import Execution, StageConfig
    from trainables.stage import run_stage
    from trainables.storage.folder import Folder

    execution = Execution(device="cpu", num_threads=1, cache_dir=cache_dir)
    for row in json.loads(stages.read_text())[share::num_cpus]:
        run_stage(
            StageConfig.model_validate(row["config"]),
            signature=row["signature"],
            folder=Folder(str(folder)) / row["signature"],
            execution=execution,
        )


def measure_round(root: Path, number: int, sizes: Sizes, cache_dir: Path) -> dict[str, Took]:
    """Return what the study, its stages alone and its fine-tunings alone took.

    Raises:
        RuntimeError: not as many stages as encoders, or the fine-tunings alone have trained one.
    """
    folder = root / f"round-{number}"
    place = make_study(folder, "first", folder / "whole", sizes, cache_dir)
    stages = folder / "stages.json"
    found = write_stages(place, stages)
    if found != sizes.encoders:
        raise RuntimeError(f"planned {found} stages, expected {sizes.encoders}")
    took = {"study": measure(partial(place.call, "run"))}
    took["stages"] = measure(partial(run_stages_alone, stages, cache_dir, folder / "alone"))
    rest = Place(place.study, folder / "rest")
    shutil.copytree(place.storage / "first" / "stages", rest.storage / "first" / "stages")
    took["fine_tunings"] = measure(partial(rest.call, "run"))
    if read_epochs(rest, "first") != read_epochs(place, "first"):
        raise RuntimeError("the study whose stages were complete has trained one of them")
    for name, each in took.items():
        print(f"{name:<12} {each.wall:7.1f} s, {each.cpu:7.1f} CPU s", flush=True)
    return took


def compare_wall(root: Path, sizes: Sizes, cache_dir: Path, repeat: int) -> Line:
    """Return the line of wall time: both halves alone over the study, the median over the rounds."""
    rounds = [measure_round(root, number, sizes, cache_dir) for number in range(repeat)]

    def ratio(field: str) -> float:
        alone = [getattr(took["stages"], field) + getattr(took["fine_tunings"], field) for took in rounds]
        whole = [getattr(took["study"], field) for took in rounds]
        return statistics.median(half / each for half, each in zip(alone, whole, strict=True))

    facts = {
        "ratio_by_cpu_seconds": ratio("cpu"), "trials": sizes.num_trials, **vars(sizes), "repeat": repeat,
        **{name: vars(rounds[-1][name]) for name in rounds[-1]},
    }  # fmt: skip
    return Line("pretraining.stages.wall", ratio("wall"), WALL_BAR, facts)


# ------------------------------------------------------------------ runs


def read_epochs(place: Place, study: str) -> dict[tuple[str, int], int]:
    """Return stage and epoch → when it ended, in ms, of all stages in a study's ledger."""
    found = {}
    for path in (place.storage / study / "stages").glob("*/epochs.jsonl"):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line is being written, or the kill has cut it off
                continue
            found[path.parent.name, int(record["epoch"])] = int(record["timestamp_ms"])
    return found


def find_trained(place: Place, study: str) -> dict[str, bool]:
    """Return stage → whether this study has trained it, of all complete stages in its ledger; False: copied."""
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.other_studies import FOUND_IN

    records = Ledger(str(place.storage), study).records("stage", states={"complete"})
    return {record.signature: FOUND_IN not in (record.result or {}) for record in records}


def count_in_mlflow(database: Path) -> int:
    """Return the number of stages that MLflow shows as trained by a study."""
    query = (
        "SELECT count(*) FROM tags WHERE key = 'robustsweep.kind' AND value = 'stage' AND run_uuid NOT IN "
        "(SELECT run_uuid FROM tags WHERE key = 'robustsweep.found_in')"
    )
    connection = sqlite3.connect(database)
    (count,) = connection.execute(query).fetchone()
    connection.close()
    return int(count)


def count_repeated(before: dict[tuple[str, int], int], after: dict[tuple[str, int], int]) -> int:
    """Return how many stages have trained an epoch again that they had recorded before."""
    return len({key[0] for key, ended in before.items() if after.get(key) != ended})


def kill_among_stages(place: Place, study: str, sizes: Sizes) -> dict[tuple[str, int], int]:
    """Start a study, kill its driver when a stage has trained an epoch; return the epochs that it leaves.

    Raises:
        RuntimeError: no epoch within five minutes, or no stage was left to train.
    """
    driver = place.start("run")
    deadline = time.monotonic() + 300
    while not read_epochs(place, study) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    wait_for_silence()
    found = read_epochs(place, study)
    if not 0 < len(found) < sizes.encoders * sizes.stage_epochs:
        total = sizes.encoders * sizes.stage_epochs
        raise RuntimeError(f"killed the driver after {len(found)} of {total} epochs of stages, expected it in between")
    return found


def count_runs(root: Path, sizes: Sizes, cache_dir: Path) -> Line:
    """Return the line of stage runs: as many as encoders over those counted.

    Raises:
        RuntimeError: the ledgers and MLflow disagree, or a study lacks a stage.
    """
    folder = root / "runs"
    first, second = (make_study(folder, name, folder / "storage", sizes, cache_dir) for name in REGULARISERS)
    before = kill_among_stages(first, "first", sizes)
    first.call("run")
    wait_for_silence()
    after = read_epochs(first, "first")
    second.call("run")
    wait_for_silence()
    trained = {name: find_trained(first, name) for name in REGULARISERS}
    by_ledger = sum(sum(stages.values()) for stages in trained.values())
    by_mlflow = sum(count_in_mlflow(first.storage / name / "mlflow.db") for name in REGULARISERS)
    numbers = {name: len(stages) for name, stages in trained.items()}
    if by_ledger != by_mlflow or set(numbers.values()) != {sizes.encoders}:
        raise RuntimeError(f"complete stages {numbers}, trained {by_ledger} by the ledgers and {by_mlflow} by MLflow")
    repeated = count_repeated(before, after)
    facts = {
        "stage_runs": by_ledger + repeated, "encoders": sizes.encoders, "trained_again_after_kill": repeated,
        "epochs_before_kill": len(before), "epochs": len(after), "trials": 2 * sizes.num_trials,
        "trained": {name: sum(stages.values()) for name, stages in trained.items()},
    }  # fmt: skip
    return Line("pretraining.stages.runs", sizes.encoders / facts["stage_runs"], 1.0, facts)


def main() -> None:
    """Measure and print the JSON lines; with ``--as``, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regularisers", type=int, default=4, choices=range(1, 5), help="of each study")
    parser.add_argument("--replicates", type=int, default=6)
    parser.add_argument("--encoders", type=int, default=6, help="K, at most as many as replicates")
    parser.add_argument("--epochs", type=int, default=2, help="of a fine-tuning")
    parser.add_argument("--stage-epochs", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=1, help="rounds of the wall time")
    parser.add_argument("--claims", nargs="*", choices=("wall", "runs"), default=["wall", "runs"])
    parser.add_argument("--quick", action="store_true", help="one regulariser a study, two replicates, two encoders")
    for hidden in ("--as", "--job", "--folder", "--share", "--num-cpus", "--cache-dir"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = vars(parser.parse_args())
    if asked["as"] == "stages":
        job, cache_dir, folder = (Path(asked[name]) for name in ("job", "cache_dir", "folder"))
        main_stages(job, cache_dir, folder, share=int(asked["share"]), num_cpus=int(asked["num_cpus"]))
        return
    if sys.platform != "linux":
        parser.exit(1, "benchmarks/pretraining_stages.py waits for the children of children, which only Linux allows\n")
    if asked["encoders"] > asked["replicates"]:
        parser.exit(1, f"--encoders: found {asked['encoders']}, expected at most {asked['replicates']} replicates\n")
    names = ("regularisers", "replicates", "encoders", "epochs", "stage_epochs")
    sizes = Sizes(1, 2, 2, 1, 4) if asked["quick"] else Sizes(*(asked[name] for name in names))
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-", ignore_cleanup_errors=True) as root:
        cache_dir = Path(root) / "cache"
        # Images are decoded beforehand.
        make_study(Path(root), "first", Path(root) / "none", sizes, cache_dir).call("plan", "--no-pilot")
        if "wall" in asked["claims"]:
            compare_wall(Path(root), sizes, cache_dir, asked["repeat"]).emit()
        if "runs" in asked["claims"]:
            count_runs(Path(root), sizes, cache_dir).emit()


if __name__ == "__main__":
    main()
