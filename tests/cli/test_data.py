"""``robustsweep data check``: what was understood of the data, and a picture of near-duplicates."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli.main import app

TEXT = """
study: checked
data: {kind: image_folder, path: images, image_size: 32, channels: 1}
training: {batch_size: 8}
execution: {cache_dir: CACHE}
"""


def _write(root: Path, *, copy: bool) -> Path:
    generator = np.random.default_rng(0)
    for number in range(40):
        small = Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8))
        path = root / "images" / ("train", "val", "test", "train")[number % 4] / "ab"[number // 4 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    if copy:
        Image.open(root / "images" / "train" / "a" / "0.png").save(
            root / "images" / "test" / "a" / "again.jpg", quality=60
        )
    (root / "study.yaml").write_text(TEXT.replace("CACHE", str(root / "cache")))
    return root / "study.yaml"


def test_near_duplicates_are_counted_and_drawn(tmp_path: Path) -> None:
    study = _write(tmp_path, copy=True)
    result = CliRunner().invoke(app, ["data", "check", str(study), "--out", str(tmp_path / "new" / "pairs.png")])
    assert result.exit_code == 0, result.output
    assert "classes: 2, in this order: a, b" in result.output
    assert "1 pair of images looks like a copy of each other: 1 in test and train" in result.output
    assert f"look at them: {tmp_path / 'new' / 'pairs.png'}" in result.output
    with Image.open(tmp_path / "new" / "pairs.png") as sheet:
        assert sheet.width > 256


def test_without_any_nothing_is_drawn(tmp_path: Path) -> None:
    study = _write(tmp_path, copy=False)
    result = CliRunner().invoke(app, ["data", "check", str(study), "--out", str(tmp_path / "pairs.png")])
    assert result.exit_code == 0, result.output
    assert "near-duplicates: none found" in result.output
    assert not (tmp_path / "pairs.png").exists()


def test_the_plan_warns_and_names_the_command(tmp_path: Path) -> None:
    study = _write(tmp_path, copy=True)
    result = CliRunner().invoke(app, ["plan", str(study), "--no-pilot", "--storage", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    assert "similar images may be copies of each other; robustsweep data check STUDY draws them" in result.output


def test_every_byte_is_read_on_request(tmp_path: Path) -> None:
    study = _write(tmp_path, copy=False)
    before = CliRunner().invoke(app, ["data", "check", str(study)]).output
    arrays = sorted((tmp_path / "cache" / "data").glob("*/0.npy"))
    stat = arrays[0].stat()
    content = bytearray(arrays[0].read_bytes())
    content[-1] ^= 1
    arrays[0].write_bytes(content)
    os.utime(arrays[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # damage that leaves size and time
    assert CliRunner().invoke(app, ["data", "check", str(study)]).output == before
    assert arrays[0].read_bytes() == bytes(content)
    assert CliRunner().invoke(app, ["data", "check", str(study), "--verify-data"]).output == before
    assert arrays[0].read_bytes() != bytes(content)  # decoded again
