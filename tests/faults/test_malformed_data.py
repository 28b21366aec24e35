"""Malformed folders, manifests and npz files: each ends in exit code 2 and one message that names the file or row."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.cli import main as command_line
from tests.support.image_files import write_png_header

#: Rounds of all cases with other places in the data: more than 500 cases with `make faults`.
ROUNDS = range(9)

Generator = np.random.Generator
#: Breaks the data in a folder and returns texts of which the message must hold all.
Break = Callable[[Path, Generator], list[str]]


def _write_image(path: Path, generator: Generator, size: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 255, (size, size), dtype=np.uint8)).save(path)
    return path


# ------------------------------------------------------------------ folders


def _write_folder(root: Path, generator: Generator) -> str:
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            for index in range(4):
                _write_image(root / "images" / split / label / f"{index}.png", generator)
    return "{kind: image_folder, path: images, image_size: 12}"


def _pick(root: Path, generator: Generator) -> Path:
    paths = sorted((root / "images").rglob("*.png"))
    return paths[generator.integers(len(paths))]


def _cut(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    data = path.read_bytes()
    path.write_bytes(data[: generator.integers(0, int(0.8 * len(data)))])
    return [path.relative_to(root / "images").as_posix()]


def _noise(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    path.write_bytes(generator.bytes(200))
    return [path.relative_to(root / "images").as_posix()]


def _text(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return [path.relative_to(root / "images").as_posix()]


def _other_suffix(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    path.rename(path.with_suffix([".nii", ".txt", ".mat", ".npy", ""][generator.integers(5)]))
    return [path.with_suffix("").relative_to(root / "images").as_posix(), "known image format"]


def _stray(root: Path, generator: Generator) -> list[str]:
    where = ["x.png", "train/x.png", "external/x.png"][generator.integers(3)]
    _write_image(root / "images" / where, generator)
    return [where]


def _leak(root: Path, generator: Generator) -> list[str]:
    label, number = "ab"[generator.integers(2)], generator.integers(4)
    target = ["val", "test"][generator.integers(2)]
    shutil.copy(root / f"images/train/{label}/{number}.png", root / f"images/{target}/{label}/x.png")
    return [f"train/{label}/{number}.png", f"{target}/{label}/x.png"]


def _contradiction(root: Path, generator: Generator) -> list[str]:
    number = generator.integers(4)
    Image.open(root / f"images/train/a/{number}.png").save(root / "images/train/b/x.bmp")
    return [f"train/a/{number}.png", "train/b/x.bmp"]


def _only_in_test(root: Path, generator: Generator) -> list[str]:
    label = ["owl", "z", "ä"][generator.integers(3)]
    _write_image(root / f"images/test/{label}/0.png", generator)
    return [label]


def _deep(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    Image.fromarray(generator.integers(0, 2**16, (12, 12), dtype=np.uint16)).save(path)
    return [path.relative_to(root / "images").as_posix(), "data.window"]


def _frames(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    images = [Image.fromarray(generator.integers(0, 255, (12, 12), dtype=np.uint8)) for _ in range(3)]
    images[0].save(path.with_suffix(".tif"), save_all=True, append_images=images[1:])
    return [path.with_suffix(".tif").relative_to(root / "images").as_posix(), "data.frame"]


def _dangling(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    path.unlink()
    path.symlink_to(root / "nowhere.png")
    return [path.relative_to(root / "images").as_posix()]


def _huge(root: Path, generator: Generator) -> list[str]:
    path = write_png_header(_pick(root, generator), 60_000, 60_000)
    return [path.relative_to(root / "images").as_posix(), "megapixels"]


def _case(root: Path, generator: Generator) -> list[str]:
    _write_image(root / "images" / ["train", "val", "test"][generator.integers(3)] / "A" / "x.png", generator)
    return ["'A' and 'a'"]


def _two_of_a_split(root: Path, generator: Generator) -> list[str]:
    name = ["Training", "TRAIN", "train_set", "validation", "testing"][generator.integers(5)]
    _write_image(root / "images" / name / "a" / "x.png", generator)
    return [name]


def _no_text(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    os.rename(path, os.fsencode(path.parent) + b"/\xff\xfe%d.png" % generator.integers(99))
    return ["\\udcff"]


def _circle(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator)
    (path.parent / "again").symlink_to(path.parent, target_is_directory=True)
    return [str(path.parent / "again")]


def _no_dicom(root: Path, generator: Generator) -> list[str]:
    path = _pick(root, generator).with_suffix(".dcm")
    path.write_bytes(bytes(128) + b"DICM" + generator.bytes(50) if generator.integers(2) else generator.bytes(200))
    return [path.relative_to(root / "images").as_posix()]


def _unknown_layout(root: Path, generator: Generator) -> list[str]:
    name = ["cats", "holdouts", "fold-1"][generator.integers(3)]
    for index in range(3):
        _write_image(root / "images" / name / "a" / f"{index}.png", generator)
    return [name, "data.layout"]


# ------------------------------------------------------------------ manifests

ROWS = 24


def _write_manifest(root: Path, generator: Generator) -> str:
    rows = ["file_name,label,split,group"]
    for row in range(ROWS):
        _write_image(root / "images" / f"{row}.png", generator)
        rows.append(f"{row}.png,{'ab'[row % 2]},{('train', 'train', 'val', 'test')[row // 2 % 4]},p{row}")
    (root / "m.csv").write_text("\n".join(rows) + "\n")
    return "{kind: csv, path: m.csv, root: images, image_size: 12}"


def _edit(column: int, value: str, *expected: str) -> Break:
    """Return a break that writes ``value`` into a cell of a random row; "{row}" and "{line}" become its numbers."""

    def edit(root: Path, generator: Generator) -> list[str]:
        lines = (root / "m.csv").read_text().splitlines()
        row = int(generator.integers(ROWS))
        cells = lines[row + 1].split(",")
        cells[column] = value.format(row=row, other=(row + 4) % ROWS)
        lines[row + 1] = ",".join(cells)
        (root / "m.csv").write_text("\n".join(lines))
        return [text.format(row=row, other=(row + 4) % ROWS, line=row + 2) for text in expected]

    return edit


def _replace(old: str, new: str, *expected: str) -> Break:
    def replace(root: Path, generator: Generator) -> list[str]:
        (root / "m.csv").write_text((root / "m.csv").read_text().replace(old, new, 1))
        return list(expected)

    return replace


def _bytes(data: bytes, *expected: str) -> Break:
    def insert(root: Path, generator: Generator) -> list[str]:
        content = (root / "m.csv").read_bytes()
        place = int(generator.integers(30, len(content)))
        (root / "m.csv").write_bytes(content[:place] + data + content[place:])
        return ["m.csv", *expected]

    return insert


def _same_content(root: Path, generator: Generator) -> list[str]:
    row = int(generator.integers(ROWS // 8)) * 8  # in train; two rows on, the same class in train, four rows on in val
    shutil.copy(root / f"images/{row}.png", root / f"images/{row + 4}.png")
    return [f"{row}.png (row {row + 2})", f"{row + 4}.png (row {row + 6})"]


def _two_labels(root: Path, generator: Generator) -> list[str]:
    row = int(generator.integers(ROWS // 2)) * 2
    shutil.copy(root / f"images/{row}.png", root / f"images/{row + 1}.png")
    return [f"{row}.png (row {row + 2}): 'a'", f"{row + 1}.png (row {row + 3}): 'b'"]


def _gone(root: Path, generator: Generator) -> list[str]:
    row = int(generator.integers(ROWS))
    (root / f"images/{row}.png").unlink()
    return [f"{row}.png (row {row + 2})", "does not exist"]


def _unreadable_manifest(root: Path, generator: Generator) -> list[str]:
    (root / "m.csv").unlink()
    if generator.integers(2):
        (root / "m.csv").mkdir()
    return [str(root / "m.csv")]


MANIFESTS: dict[str, Break] = {
    "a column lacks": _replace("label", "lable", "'label'"),
    "a column twice": _replace("group", "split", "m.csv", "no name twice"),
    "a column without a name": _replace("group", "", "m.csv", "a name"),
    "a cell too many": _edit(3, "p{row},x", "line {line}", "5 cells"),
    "no bytes of text": _bytes(b"\xff\xfe", "UTF-8"),
    "a null character": _bytes(b"\0"),
    "an open quote": _edit(3, '"p{row}', "m.csv"),
    "a path outside": _edit(0, "../{row}.png", "line {line}"),
    "an absolute path": _edit(0, "/{row}.png", "line {line}"),
    "a drive": _edit(0, "C:{row}.png", "line {line}"),
    "a file twice": _edit(0, "{other}.png", "'{other}.png'", "line {line}"),
    "a file that is not there": _edit(0, "x{row}.png", "x{row}.png (row {line})", "does not exist"),
    "a folder as image": _edit(0, ".", "(row {line})"),
    "no file name": _edit(0, "", "line {line}"),
    "no label": _edit(1, "", "line {line}"),
    "NaN as label": _edit(1, "NaN", "line {line}"),
    "a label in capitals": _edit(1, "A", "'A' and 'a'"),
    "a label of several": _edit(1, "a|b", "'a|b'"),
    "an unknown split": _edit(2, "trian", "line {line}", "'train'"),
    "an external set without a name": _edit(2, "external/", "external set"),
    "no split": _edit(2, "", "line {line}"),
    "a group in two sets": _edit(3, "p{other}", "p{other}"),
    "a group in capitals": _edit(3, "P{other}", "'P{other}' and 'p{other}'"),
    "a group with a zero": _edit(3, "p0{other}", "'p0{other}'"),
    "no group": _edit(3, "", "line {line}"),
    "a copy in another set": _same_content,
    "a copy of another class": _two_labels,
    "a deleted file": _gone,
    "no manifest": _unreadable_manifest,
}

# ------------------------------------------------------------------ npz


def _write_npz(root: Path, generator: Generator) -> str:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = generator.integers(0, 255, (8, 12, 12), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(8, dtype=np.uint8)[:, None] % 2
    np.savez(root / "x.npz", **arrays)
    return "{kind: medmnist, path: x.npz, image_size: 12}"


def _array(key: str, change: Callable[[np.ndarray, Generator], np.ndarray], *expected: str) -> Break:
    """Return a break that replaces ``<split>_<key>`` of a random split; "{split}" in ``expected`` becomes its name."""

    def replace(root: Path, generator: Generator) -> list[str]:
        with np.load(root / "x.npz") as file:
            arrays = dict(file)
        split = ["train", "val", "test"][generator.integers(3)]
        arrays[f"{split}_{key}"] = change(arrays[f"{split}_{key}"], generator)
        np.savez(root / "x.npz", **arrays)
        return ["x.npz", *(text.format(split=split) for text in expected)]

    return replace


def _drop(root: Path, generator: Generator) -> list[str]:
    with np.load(root / "x.npz") as file:
        arrays = dict(file)
    key = sorted(arrays)[generator.integers(len(arrays))]
    np.savez(root / "x.npz", **{name: value for name, value in arrays.items() if name != key})
    return ["x.npz", repr(key)]


def _cut_npz(root: Path, generator: Generator) -> list[str]:
    data = (root / "x.npz").read_bytes()
    (root / "x.npz").write_bytes(data[: generator.integers(0, len(data) - 30)])
    return ["x.npz"]


def _flip(root: Path, generator: Generator) -> list[str]:
    data = bytearray((root / "x.npz").read_bytes())
    place = int(generator.integers(200, 1000))  # in the pixels of the first array
    data[place] ^= 0xFF
    (root / "x.npz").write_bytes(data)
    return ["x.npz"]


def _false_shape(root: Path, generator: Generator) -> list[str]:
    with np.load(root / "x.npz") as file:
        arrays = dict(file)
    with zipfile.ZipFile(root / "x.npz", "w") as archive:
        for key, value in arrays.items():
            with archive.open(f"{key}.npy", "w") as member:
                shape = (10**6, 12, 12) if key == "val_images" else value.shape
                header = {"descr": value.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                member.write(value.tobytes())
    return ["x.npz", "val_images"]


def _leaked_row(root: Path, generator: Generator) -> list[str]:
    with np.load(root / "x.npz") as file:
        arrays = dict(file)
    row = int(generator.integers(8))
    arrays["test_images"][row] = arrays["train_images"][row]
    np.savez(root / "x.npz", **arrays)
    return ["x.npz", f"row {row}", "train", "test"]


NPZ: dict[str, Break] = {
    "an array lacks": _drop,
    "images as floats": _array("images", lambda array, _: array / 255, "{split}_images", "float64"),
    "images of 16 bits": _array("images", lambda array, _: array.astype(np.uint16), "{split}_images", "uint16"),
    "images of two dimensions": _array("images", lambda array, _: array[:, 0], "{split}_images"),
    "images of five channels": _array(
        "images", lambda array, _: np.repeat(array[..., None], 5, axis=3), "{split}_images"
    ),
    "no images": _array("images", lambda array, _: array[:0], "{split}_images"),
    "objects as images": _array("images", lambda array, _: array.astype(object), "{split}_images", "objects"),
    "a label lacks": _array("labels", lambda array, _: array[:-1], "{split}_labels"),
    "labels as floats": _array("labels", lambda array, _: array * 0.5, "{split}_labels"),
    "labels as text": _array("labels", lambda array, _: array.astype(str), "{split}_labels"),
    "several labels": _array("labels", lambda array, _: np.repeat(array, 3, axis=1), "{split}_labels", "several"),
    "cut off": _cut_npz,
    "a flipped byte": _flip,
    "a shape that is not there": _false_shape,
    "a copy in another set": _leaked_row,
}

FOLDERS: dict[str, Break] = {
    "cut off": _cut,
    "noise": _noise,
    "a pointer instead of an image": _text,
    "another format": _other_suffix,
    "a stray file": _stray,
    "a copy in another set": _leak,
    "a copy of another class": _contradiction,
    "a class in test only": _only_in_test,
    "16 bits": _deep,
    "several frames": _frames,
    "a dangling link": _dangling,
    "a huge image": _huge,
    "a class in capitals": _case,
    "a split twice": _two_of_a_split,
    "a name that is no text": _no_text,
    "a folder inside itself": _circle,
    "no DICOM": _no_dicom,
    "a layout with two readings": _unknown_layout,
}

CASES = [
    (write, name, change)
    for write, changes in ((_write_folder, FOLDERS), (_write_manifest, MANIFESTS), (_write_npz, NPZ))
    for name, change in changes.items()
]


def test_there_are_more_than_500_cases() -> None:
    assert len(CASES) * len(ROUNDS) > 500


@pytest.mark.parametrize("rounds", [ROUNDS[:2], pytest.param(ROUNDS[2:], marks=pytest.mark.long)], ids=["two", "rest"])
@pytest.mark.parametrize(("write", "name", "change"), CASES, ids=[f"{w.__name__[7:]}: {n}" for w, n, _ in CASES])
def test_malformed_data_end_in_one_message(
    write: Callable[[Path, Generator], str],
    name: str,
    change: Break,
    rounds: range,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in rounds:
        root = tmp_path / str(number)
        root.mkdir()
        generator = np.random.default_rng([number, len(name)])
        data = write(root, generator)
        expected = change(root, generator)
        study = root / "study.yaml"
        study.write_text(f"study: broken\ndata: {data}\nexecution: {{cache_dir: {root / 'cache'}}}\n")
        monkeypatch.setattr(sys, "argv", ["robustsweep", "data", "check", str(study)])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        message = capsys.readouterr().err
        assert stopped.value.code == 2, message
        assert message.startswith("error: ")
        assert "Traceback" not in message
        for text in expected:
            assert text in message, f"expected {text!r} in: {message}"
