"""Claims of attempts: the newest can write, all others are refused, and nobody waits."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from trainables.errors import StorageError, SupersededError
from trainables.storage.attempt_counts import count_attempts
from trainables.storage.claims import (
    Claim,
    ClaimedFolder,
    exchange_claim,
    find_claim,
    parse_claim,
    release_claim,
    take_claim,
)
from trainables.storage.folder import Folder


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A ledger on a disk, and on an object store without conditional writes."""
    return Folder(tmp_path if request.param == "disk" else f"memory://{tmp_path.name}")


def claimed(root: Folder, claim: Claim) -> ClaimedFolder:
    return ClaimedFolder((root / "trials" / "abc").uri, claims=root / "claims" / "abc", claim=claim)


def test_the_newest_writes_and_older_ones_are_refused_everything(root: Folder) -> None:
    claims = root / "claims" / "abc"
    old = claimed(root, take_claim(claims, 1))
    for name in ("a", "b", "sub/c"):
        old.write(name, b"old")
    old.append_line("lines.jsonl", "1")
    assert not old.is_superseded
    new = claimed(root, take_claim(claims, 2))
    assert old.is_superseded
    for change in (
        lambda: old.write("a", b"x"),
        lambda: old.write("new", b"x"),
        lambda: old.write_json("a", {}),
        lambda: old.append_line("lines.jsonl", "2"),
        lambda: old.rename("a", "z"),
        lambda: old.remove("a"),
        lambda: old.remove("sub"),
        lambda: old.remove("missing"),
        lambda: (old / "sub").write("c", b"x"),
    ):
        with pytest.raises(SupersededError, match=r"attempt 2 has taken over from attempt 1; nothing is lost"):
            change()
    assert [new.read(name) for name in ("a", "b", "sub/c")] == [b"old"] * 3
    assert new.read_lines("lines.jsonl") == [1]
    assert not new.exists("new")
    assert not new.exists("z")


def test_the_newest_changes_as_a_plain_folder_does(root: Folder) -> None:
    folder = claimed(root, take_claim(root / "claims" / "abc", 1))
    folder.write("a", b"1")
    folder.write("a", b"2")
    folder.write("b", b"3")
    folder.write("sub/c", b"4")
    folder.rename("a", "b")
    assert folder.read("b") == b"2"
    folder.write("a", b"5")
    folder.remove("b")
    folder.remove("sub")
    folder.remove("missing")
    assert sorted(folder.children()) == ["a"]
    folder.append_line("lines.jsonl", "1")
    folder.append_line("lines.jsonl", "2")
    assert folder.read_lines("lines.jsonl") == [1, 2]
    with pytest.raises(StorageError, match="could not rename"):
        folder.rename("missing", "b")


def test_a_claim_is_not_taken_from_a_newer_or_equal_attempt(root: Folder) -> None:
    claims = root / "claims" / "abc"
    taken = take_claim(claims, 3)
    for number in (1, 2, 3):
        with pytest.raises(SupersededError, match=rf"attempt {number} .* attempt 3 has started meanwhile"):
            take_claim(claims, number)
    assert find_claim(claims) == taken
    again = take_claim(claims, 3, before=taken)  # its own slot, after a crash
    assert (again.number, again.tries) == (3, 1)
    with pytest.raises(SupersededError):
        take_claim(claims, 3, before=taken)


def test_a_released_claim_ends_its_attempt_and_leaves_nothing(root: Folder) -> None:
    claims = root / "claims" / "abc"
    claim = take_claim(claims, 1)
    folder = claimed(root, claim)
    folder.write("a", b"1")
    release_claim(claims, claim)
    release_claim(claims, claim)
    assert list((root / "claims").children()) == []
    with pytest.raises(SupersededError, match="another process has ended it"):
        folder.write("a", b"2")
    assert count_attempts(root / "claims") == {}
    old, new = take_claim(claims, 1), take_claim(claims, 2)
    release_claim(claims, old)  # does not count any more
    assert find_claim(claims) == new
    assert count_attempts(root / "claims") == {"abc": 2}


def test_what_is_no_claim_is_in_nobodys_way(root: Folder) -> None:
    claims = root / "claims" / "abc"
    (claims / "garbage").write("x", b"1")
    claims.write("1.x.y", b"")
    assert find_claim(claims) is None
    claim = take_claim(claims, 1)
    assert find_claim(claims) == claim
    assert parse_claim("1.2.abc.tmp") is None


def test_a_claim_that_somebody_has_removed_ends_the_attempt_and_no_other(tmp_path: Path) -> None:
    claims = Folder(tmp_path) / "claims" / "abc"
    old = claimed(Folder(tmp_path), take_claim(claims, 1))
    shutil.rmtree(tmp_path / "claims")
    with pytest.raises(SupersededError):
        old.write("a", b"1")
    claimed(Folder(tmp_path), take_claim(claims, 1)).write("a", b"2")
    with pytest.raises(SupersededError):
        old.write("a", b"1")


def test_of_many_that_start_in_the_same_moment_the_one_with_the_claim_can_write(tmp_path: Path) -> None:
    for number in range(20):
        root = Folder(tmp_path / str(number))
        claims, start, outcomes = root / "claims" / "abc", threading.Barrier(8), []

        def attempt(place: int, root: Folder = root, claims: Folder = claims, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                claimed(root, take_claim(claims, 1 + place % 3)).write("who", str(place).encode())
                outcomes.append(place)  # noqa: B023
            except SupersededError:
                pass

        threads = [threading.Thread(target=attempt, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = find_claim(claims)
        assert found is not None
        assert len(list(claims.children())) == 1
        last = claimed(root, found)
        last.write("who", b"last")
        assert root.read("trials/abc/who") == b"last"
        assert sorted(os.listdir(tmp_path / str(number) / "claims")) == ["abc"]


def test_a_file_is_never_without_a_name_while_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = claimed(Folder(tmp_path), take_claim(Folder(tmp_path) / "claims" / "abc", 1))
    folder.write("checkpoint", b"new")
    folder.write("previous", b"old")
    for name in ("replace", "rename"):

        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, name, stop)
            with pytest.raises(KeyboardInterrupt):
                folder.rename("checkpoint", "previous")
        assert b"new" in {folder.read("checkpoint"), folder.read("previous")}


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    folder = claimed(Folder(tmp_path), take_claim(Folder(tmp_path) / "claims" / "abc", 1))
    folder.write("a", b"1")
    monkeypatch.setattr(os, "link", refuse)
    folder.rename("a", "b")
    assert sorted(folder.children()) == ["b"]
    assert folder.read("b") == b"1"


# ------------------------------------------------------------------ several drivers


def test_a_claim_names_the_driver_that_has_it(root: Folder) -> None:
    claims = root / "claims" / "abc"
    assert take_claim(claims, 1).holder == ""
    mine = exchange_claim(claims, find_claim(claims), 2, holder="driver7")
    assert mine.holder == "driver7"
    assert (mine.number, mine.tries) == (2, 0)
    assert find_claim(claims) == mine
    assert parse_claim(mine.name) == mine
    again = exchange_claim(claims, mine, 2, holder="driver7")  # its process was lost
    assert (again.number, again.tries, again.holder) == (2, 1, "driver7")
    release_claim(claims, again)
    assert find_claim(claims) is None
    assert exchange_claim(claims, None, 1, holder="driver8").holder == "driver8"


def test_a_claim_is_not_taken_over_another_one_than_was_seen(root: Folder) -> None:
    claims = root / "claims" / "abc"
    first = exchange_claim(claims, None, 1, holder="first")
    for found, number in ((None, 1), (None, 2), (Claim(1, 0, "gone" + "0" * 12), 5)):
        with pytest.raises(SupersededError, match="another driver has taken it"):
            exchange_claim(claims, found, number, holder="second")
    assert find_claim(claims) == first
    second = exchange_claim(claims, first, 2, holder="second")
    assert claimed(root, first).is_superseded
    with pytest.raises(SupersededError):
        exchange_claim(claims, first, 3, holder="third")
    assert find_claim(claims) == second


@pytest.mark.parametrize("before", ["nobody", "a dead driver"])
def test_of_many_that_saw_the_same_one_gets_the_claim(root: Folder, before: str) -> None:
    for round_number in range(10):
        claims = root / "claims" / f"abc{round_number}"
        found = None if before == "nobody" else exchange_claim(claims, None, 1, holder="dead")
        barrier, got = threading.Barrier(8), []

        def take(
            holder: str, claims: Folder = claims, found: Claim | None = found, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            with suppress(SupersededError):
                got.append(exchange_claim(claims, found, 2, holder=holder))  # noqa: B023 - of this round

        threads = [threading.Thread(target=take, args=(f"d{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [find_claim(claims)]


def test_a_driver_that_dies_while_it_takes_a_claim_is_no_obstacle(tmp_path: Path) -> None:
    """On an object store it may leave the object that bears the number, and no claim."""
    claims = Folder(f"memory://{tmp_path.name}") / "claims" / "abc"
    claims.create("1.0", b"")
    with pytest.raises(SupersededError):
        exchange_claim(claims, None, 1, holder="mine")
    assert exchange_claim(claims, None, 2, holder="mine").number == 2  # whoever hands it out counts on
