"""What ``run --shard`` refuses, and the books of a shared study, without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.run import run_study
from orchestrator.driver.shards import books as books_module
from orchestrator.driver.shards.books import Books
from orchestrator.driver.shards.checks import check_shardable, find_own_resources
from orchestrator.driver.shards.run import Member, choose_run
from orchestrator.execution import resources
from orchestrator.execution.resources import Slots, num_local_slots
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.leases import DriverLease, compute_plan_sha256
from orchestrator.ledger.shards.shard import Shard
from orchestrator.study.study_file import Study, parse_study
from trainables.errors import LeaseError, StorageError, StudyError

HEAD = "study: s\nquestion: Why?\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"
SEARCH = "search: {num_trials: 4, space: {training.epochs: {low: 1, high: 4}}}\n"


def make_study(text: str = "", *overrides: str) -> Study:
    return parse_study(HEAD + text, source="s.yaml", overrides=overrides)


@pytest.mark.parametrize(
    ("study", "address", "said"),
    [
        (make_study(), "ray://head:10001", "found the Ray cluster ray://head:10001"),
        (make_study(SEARCH), None, "found a search, whose next trials depend on results"),
        (make_study("", "execution.local_executor=false"), None, "local_executor: false, which sends all trials"),
        (make_study("", "execution.processes_per_stage=2"), None, "processes_per_stage: 2, which takes Ray"),
        (make_study("", "execution.processes_per_trial=3"), None, "processes_per_trial: 3, which takes Ray"),
        (make_study("", "execution.budget={trials: 3}"), None, "found execution.budget.trials"),
    ],
)
def test_what_several_drivers_cannot_share_is_refused(study: Study, address: str | None, said: str) -> None:
    with pytest.raises(StudyError, match=f"--shard: .*{said}"):
        check_shardable(study, address=address)
    if address is None:
        check_shardable(make_study("", "execution.budget={wall_hours: 3}"), address=None)


def test_a_driver_has_the_gpu_that_it_sees_and_not_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    execution = make_study().execution
    monkeypatch.setattr(resources, "_GPU_DEVICES", ())
    assert find_own_resources(execution)["GPU"] == 0.0
    monkeypatch.setattr(resources, "_GPU_DEVICES", (str(tmp_path),))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    found = find_own_resources(execution)
    assert found["GPU"] == 1.0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(StudyError, match=r"found 2 GPUs, .*one driver per GPU"):
        find_own_resources(execution)
    assert find_own_resources(make_study("", "execution.device=cpu").execution)["GPU"] == 0.0
    assert num_local_slots({"CPU": 8.0, "GPU": 1.0}, Slots(1.0, 0.5, None)) == 2
    assert num_local_slots({"CPU": 8.0, "GPU": 0.0}, Slots(1.0, 0.0, None)) == 8


def test_a_part_chooses_how_a_study_is_run() -> None:
    assert choose_run(None) is run_study
    assert choose_run("2/4").keywords == {"shard": Shard(2, 4)}  # type: ignore[attr-defined]
    with pytest.raises(StudyError, match="--shard: found '5/4'"):
        choose_run("5/4")


# ------------------------------------------------------------------ the books


class FakeShipper:
    """What the tracker would be told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notify(self, kind: str, signature: str) -> None:
        self.told.append(signature)


@pytest.fixture
def shippers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Shipments that were begun, in order; without MLflow."""
    made: list[Any] = []

    @contextmanager
    def shipping(prepared: Prepared, tracking_uri: str) -> Iterator[Any]:
        made.append(books_module.Shipping(FakeShipper()))  # type: ignore[arg-type]
        yield made[-1]

    monkeypatch.setattr(books_module, "shipping", shipping)
    return made


@pytest.fixture
def prepared(tmp_path: Path, cache_dir: Path) -> Prepared:
    study = make_study("factors: {augmentation: [none, strong]}\n", f"execution.cache_dir={cache_dir}")
    return prepare(study, storage=str(tmp_path / "results"))


def open_books(prepared: Prepared, driver: str) -> Books:
    return Books(prepared, "file:nowhere", driver, retry_failed=False)


def test_one_driver_writes_the_plan_and_tells_mlflow_until_another_takes_over(
    prepared: Prepared, shippers: list[Any]
) -> None:
    root = prepared.ledger.root
    with open_books(prepared, "first") as first, open_books(prepared, "second") as second:
        assert first.try_to_take({"first", "second"}.__contains__, is_first=True)
        written = root.read("plan.json")
        assert not second.try_to_take({"first", "second"}.__contains__, is_first=True)
        second.notify("trial", "b")
        first.notify("trial", "a")
        assert [each.shipper.told for each in shippers] == [["a"]]
        first.leave(["b"])
        assert shippers[0].left_open == ["b"]
        assert not first.is_kept
        root.write_json("conclusion.json", {})
        assert second.try_to_take({"second"}.__contains__)
        assert root.read("plan.json") == written  # that of the first
        assert not root.exists("conclusion.json")
        second.notify("trial", "c")
        assert [each.shipper.told for each in shippers] == [["a"], ["c"]]
    assert not root.exists("lease.json")


def test_who_takes_over_before_there_is_a_plan_writes_it(prepared: Prepared, shippers: list[Any]) -> None:
    with open_books(prepared, "second") as second:
        assert second.try_to_take({"second"}.__contains__)
        assert len(prepared.ledger.read_plan()["trials"]) == 2


def test_books_that_could_not_be_begun_are_free_for_the_next_driver(
    prepared: Prepared, shippers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_books(prepared, "first") as first:
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise StorageError("away")

            patch.setattr(Ledger, "write_plan", fail)
            with pytest.raises(StorageError):
                first.try_to_take(bool, is_first=True)
        assert not prepared.ledger.root.exists("lease.json")
        assert first.try_to_take(bool)


def test_the_books_are_not_taken_from_a_driver_that_runs_the_study_alone(
    prepared: Prepared, shippers: list[Any]
) -> None:
    own = prepared.ledger
    with (
        Lease(Ledger(own.storage, own.study)),
        open_books(prepared, "d") as books,
        pytest.raises(LeaseError, match="is being run by process"),
    ):
        books.try_to_take({"d"}.__contains__)
    assert shippers == []


def test_a_driver_waits_for_the_conclusion_of_the_present_state(
    prepared: Prepared, shippers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.driver.shards import run as shards
    from orchestrator.ledger.derived import compute_state

    ledger = prepared.ledger
    ledger.write_plan(prepared.plan, prepared.about)
    console, report = Console(quiet=True), make_report()
    monkeypatch.setattr(shards, "find_report", lambda root, state: report)
    with DriverLease(ledger, shard=Shard(1, 2), plan_sha256=compute_plan_sha256(prepared.plan)) as lease:
        member = Member(prepared, None, lease, Shard(1, 2), console=console, retry_failed=False)  # type: ignore[arg-type]
        assert member._find_conclusion() is None
        state = compute_state(ledger.read_plan(), ledger.states())
        ledger.root.write_json("conclusion.json", {"state": state, "unshipped": 3})
        summary = member._find_conclusion()
        assert summary is not None
        assert (summary.unshipped, summary.report, summary.missing) == (3, "page", 2)
        assert summary.is_concluded_elsewhere
        ledger.begin(prepared.plan.trials[0], study="s", git_commit=None)
        assert member._find_conclusion() is None  # something has changed since


def make_report() -> Any:
    from orchestrator.ledger.derived import Report

    return Report("page", (), "", {}, "", "")
