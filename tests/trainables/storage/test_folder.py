from __future__ import annotations

import errno
import json
import os
import time
import uuid
from pathlib import Path

import pytest

from trainables.errors import DiskFullError, StorageError
from trainables.storage.folder import Folder, is_disk_full


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """The same contract on a disk and on an object store."""
    return Folder(tmp_path / "ledger" if request.param == "local" else f"memory://{uuid.uuid4()}/ledger")


def test_files_and_folders(folder: Folder) -> None:
    assert list(folder.children()) == []
    assert not folder.exists("a")
    folder.write("a", b"1")
    folder.write("sub/b", b"2")
    (folder / "sub" / "deeper").write("c", b"3")
    assert (folder / "sub").read("b") == b"2"
    assert list(folder.children()) == ["a", "sub"]
    assert list((folder / "sub").children()) == ["b", "deeper"]
    assert (folder / "sub").name == "sub"
    folder.write("a", b"4")
    assert folder.read("a") == b"4"
    folder.rename("a", "sub/b")
    assert not folder.exists("a")
    assert folder.read("sub/b") == b"4"
    folder.remove("sub")
    folder.remove("never there")
    assert list(folder.children()) == []


def test_json_and_lines(folder: Folder) -> None:
    assert folder.read_lines("epochs.jsonl") == []
    folder.append_line("epochs.jsonl", '{"epoch": 1}')
    folder.append_line("epochs.jsonl", '{"epoch": 2}')
    assert folder.read_lines("epochs.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    folder.write_json("result.json", {"b": 0.1, "a": [1, None, "ä"]})
    assert folder.read_json("result.json") == {"b": 0.1, "a": [1, None, "ä"]}


def test_what_python_writes_is_read_as_python_reads_it(folder: Folder) -> None:
    values = [5e-324, 1.7976931348623157e308, 2**70, -0.0, 0.1 + 0.2, "half of a pair: \udc80", "line\u2028separator"]
    folder.write_json("x.json", {"values": values})
    assert repr(folder.read_json("x.json")["values"]) == repr(values)
    folder.append_line("x.jsonl", json.dumps(values, ensure_ascii=False).replace("\udc80", "\\udc80"))
    assert repr(folder.read_lines("x.jsonl")) == repr([values])


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_not(folder: Folder) -> None:
    folder.write("epochs.jsonl", b'{"epoch": 1}\n{"epo')
    assert folder.read_lines("epochs.jsonl") == [{"epoch": 1}]
    folder.write("epochs.jsonl", b'{"epo\n{"epoch": 2}\n')
    with pytest.raises(StorageError, match="damaged, expected one JSON value a line"):
        folder.read_lines("epochs.jsonl")


def test_errors_name_the_file(folder: Folder) -> None:
    with pytest.raises(StorageError, match=r"could not read .*nothing.json"):
        folder.read_json("nothing.json")
    folder.write("result.json", b"{")
    with pytest.raises(StorageError, match=r"result.json is damaged, expected JSON"):
        folder.read_json("result.json")
    with pytest.raises(StorageError, match="could not rename"):
        folder.rename("nothing", "something")


def test_nan_is_never_written(folder: Folder) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("result.json", {"loss": float("nan")})
    assert not folder.exists("result.json")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../out", "a/../../out", "a\\b"])
def test_names_cannot_leave_the_folder(folder: Folder, name: str) -> None:
    with pytest.raises(StorageError, match="refused to leave"):
        folder.write(name, b"")
    with pytest.raises(StorageError, match="refused to leave"):
        folder / name


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.write("result.json", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        folder.write("result.json", b"new")
    assert folder.read("result.json") == b"old"
    assert list(folder.children()) == ["result.json"]


def test_local_uris_are_paths(tmp_path: Path) -> None:
    Folder(f"file://{tmp_path}/x").write("a", b"1")
    assert (tmp_path / "x" / "a").read_bytes() == b"1"
    assert Folder("somewhere").uri == str(Path.cwd() / "somewhere")


# ------------------------------------------------------------------ seals


@pytest.mark.parametrize("value", [{"b": 0.1, "a": [1, None, "ä"]}, {}, {"a": {"seal": 1}}])
def test_an_object_comes_back_and_is_intact(folder: Folder, value: dict[str, object]) -> None:
    folder.write_json("x.json", value)
    assert folder.read_json("x.json") == value
    assert folder.is_intact("x.json")
    assert set(json.loads(folder.read("x.json"))) == {"seal", *value}  # plain JSON for everybody else


def test_a_changed_object_is_not_read(folder: Folder) -> None:
    folder.write_json("x.json", {"accuracy": 0.91})
    folder.write("x.json", folder.read("x.json").replace(b"0.91", b"0.99"))
    assert not folder.is_intact("x.json")
    with pytest.raises(StorageError, match=r"x.json is damaged or was changed by hand"):
        folder.read_json("x.json")


def test_json_of_others_can_be_read_and_is_not_called_intact(folder: Folder) -> None:
    folder.write("x.json", b'{"a": 1}')
    assert folder.read_json("x.json") == {"a": 1}
    assert not folder.is_intact("x.json")
    assert not folder.is_intact("never there")
    folder.write_json("list.json", [1, 2])
    assert folder.read_json("list.json") == [1, 2]


def test_sizes_and_times(folder: Folder) -> None:
    folder.write("x", b"123")
    size, written = folder.stat("x") or (0, 0)
    assert size == 3
    assert abs(written / 1e9 - time.time()) < 3600 if folder.is_local else written == 0
    assert folder.stat("never there") is None


# ------------------------------------------------------------------ torn lines and full disks


def test_a_line_torn_at_any_byte_is_cut_off_before_the_next(folder: Folder) -> None:
    lines = [json.dumps({"epoch": number, "note": "é\n" * number}) for number in range(1, 4)]
    whole = "".join(f"{line}\n" for line in lines).encode()
    for length in range(len(whole) + 1):
        folder.write("epochs.jsonl", whole[:length])
        before = folder.read_lines("epochs.jsonl")
        folder.append_line("epochs.jsonl", '{"epoch": 9}')
        assert folder.read_lines("epochs.jsonl") == [*before, {"epoch": 9}], length


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    folder = Folder(tmp_path)
    folder.append_line("epochs.jsonl", "1")

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for change in (lambda: folder.write("x", b"1"), lambda: folder.append_line("x", "1")):
        with pytest.raises(
            DiskFullError, match=rf"could not .* {tmp_path}/x: the disk is full .* run the same command"
        ):
            change()


def test_other_failures_are_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory") as caught:
        Folder(tmp_path / "file" / "below").write("x", b"")
    assert not is_disk_full(caught.value)
    assert is_disk_full(OSError(errno.ENOSPC, "full"))
    assert not is_disk_full(OSError("28"))


def test_a_guard_comes_before_every_change_here_and_below(tmp_path: Path) -> None:
    def refuse() -> None:
        raise StorageError("not now")

    folder = Folder(tmp_path, guard=refuse) / "below"
    for change in (
        lambda: folder.write("x", b""),
        lambda: folder.write_json("x", {}),
        lambda: folder.append_line("x", ""),
        lambda: folder.rename("x", "y"),
        lambda: folder.remove("x"),
    ):
        with pytest.raises(StorageError, match="not now"):
            change()
    assert list(tmp_path.iterdir()) == []
