"""A study in a real SLURM, with the scripts of ``configs/clusters``: preempted, put back into the queue, complete."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.support.paths import ROOT
from tests.support.processes import wait_until
from tests.support.slurm import Slurm
from tests.support.tiny_study import Place, make_place, stamps

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SCRIPTS = ROOT / "configs/clusters"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with Slurm() as slurm:
        yield slurm


def submit(slurm: Slurm, place: Place, script: str, *options: str) -> str:
    """Submit one of the scripts; return the number of the job."""
    settings = {
        "STUDY": str(place.study),
        "STORAGE": str(place.storage),
        "ACTIVATE": f"export PATH={Path(sys.executable).parent}:$PATH",
        "ROBUSTSWEEP_TEST": place.marker,
    }
    place.storage.mkdir(exist_ok=True)
    where = [f"--chdir={place.storage.parent}", f"--output={place.storage.parent}/job-%j.out"]
    return slurm.call("sbatch", "--parsable", *where, *options, str(SCRIPTS / script), **settings).strip()


def read_outputs(place: Place) -> str:
    return "\n".join(path.read_text() for path in sorted(place.storage.parent.glob("job-*.out")))


def digest(place: Place) -> str:
    return results_sha256(load_results(Ledger(str(place.storage), "tiny")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Place:
    """An undisturbed study, trained for so long that it can be disturbed."""
    place = make_long_place(tmp_path_factory.mktemp("whole"), cache_dir)
    assert place.call("run").returncode == 0
    return place


def make_long_place(folder: Path, cache_dir: Path) -> Place:
    place = make_place(folder, cache_dir)
    text = place.study.read_text()
    place.study.write_text(text.replace("{epochs: 3, batch_size: 32,", "{epochs: 20, batch_size: 32,"))
    return place


def check(place: Place, whole: Place) -> None:
    assert digest(place) == digest(whole), read_outputs(place)
    wait_until(lambda: not place.survivors(), "nothing of the study is left")


def test_a_study_that_is_preempted_goes_on_by_itself(
    slurm: Slurm, whole: Place, tmp_path: Path, cache_dir: Path
) -> None:
    place = make_long_place(tmp_path, cache_dir)
    job = submit(slurm, place, "slurm.sbatch", "--time=30")
    wait_until(lambda: len(stamps(place)) >= 1, "a stage or trial has begun", 180.0)
    slurm.call("scontrol", "requeue", job)
    slurm.wait_for(job, "COMPLETED", 400.0)
    check(place, whole)


def test_a_study_that_outlasts_its_time_limit_goes_on_by_itself(
    slurm: Slurm, whole: Place, tmp_path: Path, cache_dir: Path
) -> None:
    place = make_long_place(tmp_path, cache_dir)
    job, submitted = submit(slurm, place, "slurm.sbatch", "--time=30", "--signal=B:TERM@110"), time.monotonic()
    wait_until(lambda: len(stamps(place)) >= 1, "a stage or trial has begun", 180.0)
    # The limit comes one to two minutes from now, and SLURM's signal within ten seconds: whatever the machine's speed.
    minutes = int((time.monotonic() - submitted) // 60) + 2
    slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_until(lambda: "stopped; go on with" in read_outputs(place), "the driver has stopped in order", 120.0)
    wait_until(lambda: slurm.find_state(job) == "PENDING", "the job is back in the queue", 60.0)
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    slurm.wait_for(job, "COMPLETED", 400.0)
    check(place, whole)


def test_three_of_four_tasks_of_an_array_that_are_cancelled_are_made_up_for(
    slurm: Slurm, whole: Place, tmp_path: Path, cache_dir: Path
) -> None:
    place = make_long_place(tmp_path, cache_dir)
    job = submit(slurm, place, "slurm-array.sbatch", "--array=0-3", "--time=30")
    wait_until(lambda: len(stamps(place)) >= 1, "a stage or trial has begun", 180.0)
    for task in (0, 1, 3):
        slurm.call("scancel", f"{job}_{task}")  # with --signal=KILL it takes the tasks that still wait along
    slurm.wait_for(f"{job}_2", "COMPLETED", 600.0)
    check(place, whole)
    # Of task 3, which waited, nothing is left.
    assert {slurm.find_state(f"{job}_{task}") for task in (0, 1)} == {"CANCELLED"}


def test_a_study_that_is_cancelled_stays_ended(slurm: Slurm, tmp_path: Path, cache_dir: Path) -> None:
    place = make_long_place(tmp_path, cache_dir)
    job = submit(slurm, place, "slurm.sbatch", "--time=30")
    wait_until(lambda: len(stamps(place)) >= 1, "a stage or trial has begun", 180.0)
    slurm.call("scancel", job)
    wait_until(lambda: "stopped; go on with" in read_outputs(place), "the driver has stopped in order", 60.0)
    wait_until(lambda: not slurm.call("squeue", "--noheader").strip(), "the job has ended", 60.0)
    assert slurm.find_state(job) == "CANCELLED"
    wait_until(lambda: not place.survivors(), "nothing of the study is left")


def test_an_array_larger_than_the_cluster_allows_is_refused_by_slurm(slurm: Slurm, tmp_path: Path) -> None:
    """The number of trials never is the size of the array: as many tasks as are allowed share them."""
    with pytest.raises(AssertionError, match="Invalid job array specification"):
        slurm.call("sbatch", "--array=0-20", str(SCRIPTS / "slurm-array.sbatch"), STUDY="s", STORAGE=str(tmp_path))
