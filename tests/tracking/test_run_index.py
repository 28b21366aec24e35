from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.tracking.run_index import INDEX, Run, RunIndex
from trainables.errors import StorageError
from trainables.storage.folder import Folder


def make_run(number: int, status: str = "FINISHED") -> Run:
    return Run(f"run{number}", "trial", status, shipped="7", num_params=3, epochs={1})


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def loaded(root: Folder, parent: str = "parent") -> RunIndex:
    index = RunIndex(root)
    assert index.load(parent)
    return index


def test_what_has_ended_comes_back_and_what_runs_does_not(root: Folder) -> None:
    index = RunIndex(root)
    assert not index.load("parent")
    index.replace("parent", {"a": make_run(1), "b": make_run(2, "RUNNING")})
    index.runs["c"] = make_run(3, "FAILED")
    index.runs["d"] = make_run(4, "RUNNING")
    index.add_run("c")
    index.add_run("d")
    index.save()
    assert loaded(root).runs == {"a": make_run(1), "c": make_run(3, "FAILED")}
    assert loaded(root).runs["a"].epochs is None


def test_the_parent_is_known_without_the_store(root: Folder) -> None:
    assert RunIndex(root).parent_run_id is None
    RunIndex(root).replace("parent", {"a": make_run(1)})
    assert RunIndex(root).parent_run_id == "parent"


def test_a_run_that_ended_shows_one_state_only() -> None:
    assert make_run(1).has_ended_as("complete")
    assert not make_run(1).has_ended_as("failed")
    assert not make_run(1, "RUNNING").has_ended_as("complete")


def test_a_run_is_whole_when_its_status_says_so_too() -> None:
    assert make_run(1).is_complete
    assert make_run(1, "FAILED").is_complete
    assert not make_run(1, "RUNNING").is_complete
    assert not Run("run1", "trial", "FINISHED").is_complete


def test_the_last_line_of_a_signature_counts(root: Folder) -> None:
    index = RunIndex(root)
    index.replace("parent", {"a": make_run(1), "b": make_run(2)})
    index.runs["a"].status = "FAILED"
    index.add_run("a")
    index.remove("b")
    index.remove("nobody")
    index.save()
    assert loaded(root).runs == {"a": make_run(1, "FAILED")}


def test_an_index_of_another_store_counts_for_nothing(root: Folder) -> None:
    RunIndex(root).replace("parent", {"a": make_run(1)})
    assert not RunIndex(root).load("other")
    other = RunIndex(root)
    other.replace("other", {})
    assert loaded(root, "other").runs == {}
    assert not RunIndex(root).load("parent")


def test_loading_again_keeps_what_was_not_written_yet(root: Folder) -> None:
    index = RunIndex(root)
    index.replace("parent", {})
    index.runs = {"a": make_run(1), "b": make_run(2, "RUNNING")}
    index.add_run("a")
    assert index.load("parent")
    assert set(index.runs) == {"a"}
    index.save()
    assert set(loaded(root).runs) == {"a"}


@pytest.mark.parametrize("damage", [b'{"signature": "torn', b"no JSON\n"])
def test_a_damaged_index_counts_for_nothing(root: Folder, damage: bytes) -> None:
    RunIndex(root).replace("parent", {"a": make_run(1)})
    root.write(INDEX, root.read(INDEX) + damage)
    assert not RunIndex(root).load("parent")


def test_lines_are_written_in_batches_and_kept_while_the_storage_refuses(
    root: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = RunIndex(root)
    index.replace("parent", {})
    writes: list[str] = []
    append = Folder.append_line

    def refuse(folder: Folder, name: str, line: str) -> None:
        writes.append(name)
        raise StorageError("disk full")

    monkeypatch.setattr(Folder, "append_line", refuse)
    for number in range(25):
        index.runs[f"t{number}"] = make_run(number)
        index.add_run(f"t{number}")
    assert 0 < len(writes) < 10
    assert "disk full" in caplog.text
    monkeypatch.setattr(Folder, "append_line", append)
    index.save()
    index.save()
    assert len(root.read_lines(INDEX)) == 26
    assert len(loaded(root).runs) == 25
    assert "epochs" not in json.loads(root.read(INDEX).splitlines()[1])
