"""Object stores that are busy, that list late, and what their libraries are asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, INTERRUPTED
from tests.support.http_stores import serve_azure, serve_google
from trainables.errors import StorageError, SupersededError
from trainables.storage import object_store
from trainables.storage.claims import ClaimedFolder, find_claim, release_claim, take_claim
from trainables.storage.folder import Folder
from trainables.storage.probe import PROBE, probe_storage


class Answer(Exception):  # noqa: N818 - stands for botocore's ClientError
    """An error as botocore raises it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


def fail(error: OSError, cause: Exception) -> OSError:
    error.__cause__ = cause
    return error


class UnwellFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A store in memory that fails as often as it is told to, and whose listings lack what it is told to hide."""

    protocol = "unwell"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    errors: ClassVar[list[Exception]] = []
    carries_out: ClassVar[bool] = False
    hidden: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("unwell://", "memory://")))

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def cat_file(self, path: str, **kwargs: Any) -> bytes:
        self._fail()
        return bytes(super().cat_file(path, **kwargs))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.carries_out:
            super().pipe_file(path, value, mode=mode, **kwargs)
        self._fail()
        super().pipe_file(path, value, mode=mode, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        found = super().ls(path, detail=True, **kwargs)
        shown = [each for each in found if not any(each["name"].endswith(name) for name in self.hidden)]
        return shown if detail else [each["name"] for each in shown]


@pytest.fixture
def unwell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A folder on it; ``time.sleep`` returns at once and notes how long it was to take."""
    fsspec.register_implementation("unwell", UnwellFileSystem, clobber=True)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    folder = Folder(f"unwell://{tmp_path.name}")
    folder.waits = waits  # type: ignore[attr-defined]
    yield folder
    for change, value in (("errors", []), ("carries_out", False), ("hidden", set()), ("store", {})):
        setattr(UnwellFileSystem, change, value)


SLOW_DOWN = fail(OSError(16, "Please reduce your request rate."), Answer(503, "SlowDown"))
BUSY = (
    SLOW_DOWN,
    fail(OSError(121, "internal"), Answer(500, "InternalError")),
    fail(OSError(5, "conflict"), Answer(409, "ConditionalRequestConflict")),
    TimeoutError("no answer"),
    ConnectionResetError("reset"),
)
OTHERS = (
    fail(PermissionError("denied"), Answer(403, "AccessDenied")),
    fail(OSError(22, "condition"), Answer(412, "PreconditionFailed")),
    ValueError("whatever"),
)


@pytest.mark.parametrize("error", BUSY, ids=str)
def test_a_busy_store_is_asked_again(unwell: Folder, error: Exception) -> None:
    unwell.write("a", b"1")
    UnwellFileSystem.errors = [error] * (object_store.MAX_TRIES - 1)
    assert unwell.read("a") == b"1"
    waits = unwell.waits  # type: ignore[attr-defined]
    longest = [object_store.FIRST_WAIT_SECONDS * 2**number for number in range(object_store.MAX_TRIES - 1)]
    assert len(waits) == len(longest)
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert len(set(waits)) == len(waits)


def test_a_store_that_stays_busy_is_told_with_its_name_and_the_tries(unwell: Folder) -> None:
    UnwellFileSystem.errors = [SLOW_DOWN] * 50
    with pytest.raises(StorageError, match=rf"could not write {unwell.uri}/a, tried 6 times in 0 s: .*request rate"):
        unwell.write("a", b"1")
    assert len(UnwellFileSystem.errors) == 50 - object_store.MAX_TRIES


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_another_error_is_told_at_once(unwell: Folder, error: Exception) -> None:
    UnwellFileSystem.errors = [error]
    with pytest.raises(StorageError, match=r"could not write unwell://[^,]*/a: "):
        unwell.write("a", b"1")
    assert unwell.waits == []  # type: ignore[attr-defined]


def test_an_object_whose_creation_was_not_confirmed_counts_as_created(unwell: Folder) -> None:
    UnwellFileSystem.errors, UnwellFileSystem.carries_out = [ConnectionResetError("lost")], True
    assert unwell.create("lock", b"mine") is True
    UnwellFileSystem.carries_out = False
    UnwellFileSystem.errors = [ConnectionResetError("lost")]
    assert unwell.create("lock", b"theirs") is False
    assert unwell.create("lock", b"mine") is False  # of a first try nothing is lost


# ------------------------------------------------------------------ listings that lag behind


def test_a_complete_trial_is_found_by_its_result_when_the_listing_lacks_it(unwell: Folder) -> None:
    ledger = Ledger(unwell.uri, "s")
    for signature in ("aa", "bb"):
        ledger.folder("trial", signature).write_json("config.json", {})
        ledger.folder("trial", signature).write_json("result.json", {})
    ledger.folder("trial", "cc").write_json("config.json", {})
    UnwellFileSystem.hidden = {"aa/result.json"}
    assert "result.json" not in set(ledger.folder("trial", "aa").children())
    assert ledger.states() == {"aa": COMPLETE, "bb": COMPLETE, "cc": INTERRUPTED}


def test_a_claim_counts_before_it_is_listed(unwell: Folder) -> None:
    claims = unwell / "claims" / "aa"
    UnwellFileSystem.hidden = {"."}
    before = take_claim(claims, 1)
    UnwellFileSystem.hidden = {before.name}
    folder = ClaimedFolder((unwell / "trials" / "aa").uri, claims=claims, claim=before)
    assert not folder.is_superseded
    folder.write("a", b"1")
    after = take_claim(claims, 2)
    with pytest.raises(SupersededError):
        folder.write("a", b"2")
    UnwellFileSystem.hidden = {after.name}
    release_claim(claims, after)
    UnwellFileSystem.hidden = set()
    assert find_claim(claims) != after


# ------------------------------------------------------------------ what the libraries offer


@pytest.fixture(params=["file", "memory", "az", "gs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on each kind of storage; Azure and Google are the real libraries before a small imitation over HTTP."""
    if request.param == "file":
        yield f"file://{tmp_path}"
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}"
    else:
        pytest.importorskip({"az": "adlfs", "gs": "gcsfs"}[request.param])
        with {"az": serve_azure, "gs": serve_google}[request.param]() as environment:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            fsspec.get_filesystem_class(request.param).clear_instance_cache()
            yield f"{request.param}://studies/{tmp_path.name}"
            fsspec.get_filesystem_class(request.param).clear_instance_cache()


def test_every_storage_keeps_the_same_contract(storage: str) -> None:
    root = Folder(storage)
    assert list(root.children()) == []
    assert root.create("lock", b"1") is True
    assert root.create("lock", b"2") is False
    assert root.read("lock") == b"1"
    assert not root.is_intact("missing")
    assert root.read_lines("missing") == []
    with pytest.raises(StorageError, match=r"could not read .*missing"):
        root.read("missing")
    for name in ("aa/config.json", "aa/predictions/test.npz", "bb/config.json"):
        root.write(f"trials/{name}", b"{}")
    found = (root / "trials").grandchildren("0123456789abcdef")
    assert found == {"aa": {"config.json", "predictions"}, "bb": {"config.json"}}
    assert sorted((root / "trials").children()) == ["aa", "bb"]
    assert (root / "stages").grandchildren("0123456789abcdef") == {}
    root.rename("lock", "moved")
    assert (root.exists("lock"), root.read("moved")) == (False, b"1")
    root.remove("trials")
    assert sorted(root.children()) == ["moved"]
    probe_storage(root, "here")
    assert sorted(root.children()) == ["moved"]


@pytest.mark.long
def test_a_late_attempt_changes_nothing_on_any_storage(storage: str) -> None:
    root = Folder(storage)
    claims = root / "claims" / "aa"
    old = ClaimedFolder((root / "trials" / "aa").uri, claims=claims, claim=take_claim(claims, 1))
    old.write("a", b"1")
    new = ClaimedFolder((root / "trials" / "aa").uri, claims=claims, claim=take_claim(claims, 2))
    new.write("a", b"2")
    for late in (lambda: old.write("a", b"3"), lambda: old.write("b", b"3"), lambda: old.remove("a")):
        with pytest.raises(SupersededError):
            late()
    assert new.read("a") == b"2"


#: Whether a write is refused by the store itself where another one came between: only if missing, only if unchanged.
REFUSES = {"az": (True, True), "gs": (True, False), "memory": (False, False)}


def test_the_store_itself_refuses_what_came_too_late(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the claim was looked up, in the moment of the write."""
    root = Folder(storage)
    if root.is_local:
        pytest.skip("there the claim is part of the path")
    claims = root / "claims" / "aa"
    old = ClaimedFolder((root / "trials" / "aa").uri, claims=claims, claim=take_claim(claims, 1))
    old.write("kept", b"1")
    theirs = Folder(old.uri)

    def overtake(name: str) -> Callable[[str], None]:
        def write(_: str) -> None:
            monkeypatch.setattr(old, "_check_claim", ClaimedFolder._check_claim.__get__(old))
            theirs.write(name, b"theirs")
            take_claim(claims, 2 if name == "new" else 3)

        return write

    refused = []
    for name in ("new", "kept"):
        old.read("kept")
        monkeypatch.setattr(old, "_check_claim", overtake(name))
        with suppress(SupersededError):
            old.write(name, b"late")
        refused.append(theirs.read(name) == b"theirs")
    assert tuple(refused) == REFUSES[storage.partition(":")[0]]


def test_a_machine_that_cannot_use_the_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(StorageError, match=r"cannot be used from node-7: tried to write a claim: could not write"):
        probe_storage(Folder(tmp_path / "file" / "s"), "node-7")
    with pytest.raises(StorageError, match=r"node-7: tried to find what the driver has written: .*shared by all"):
        probe_storage(Folder(tmp_path / "s"), "node-7", finds_driver=lambda: False)
    (Folder(tmp_path / "s") / PROBE).write("driver-1", b"")
    probe_storage(Folder(tmp_path / "s"), "node-7", finds_driver=lambda: True)
    assert [path.name for path in (tmp_path / "s" / PROBE).iterdir()] == ["driver-1"]
