"""Settings that cannot work are refused before anything runs, without importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.driver.prepare import prepare
from orchestrator.study.study_file import parse_study
from trainables.errors import DataError, StudyError

SPLITS = ("train", "train", "val", "test")


def write_manifest(folder: Path, leave_out: Any = lambda row, split: False) -> Path:
    """Write 48 images of two classes, without the rows that are left out."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["file_name,label,split,group"]
    for row in range(48):
        split = SPLITS[row // 2 % 4]
        if not leave_out(row, split):
            Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{row}.png")
            lines.append(f"{row}.png,{row % 2},{split},p{row}")
    (folder / "m.csv").write_text("\n".join(lines))
    return folder / "m.csv"


def check(tmp_path: Path, manifest: Path, *overrides: str) -> None:
    text = f"study: s\ndata: {{kind: csv, path: {manifest}, image_size: 8}}\ntraining: {{batch_size: 8}}\n"
    always = [f"execution.cache_dir={tmp_path / 'cache'}"]
    prepare(parse_study(text, source="s.yaml", overrides=[*always, *overrides]), storage=str(tmp_path / "results"))


def test_a_sound_study_passes(tmp_path: Path) -> None:
    check(tmp_path, write_manifest(tmp_path / "d"), "training.select_by=auroc", "evaluation.shifts=[jpeg, stain-grid]")


def test_auroc_cannot_select_where_validation_lacks_a_class(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d", lambda row, split: split == "val" and row % 2 == 1)
    check(tmp_path, manifest)
    with pytest.raises(StudyError, match=r"training.select_by: found auroc, and no validation image is of class 1"):
        check(tmp_path, manifest, "training.select_by=auroc")


def test_a_test_set_of_one_class_tells_nothing_apart(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d", lambda row, split: split == "test" and row % 2 == 0)
    with pytest.raises(StudyError, match="every test image is of class '1'"):
        check(tmp_path, manifest)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.shifts=[gausian_noise]", "did you mean 'gaussian_noise'"),
        ("evaluation.shifts=[blur]", "evaluation.shifts: found 'blur'"),
        ("training.batch_size=64", "there are 24 training images"),
    ],
)
def test_wrong_names_and_sizes_are_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=message):
        check(tmp_path, write_manifest(tmp_path / "d"), override)


def test_no_severity_is_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"evaluation\.severities"):
        check(tmp_path, write_manifest(tmp_path / "d"), "evaluation.severities=[]")


def test_the_plan_says_how_the_data_were_understood(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d")
    (tmp_path / "s.yaml").write_text(
        f"study: s\ndata: {{kind: csv, path: {manifest}, image_size: 8}}\ntraining: {{batch_size: 8}}\n"
        f"execution: {{cache_dir: {tmp_path / 'cache'}}}\n"
    )
    words = [sys.executable, "-m", "robustsweep", "plan", str(tmp_path / "s.yaml"), "--no-pilot"]
    done = subprocess.run([*words, "--storage", str(tmp_path)], capture_output=True, text=True, check=True)
    for line in ("classes: 2, in this order: 0, 1", "train: 24 images: 0 12, 1 12", "groups: one per image"):
        assert line in done.stdout
    as_json = subprocess.run([*words, "--storage", str(tmp_path), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(as_json.stdout)["counts"]["planned"] == 1


def test_damaged_data_are_named_by_the_command(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d")
    (tmp_path / "d" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3.png \(row 5\)"):
        check(tmp_path, manifest)
