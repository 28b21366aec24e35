"""Fixtures that several files share."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes that tests start
# Processes that tests start, Ray's actors among them, import ``tests.support``.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

import pytest
import torch

from tests.support.processes import find_listening, find_marked
from tests.support.shared import make_once
from tests.support.tiny_study import IN_RAY, Place, make_place

if TYPE_CHECKING:
    from tests.support.trained_study import TrainedStudy

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where decoded images lie during one test run."""
    return tmp_path_factory.mktemp("image-cache")


@dataclass(frozen=True)
class FinishedStudy:
    """A study that was run once, undisturbed, through the command line; not to be changed by a test."""

    place: Place
    output: str
    errors: str
    exit_code: int
    #: Addresses at which its processes listened while it ran, Ray's among them.
    listened: list[str]


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """The one study of a test run that is trained from start to end, all of it in Ray."""

    def run(folder: Path) -> None:
        place = make_place(folder, folder / "cache")
        process, listened = place.start("run", *IN_RAY), set[str]()
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(process.communicate, timeout=280)
            while not reading.done():
                listened |= find_listening(find_marked(place.marker))
                wait([reading], timeout=1.0)
        said = [place.marker, *reading.result(), process.returncode, sorted(listened)]
        (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")

    folder = make_once(tmp_path_factory, "finished", run)
    marker, *said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return FinishedStudy(Place(folder / "tiny.yaml", folder / "results", marker), *said)


@pytest.fixture(scope="session")
def trained_study(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    """A small study of two arms and two replicates that is trained in this process; not to be changed by a test."""
    from tests.support.trained_study import (
        find_study,  # not above: conftest.py is read before shape annotations are made to run
        train_study,
    )

    return find_study(make_once(tmp_path_factory, "trained", train_study))


@pytest.fixture(scope="session")
def organs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the ledger of a small study of segmentations, beside its file; not to be changed by a test."""
    from tests.support.organs_study import train_organs

    return make_once(tmp_path_factory, "organs", lambda folder: train_organs(folder, folder / "cache"))
