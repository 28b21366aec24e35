"""Trials that have no memory with a share of a GPU get a larger one, in own slots and in a Ray with a GPU by name."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.cluster import connection
from orchestrator.driver.execute import enlarge_share, execute_in_ray
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.runtime import Runtime
from orchestrator.driver.shards.run import run_own_slots
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.resources import Slots
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from orchestrator.study.study_file import parse_study
from tests.support.plans import make_stage, make_trial
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE

OUT_OF_GPU = "out of GPU memory"
TEXT = "study: s\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"


class Place:
    """A dispatcher of acted trials, its handler, and what is printed."""

    def __init__(self, root: Path, *works: Work) -> None:
        self.ledger, self.said, self.stop = Ledger(str(root), "s"), list[str](), threading.Event()
        self.handler = RecordingHandler(self.ledger)
        settings = ChunkSettings(EXECUTION, uuid.uuid4().hex[:8], MODULE, (), 0, 600.0, describe)
        todo = WorkQueue(works, complete=(), num_slots=1)
        self.dispatcher = Dispatcher(todo, ledger=self.ledger, settings=settings, on_event=self.handler.handle)

    def shares(self, work: Work) -> list[float]:
        """Return the shares with which a work had no memory, as the ledger has them."""
        return [note["gpus"] for note in self.ledger.read(work.kind, work.signature).attempts]

    def log(self, work: Work) -> list[tuple[str, int, float]]:
        """Return event, attempt and share of every line of the log of a work."""
        lines = self.ledger.folder(work.kind, work.signature).read_lines("log.jsonl")
        return [(line["event"], line["attempt"], line["gpus"]) for line in lines if line["event"] != "started"]


def make_works() -> tuple[Work, ...]:
    """Return a stage that needs half a GPU, a trial that waits for it, one that needs a whole GPU, and others."""
    stage = make_stage("cramped 1")
    return stage, make_trial("finish after", stage), make_trial("cramped 2"), *(make_trial(f"nap {n}") for n in "abcd")


def check(place: Place, works: tuple[Work, ...]) -> None:
    stage, after, trial, *others = works
    assert place.handler.ends() == dict.fromkeys((work.name for work in works), "complete")
    assert place.shares(stage) == [0.25]
    assert place.shares(trial) == [0.25, 0.5]
    assert place.log(trial) == [
        *(("begun", 1, 0.25), ("lost", 1, 0.25)),
        *(("begun", 2, 0.5), ("lost", 2, 0.5)),
        *(("begun", 3, 1.0), ("done", 3, 1.0)),
    ]
    assert place.log(after)[0][2] == 0.5  # it waited for the stage
    assert {place.log(work)[0][2] for work in others} == {0.25}
    assert place.said == [
        "2 stages and trials had no memory with 0.25 of a GPU: from now on each takes 0.5",
        "1 stage or trial had no memory with 0.5 of a GPU: from now on each takes 1",
    ]


def test_own_slots_go_on_with_a_larger_share(tmp_path: Path) -> None:
    works = make_works()
    place = Place(tmp_path, *works)
    slots = Slots(cpus=1.0, gpus=0.25, max_concurrent=None)
    run_own_slots(place.dispatcher, {"CPU": 8.0, "GPU": 1.0}, slots, stop=place.stop, print_line=place.said.append)
    check(place, works)


def test_what_never_fits_fails_with_a_whole_gpu(tmp_path: Path) -> None:
    work = make_trial("cramped 9")
    place = Place(tmp_path, work)
    slots = Slots(cpus=1.0, gpus=0.5, max_concurrent=None)
    run_own_slots(place.dispatcher, {"CPU": 2.0, "GPU": 1.0}, slots, stop=place.stop, print_line=place.said.append)
    assert place.handler.ends() == {"cramped 9": f"failed: {OUT_OF_GPU}"}
    failure = place.ledger.read("trial", work.signature).failure
    assert failure is not None
    assert failure["attempts"] == 2
    assert "training.batch_size" in failure["message"]


def test_nothing_changes_where_nothing_waits(tmp_path: Path) -> None:
    place, slots = Place(tmp_path, make_trial("finish")), Slots(cpus=1.0, gpus=0.5, max_concurrent=None)
    assert enlarge_share(slots, place.dispatcher, print_line=place.said.append) is slots
    assert place.said == []


@pytest.fixture
def ray_with_a_gpu() -> Iterator[None]:
    """A GPU is a number to Ray: the acted trials do not use it."""
    connection.ray.init(
        address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield
    connection.disconnect()


@pytest.mark.usefixtures("ray_with_a_gpu")
def test_ray_goes_on_with_a_larger_share(tmp_path: Path, cache_dir: Path) -> None:
    overrides = (f"execution.cache_dir={cache_dir}", "execution.gpus_per_trial=0.25", "execution.max_retries=0")
    prepared: Prepared = prepare(parse_study(TEXT, source="s.yaml", overrides=overrides), storage=str(tmp_path / "own"))
    works = make_works()
    place = Place(tmp_path / "acted", *works)
    runtime: Any = SimpleNamespace(
        wait_for_ray=connection.ray.cluster_resources,
        dashboard=None,
        is_local=True,
        local_resources=None,
        probed_nodes=None,
    )
    execute_in_ray(prepared, cast(Runtime, runtime), place.dispatcher, stop=place.stop, print_line=place.said.append)
    check(place, works)
