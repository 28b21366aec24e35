"""The disk that holds the ledger is full: one clear error, nothing harmed, the same command goes on when there is room.

The disk is a real one of a few MiB, and the command line works on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED
from tests.conftest import FinishedStudy
from tests.support.processes import lines
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.tiny_study import IN_RAY, NUM_TRIALS, Place, copy_place, make_place, stamps

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Room for two studies."""
    with small_disk(tmp_path / "disk", mebibytes=96) as disk:
        yield disk


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Has no room from the beginning; files can be made and not be written."""
    with small_disk(tmp_path / "full", mebibytes=64) as disk:
        disk.fill()
        yield disk


def ledger_of(place: Place) -> Ledger:
    return Ledger(str(place.storage), "tiny")


def digest_of(place: Place) -> str:
    return results_sha256(load_results(ledger_of(place)))


def complete_of(place: Place) -> list[str]:
    return [signature for signature, state in ledger_of(place).states().items() if state == COMPLETE]


def check_stopped(said: str, errors: str, code: int, *, what: str) -> None:
    """One error, in words for a person, and what to do."""
    assert code == 3, said + errors
    assert "Traceback" not in said + errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert what in line
    assert "the disk is full" in line
    assert "run the same command again to go on" in line


def check_goes_on(finished_study: FinishedStudy, place: Place) -> None:
    """What was complete is not touched, and the end is that of an undisturbed study."""
    before = stamps(place, complete_of(place))
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in done.stdout
    assert before.items() <= stamps(place).items()
    assert digest_of(place) == digest_of(finished_study.place)
    assert not list(place.ledger.rglob("failure.json"))
    assert not list(place.ledger.rglob("*.tmp"))


def test_nothing_begins_on_a_full_disk(finished_study: FinishedStudy, disk: SmallDisk) -> None:
    place = make_place(disk.root / "study", finished_study.place.study.parent / "cache")
    disk.fill()
    done = place.call("run")
    check_stopped(done.stdout, done.stderr, done.returncode, what=f"{place.ledger}/lease.json")
    assert stamps(place) == {}
    place.wait_for_silence()


@pytest.mark.long
@pytest.mark.parametrize("options", [(), IN_RAY], ids=["own slots", "Ray"])
def test_a_disk_that_fills_up_while_trials_train(
    finished_study: FinishedStudy, disk: SmallDisk, options: tuple[str, ...]
) -> None:
    """MLflow's database lies on the same disk."""
    place = make_place(disk.root / "study", finished_study.place.study.parent / "cache")
    process = place.start("run", *options)
    said = ""
    for line in lines(process):
        said += line
        if ": epoch 2" in line:
            disk.fill()
            break
    rest, errors = process.communicate(timeout=200)
    check_stopped(said + rest, errors, process.returncode, what=str(place.ledger))
    place.wait_for_silence()
    assert not (place.ledger / "lease.json").exists()
    assert FAILED not in ledger_of(place).states().values()
    disk.make_room()
    check_goes_on(finished_study, place)


@pytest.mark.long
@pytest.mark.parametrize("name", ["epochs.jsonl", "config.json", "predictions", "result.json"])
def test_each_write_of_a_trial(
    finished_study: FinishedStudy, tmp_path: Path, disk: SmallDisk, full_disk: SmallDisk, name: str
) -> None:
    """The file itself, or all but it, lies on the full disk."""
    place = copy_place(finished_study.place, tmp_path / "copy")
    trial = sorted((place.ledger / "trials").iterdir())[0]
    others = [signature for signature in complete_of(place) if signature != trial.name]
    before = stamps(place, others)
    prepare_trial(trial, name, disk, full_disk)
    done = place.call("run")
    check_stopped(done.stdout, done.stderr, done.returncode, what=f"{place.ledger}/trials/{trial.name}/{name}")
    place.wait_for_silence()
    assert stamps(place, others) == before
    assert ledger_of(place).states()[trial.name] == INTERRUPTED or name == "config.json"
    full_disk.make_room()
    check_goes_on(finished_study, place)


def prepare_trial(trial: Path, name: str, disk: SmallDisk, full_disk: SmallDisk) -> None:
    """Make the trial begin anew, or evaluate again, with what it writes as ``name`` on the full disk."""
    match name:
        case "epochs.jsonl":
            shutil.rmtree(trial)
            trial.mkdir()
            (full_disk.root / name).touch()
            (trial / name).symlink_to(full_disk.root / name)
        case "config.json":
            shutil.rmtree(trial)
            (full_disk.root / trial.name).mkdir()
            trial.symlink_to(full_disk.root / trial.name)
        case "predictions":
            (trial / "result.json").unlink()
            shutil.rmtree(trial / name)
            (full_disk.root / name).mkdir()
            (trial / name).symlink_to(full_disk.root / name)
        case _:
            (trial / name).unlink()
            shutil.move(trial / "predictions", disk.root / "predictions")
            (trial / "predictions").symlink_to(disk.root / "predictions")
            full_disk.make_room()
            shutil.copytree(trial, full_disk.root / trial.name, symlinks=True)
            shutil.rmtree(trial)
            trial.symlink_to(full_disk.root / trial.name)
            full_disk.fill()


@pytest.mark.long
def test_the_report(finished_study: FinishedStudy, tmp_path: Path, full_disk: SmallDisk) -> None:
    place = copy_place(finished_study.place, tmp_path / "copy")
    shutil.rmtree(place.ledger / "report")
    (full_disk.root / "report").mkdir()
    (place.ledger / "report").symlink_to(full_disk.root / "report")
    before = stamps(place)
    for command in ("run", "report"):
        done = place.call(command)
        check_stopped(done.stdout, done.stderr, done.returncode, what=f"{place.ledger}/report/trials.csv")
    assert stamps(place) == before
    full_disk.make_room()
    check_goes_on(finished_study, place)


@pytest.mark.long
def test_the_store_of_mlflow(finished_study: FinishedStudy, tmp_path: Path, full_disk: SmallDisk) -> None:
    """No trial cares; what is missing is said, and shipped later."""
    place = make_place(tmp_path / "study", finished_study.place.study.parent / "cache")
    store = ("--mlflow", f"sqlite:///{full_disk.root}/mlflow.db")
    done = place.call("run", *store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "records are not shipped to MLflow yet" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert digest_of(place) == digest_of(finished_study.place)
