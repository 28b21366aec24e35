"""``robustsweep shifts``: a study's shifts as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.cli.shifts.files import load_shifts, preview_shifts
from orchestrator.study.study_file import Study, parse_study
from trainables.errors import StorageError, StudyError

TEXT = """
study: files
data: {kind: digits, image_size: 16}
evaluation: {shifts: [SHIFTS], severities: [1, 5]}
factors: {regulariser: [none, label_smoothing]}
execution: {cache_dir: CACHE}
"""
MakeText = Callable[[str], str]


@pytest.fixture
def make_text(cache_dir: Path) -> MakeText:
    return lambda shifts: TEXT.replace("SHIFTS", shifts).replace("CACHE", str(cache_dir))


def make_study(text: str) -> Study:
    return parse_study(text, source="files")


def test_the_shifts_are_those_of_the_evaluation(make_text: MakeText) -> None:
    found = load_shifts(make_study(make_text("jpeg, saturation, gamma_up")))
    assert [f"{shift.name}/{shift.severity}" for shift in found.shifts] == [
        "jpeg/1",
        "jpeg/5",
        "gamma_up/1",
        "gamma_up/5",
    ]


def test_a_study_without_a_shift_that_does_something_is_refused(make_text: MakeText) -> None:
    with pytest.raises(StudyError, match=r"no shift in files that changes its images"):
        load_shifts(make_study(make_text("saturation")))


def test_a_preview_is_a_picture_of_as_many_images_as_asked_for(make_text: MakeText, tmp_path: Path) -> None:
    study = make_study(make_text("jpeg, gamma_up"))
    one, three = (preview_shifts(study, tmp_path / "new" / f"{num}.png", num_images=num) for num in (1, 3))
    with Image.open(one) as small, Image.open(three) as large:
        assert (small.format, small.height, large.height) == ("PNG", 2 * 96, 2 * 3 * 96)
    with pytest.raises(StorageError, match="could not write"):
        preview_shifts(study, tmp_path / "new", num_images=1)


@pytest.mark.parametrize("layout", ["npz", "folder"])
def test_the_command_line_writes_and_names_the_files(layout: str, make_text: MakeText, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(make_text("jpeg, gamma_up"))
    done = CliRunner().invoke(app, ["shifts", "export", str(study), "--format", layout, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    ending = ".npz" if layout == "npz" else ""
    paths = [tmp_path / "out" / f"{name}{ending}" for name in ("jpeg", "gamma_up")]
    assert done.output.split() == list(map(str, paths))
    if layout == "npz":
        with np.load(paths[0]) as arrays:
            assert len(arrays["test_images"]) == 2 * len(load_shifts(make_study(make_text("jpeg"))).data.splits["test"])
    else:
        assert sorted(path.name for path in (paths[0] / "5").iterdir()) == list("0123456789")


def test_the_command_line_draws_and_names_the_picture(make_text: MakeText, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(make_text("jpeg"))
    done = CliRunner().invoke(app, ["shifts", "preview", str(study), "--out", str(tmp_path / "sheet.png")])
    assert done.exit_code == 0, done.output
    assert Path(done.output.strip()) == tmp_path / "sheet.png"
    assert (tmp_path / "sheet.png").stat().st_size > 0
