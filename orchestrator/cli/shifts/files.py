"""Implementation of ``robustsweep shifts``: write the shifts of a study, on its own test images, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from orchestrator.study.study_file import Study
from trainables.errors import StorageError, StudyError

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset
    from trainables.shifts.shift import Shift


@dataclass(frozen=True)
class ShiftedTestSet:
    """Data of a study's first arm and the shifts of its evaluation, without the identity."""

    data: Dataset
    shifts: list[Shift]
    shift_seed: int


def load_shifts(study: Study) -> ShiftedTestSet:
    """Return the data and the shifts of the first arm.

    Raises:
        StudyError: the study has no arm, or names no shift that changes its images.
        RobustSweepError: the data cannot be loaded, or a shift is unknown.
    """
    from trainables.data.load import load_dataset
    from trainables.evaluation.robustness import choose_shifts

    arms = study.arms()
    if not arms:
        raise StudyError(f"looked for the shifts of {study.study} and found no arm: exclude fewer")
    config = arms[0].config
    if config.evaluation.is_matched:
        raise StudyError(
            f"evaluation.severities: found matched in {study.study}, whose strengths its run chooses and its report "
            "shows; for the published ones, add --set 'evaluation.severities=[1, 2, 3, 4, 5]'"
        )
    data = load_dataset(config.data, cache_dir=study.execution.cache_dir)
    shifts = choose_shifts(data, config.evaluation)[0][1:]
    if not shifts:
        raise StudyError(f"found no shift in {study.study} that changes its images: name some in evaluation.shifts")
    return ShiftedTestSet(data, shifts, config.evaluation.shift_seed)


def preview_shifts(study: Study, path: Path, *, num_images: int = 1) -> Path:
    """Write a sheet of all shifts on test images as PNG and return its path.

    The images are the first of each class, from the last class on; of volumes the central slices.

    Raises:
        StorageError: the file cannot be written.
        RobustSweepError: any error of ``load_shifts``.
    """
    from trainables.shifts.export import draw_sheet

    found = load_shifts(study)
    test = found.data.splits["test"]
    _, firsts = np.unique(test.labels, return_index=True)
    sheet = draw_sheet(test, firsts[::-1][:num_images].tolist(), found.shifts, shift_seed=found.shift_seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}; choose another --out") from error
    return path.absolute()


def export_shifts(study: Study, folder: Path, *, layout: Literal["npz", "folder"]) -> list[Path]:
    """Write the shifted test sets and return one path per shift: a file (npz) or a folder.

    Raises:
        StorageError: a file cannot be written.
        StudyError: the data are volumes.
        RobustSweepError: any error of ``load_shifts``.
    """
    from trainables.shifts.export import write_folders, write_npz

    found = load_shifts(study)
    test, folder = found.data.splits["test"], folder.absolute()
    if test.holds_volumes:
        raise StudyError(
            f"asked to export the shifted volumes of {study.study}; expected images (data.dimensions: 2): npz and "
            "folder hold pictures. Shift.apply shifts volumes in Python"
        )
    if layout == "npz":
        return write_npz(folder, test, found.shifts, shift_seed=found.shift_seed)
    return write_folders(folder, test, found.data.classes, found.shifts, shift_seed=found.shift_seed)
