"""Fixtures that several files share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes that tests start
# Processes that tests start, Ray's actors among them, import ``tests.support``.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

import pytest
import torch

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


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """The one study of a test run that is trained from start to end, all of it in Ray."""
    folder = tmp_path_factory.mktemp("finished")
    place = make_place(folder, folder / "cache")
    done = place.call("run", *IN_RAY)
    return FinishedStudy(place, done.stdout, done.stderr, done.returncode)


@pytest.fixture(scope="session")
def trained_study(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> TrainedStudy:
    """A small study of two arms and two replicates that is trained in this process; not to be changed by a test."""
    from tests.support.trained_study import (
        train_study,  # not above: conftest.py is read before shape annotations are made to run
    )

    return train_study(tmp_path_factory.mktemp("trained"), cache_dir)


@pytest.fixture(scope="session")
def organs(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Root of the ledger of a small study of segmentations, beside its file; not to be changed by a test."""
    from tests.support.organs_study import train_organs

    folder = tmp_path_factory.mktemp("organs")
    train_organs(folder, cache_dir)
    return folder
