"""Groups of images that a source does not name itself: by a pattern on the path, a CSV file, or the DICOM patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trainables.data.decoding.dicom import is_dicom, read_patient
from trainables.data.decoding.files import IMAGE_SUFFIXES
from trainables.data.decoding.threads import map_threads
from trainables.data.identity.texts import check_similar, find_similar, normalise
from trainables.data.sources.csv_file import read_csv
from trainables.data.table import list_first
from trainables.data_config import ImageFolderData, UnlabelledFolderData
from trainables.errors import DataError
from trainables.segmentation_data_config import ImageMaskFolderData

_ADVICE = "set data.similar_text: distinct if they do differ"


def find_groups(
    config: ImageFolderData | ImageMaskFolderData | UnlabelledFolderData, files: Sequence[str]
) -> list[str] | None:
    """Return the group of every path by ``data.group_pattern`` or ``data.group_file``, None if neither is set.

    Raises:
        DataError: a path has no group, the file cannot be read, or groups are spelt in several ways.
    """
    if config.group_pattern is not None:
        groups = _match_groups(files, config.group_pattern)
    elif isinstance(config, ImageFolderData) and config.group_file is not None:
        groups = _look_up_groups(files, config.group_file)
    else:
        return None
    if config.similar_text == "error":
        check_similar(groups, what="group", advice=_ADVICE)
    return groups


def _match_groups(files: Sequence[str], pattern: str) -> list[str]:
    """Return what the pattern's group "group", its first group or all of it matches in every path."""
    expression = re.compile(pattern)
    name: str | int = "group" if "group" in expression.groupindex else min(1, expression.groups)
    found = [match and match[name] for match in map(expression.search, files)]
    missing = [file for file, group in zip(files, found, strict=True) if not group]
    if missing:
        raise DataError(
            f"data.group_pattern {pattern!r} finds no group in {len(missing)} of {len(files)} paths; expected one in "
            f"each, such as the patient in 'train/sick/p012_left.png' by '(p\\d+)_':\n  {list_first(missing)}"
        )
    return [normalise(str(group)) for group in found]


def _look_up_groups(files: Sequence[str], path: Path) -> list[str]:
    """Return the group of every file from a CSV with the columns file_name and group."""
    columns, lines = read_csv(path, key="data.group_file", required=("file_name", "group"))
    names = [normalise(name.replace("\\", "/")).removeprefix("./") for name in columns["file_name"]]
    group_of: dict[str, tuple[str, int]] = {}
    for name, group, line in zip(names, columns["group"], lines, strict=True):
        if not group:
            raise DataError(f"data.group_file: {path.name} line {line} has no group; expected one for {name!r}")
        known = group_of.setdefault(name, (group, line))
        if known[0] != group:
            raise DataError(
                f"data.group_file: {path.name} gives {name!r} the group {known[0]!r} in line {known[1]} and {group!r} "
                f"in line {line}; expected one group per file"
            )
    missing = [file for file in files if normalise(file) not in group_of]
    if missing:
        raise DataError(
            f"data.group_file: {path.name} names no group for {len(missing)} of {len(files)} images; expected a line "
            f"for each, with its path below data.path such as {files[0]!r}:\n  {list_first(missing)}"
        )
    return [group_of[normalise(file)][0] for file in files]


def find_patients(files: Sequence[str], paths: Sequence[Path], *, similar_text: str) -> list[str]:
    """Return the group of every file: DICOM images of one patient share one, all others are their own.

    A group is named after the patient's first file, since the identifier is not to be written to ledger or report.

    Raises:
        ConfigError: there are DICOM files, and pydicom is not installed.
        DataError: some of the DICOM files name a patient and others do not, or patients are spelt in several ways.
    """
    rows = [row for row, path in enumerate(paths) if is_dicom(path, IMAGE_SUFFIXES)]
    patients = map_threads(lambda row: read_patient(paths[row]), rows)
    known = {row: normalise(patient) for row, patient in zip(rows, patients, strict=True) if patient}
    missing = [files[row] for row, patient in zip(rows, patients, strict=True) if patient == ""]
    if known and missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} DICOM files have no Patient ID; expected one in each, or in none: give the "
            f"patients by data.group_pattern, data.group_file or the column group:\n  {list_first(missing)}"
        )
    first: dict[str, str] = {}
    for row, patient in known.items():
        first.setdefault(patient, files[row])
    if similar_text == "error":
        _check_similar_patients(first)
    groups = list(files)
    for row, patient in known.items():
        groups[row] = f"patient of {first[patient]}"
    return groups


def _check_similar_patients(first: dict[str, str]) -> None:
    """Check the spelling of identifiers, naming files instead of patients.

    Args:
        first: identifier → first file.
    """
    similar = find_similar(first)
    if similar:
        lines = [" and ".join(first[patient] for patient in spellings) for spellings in similar]
        raise DataError(
            f"{len(similar)} Patient ID(s) are spelt in several ways that differ only in case, leading zeros or the "
            f"way a number is written; expected one spelling each: correct them, or {_ADVICE}:\n  {list_first(lines)}"
        )
