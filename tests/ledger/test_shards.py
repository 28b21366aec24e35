"""Parts of a study, leases of the drivers that share it, and who of them is taken for dead."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease import HEARTBEAT_SECONDS, LEASE_SECONDS, Lease, guarded
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.leases import BooksLease, DriverLease, Drivers, compute_plan_sha256
from orchestrator.ledger.shards.shard import Shard
from orchestrator.planning.plan import Plan
from tests.support.plans import make_stage, make_trial
from trainables.errors import LeaseError, StorageError, StudyError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "results"), "s")


def again(ledger: Ledger) -> Ledger:
    """The same ledger in another driver."""
    return Ledger(ledger.storage, ledger.study)


def join(ledger: Ledger, shard: str = "1/2", plan: str = "p") -> DriverLease:
    return DriverLease(again(ledger), shard=Shard.parse(shard), plan_sha256=plan)


def hold(ledger: Ledger, driver: str = "other", **changes: Any) -> None:
    """Write the lease of a driver elsewhere that shares the study."""
    now = int(time.time() * 1000)
    holder = {"host": "elsewhere", "pid": 7, "since_ms": now - 5000, "alive_ms": now, "token": driver}
    holder |= {"driver": driver, "shard": "2/2", "plan": "p"}
    ledger.root.write_json(f"leases/{driver}.json", holder | changes)


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/4", "a/b", "1.0/4", "1 / 4", "١/٤"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(StudyError, match=r"--shard: found .*, expected .* from 1/4 to 4/4"):
        Shard.parse(text)


def test_a_driver_begins_with_its_part_and_goes_on_with_the_others_from_their_ends() -> None:
    works = [make_stage("s0"), make_stage("s1"), *(make_trial(f"t{number}") for number in range(7))]
    assert [work.name for work in Shard(1, 3).order(works)] == ["s0", "s1", "t0", "t3", "t6", "t4", "t1", "t5", "t2"]
    assert [work.name for work in Shard(2, 3).order(works)] == ["s1", "s0", "t1", "t4", "t5", "t2", "t6", "t3", "t0"]
    for number in range(1, 4):
        assert sorted(work.name for work in Shard(number, 3).order(works)) == sorted(work.name for work in works)
    assert Shard(1, 1).order(works) == works


# ------------------------------------------------------------------ leases


def test_drivers_share_a_study_and_one_that_runs_it_alone_is_refused(ledger: Ledger) -> None:
    with join(ledger) as first, join(ledger, "2/2") as second, join(ledger, "2/2"):  # one part twice is as good
        assert len(list((ledger.root / "leases").children())) == 3
        assert second.since_all_ms == first.since_ms
        with pytest.raises(LeaseError, match=r"is being run with --shard, by process .*join in with `run --shard`"):
            Lease(ledger).check()
        with pytest.raises(LeaseError, match="--shard"), Lease(again(ledger)):
            pass
    assert not list((ledger.root / "leases").children())
    with Lease(again(ledger)), pytest.raises(LeaseError, match="is being run by process"), join(ledger):
        pass
    assert not {"lease.json", "leases"} & set(ledger.root.children())


def test_drivers_with_another_plan_are_refused(ledger: Ledger) -> None:
    with join(ledger, plan="p"), pytest.raises(LeaseError, match="others than those of this study file"):
        join(ledger, plan="q").__enter__()
    with join(ledger, plan="q"):  # nobody lives who has the other
        pass
    plans = [Plan((), (make_trial("a"), make_trial("b"))), Plan((), (make_trial("b"), make_trial("a")))]
    assert compute_plan_sha256(plans[0]) == compute_plan_sha256(plans[1])
    assert compute_plan_sha256(Plan((), (make_trial("a"),))) != compute_plan_sha256(plans[0])


def test_a_driver_alone_clears_away_those_that_are_dead(ledger: Ledger) -> None:
    hold(ledger, alive_ms=int((time.time() - LEASE_SECONDS - 1) * 1000))
    with Lease(ledger):
        assert not ledger.root.exists("leases")


def test_one_driver_keeps_the_books_until_it_is_dead(ledger: Ledger) -> None:
    with join(ledger) as first, join(ledger, "2/2") as second:
        lives = {first.driver, second.driver}.__contains__
        books = BooksLease(again(ledger), driver=first.driver, lives=lives).__enter__()
        with pytest.raises(LeaseError, match=r"books of the study in .* are kept by process"):
            BooksLease(again(ledger), driver=second.driver, lives=lives).__enter__()
        other = BooksLease(again(ledger), driver=second.driver, lives={second.driver}.__contains__).__enter__()
        assert ledger.root.read_json("lease.json")["driver"] == second.driver
        late = guarded(ledger.root.uri, books.ticket)
        with pytest.raises(LeaseError, match="refused to write"):
            late.write("plan.json", b"late")
        other.__exit__()
        books.__exit__()
    with Lease(again(ledger)), pytest.raises(LeaseError, match="is being run by process"):
        BooksLease(again(ledger), driver="d", lives=bool).__enter__()


def test_a_driver_that_was_taken_for_dead_stops_itself_and_changes_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    stopped = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    own = again(ledger)
    try:
        lease = DriverLease(own, shard=Shard(1, 2), plan_sha256="p").__enter__()
        for _ in range(100):  # a renewal that has read before writes once more
            ledger.root.remove(f"leases/{lease.driver}.json")
            if stopped.wait(0.1):
                break
        assert stopped.is_set()
        with pytest.raises(LeaseError, match="refused to write"):
            own.root.write("plan.json", b"late")
        with pytest.raises(LeaseError, match="taken over by another driver"):
            lease.__exit__()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not list((ledger.root / "leases").children())


# ------------------------------------------------------------------ who lives


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(drivers: Drivers, clock: Clock, seconds: float, step: float = 5.0) -> frozenset[str]:
    """Look every ``step`` seconds for so long; return who lives then."""
    living = drivers.look()
    for _ in range(round(seconds / step)):
        clock.now += step
        living = drivers.look()
    return living


def test_a_driver_is_dead_when_its_lease_has_not_changed_for_a_minute(ledger: Ledger, clock: Clock) -> None:
    drivers = Drivers(ledger.root, "mine", clock=clock)
    hold(ledger, "other", alive_ms=1)  # its clock is wrong, and so are all that are read here
    hold(ledger, "third", alive_ms=int(time.time() * 1000) + 10**7)
    assert watch(drivers, clock, HEARTBEAT_SECONDS) == {"mine", "other", "third"}
    for number in range(2, 20):  # it gives signs of life
        hold(ledger, "other", alive_ms=number)
        living = watch(drivers, clock, HEARTBEAT_SECONDS)
        assert ("third" in living) == (number * HEARTBEAT_SECONDS < LEASE_SECONDS)
        assert "other" in living
    assert list((ledger.root / "leases").children()) == ["other.json"]
    assert watch(drivers, clock, 2 * HEARTBEAT_SECONDS) == {"mine"}  # its clock says that it is old
    assert drivers.living == {}
    assert not list((ledger.root / "leases").children())


def test_a_process_of_this_machine_that_is_gone_is_watched_for_two_renewals(ledger: Ledger, clock: Clock) -> None:
    drivers = Drivers(ledger.root, "mine", clock=clock)
    hold(ledger, host=socket.gethostname(), pid=2**22 + 1)  # more than Linux gives
    assert watch(drivers, clock, 2 * HEARTBEAT_SECONDS - 5) == {"mine", "other"}
    hold(ledger, host=socket.gethostname(), pid=2**22 + 1, alive_ms=5)  # in another container of the same name
    assert watch(drivers, clock, 2 * HEARTBEAT_SECONDS - 5) == {"mine", "other"}
    assert watch(drivers, clock, 5) == {"mine"}


def test_while_the_storage_is_away_nobody_dies(ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = Drivers(ledger.root, "mine", clock=clock)
    hold(ledger)
    watch(drivers, clock, 20)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise StorageError("away")

        patch.setattr("orchestrator.ledger.shards.leases.read_leases", fail)
        clock.now += 600
        with pytest.raises(StorageError):
            drivers.look()
    assert drivers.look() == {"mine", "other"}  # it could not renew its lease either
    hold(ledger, alive_ms=5)
    assert watch(drivers, clock, 15) == {"mine", "other"}


def test_a_driver_that_has_joined_since_the_last_look_lives(ledger: Ledger, clock: Clock) -> None:
    drivers = Drivers(ledger.root, "mine", clock=clock)
    drivers.look()
    hold(ledger, "new")
    assert [drivers.lives(name) for name in ("mine", "new", "dead")] == [True, True, False]


def test_the_watching_driver_lives(ledger: Ledger, clock: Clock) -> None:
    hold(ledger, "mine", pid=os.getpid(), host=socket.gethostname())
    assert watch(Drivers(ledger.root, "mine", clock=clock), clock, 10 * LEASE_SECONDS) == {"mine"}
