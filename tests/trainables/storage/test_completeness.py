from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainables.errors import StorageError
from trainables.storage.completeness import describe_files, find_damage, is_finished
from trainables.storage.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A finished trial."""
    folder = Folder(tmp_path / "trial")
    folder.write("model.safetensors", b"weights")
    folder.write("predictions/test.npz", b"predictions")
    files = describe_files(folder, ["model.safetensors", "predictions/test.npz"])
    folder.write_json("result.json", {"metrics": {"accuracy": 0.9}, "files": files})
    return folder


def test_what_is_whole_is_finished(folder: Folder) -> None:
    assert find_damage(folder) is None
    assert is_finished(folder)
    assert not is_finished(folder / "predictions")


def test_files_are_described_by_size_and_content(folder: Folder) -> None:
    described = describe_files(folder, ["model.safetensors"])["model.safetensors"]
    assert described["bytes"] == 7
    assert len(described["sha256"]) == 64
    folder.write("model.safetensors", b"WEIGHTS")
    assert describe_files(folder, ["model.safetensors"])["model.safetensors"] != described
    with pytest.raises(StorageError, match="never there"):
        describe_files(folder, ["never there"])


def test_a_result_cut_off_anywhere_is_noticed(folder: Folder) -> None:
    whole = folder.read("result.json")
    for length in range(len(whole)):
        folder.write("result.json", whole[:length])
        assert "result.json is damaged" in (find_damage(folder) or "")
    for position in range(0, len(whole), 7):
        folder.write("result.json", whole[:position] + b"#" + whole[position + 1 :])
        assert not is_finished(folder)
    folder.write("result.json", whole)
    assert is_finished(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "predictions/test.npz"])
def test_files_that_are_missing_or_of_another_size_are_named(folder: Folder, name: str) -> None:
    folder.write(name, b"")
    assert (find_damage(folder) or "").startswith(f"{folder.uri}/{name} has 0 bytes, ")
    folder.remove(name)
    assert find_damage(folder) == f"{folder.uri}/{name} is missing"


@pytest.mark.parametrize("name", ["model.safetensors", "predictions/test.npz"])
def test_another_content_of_the_same_size_is_noticed(folder: Folder, name: str) -> None:
    path = Path(folder.uri, name)
    before, finished = path.stat().st_mtime_ns, Path(folder.uri, "result.json").stat().st_mtime_ns
    data = path.read_bytes()
    path.write_bytes(b"#" * len(data))
    os.utime(path, ns=(finished + 1, finished + 1))  # written after the trial had ended
    assert find_damage(folder) == f"{folder.uri}/{name} has another content than was written"
    path.write_bytes(data)  # as a copy that does not keep times would be
    os.utime(path, ns=(finished + 1, finished + 1))
    assert find_damage(folder) is None
    path.write_bytes(b"#" * len(data))
    os.utime(path, ns=(before, before))  # a failing disk
    assert find_damage(folder) is None
    assert find_damage(folder, every_byte=True) == f"{folder.uri}/{name} has another content than was written"


@pytest.mark.parametrize("others", [{}, {"a": {"files": {"x": 1}}, "z": {"files": {}}}])
def test_a_result_without_files_is_whole_if_it_is_sealed(tmp_path: Path, others: dict[str, object]) -> None:
    folder = Folder(tmp_path)
    for result in (others, {**others, "files": {}}):
        folder.write_json("result.json", result)
        assert find_damage(folder) is None
