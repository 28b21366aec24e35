"""Implementation of ``robustsweep data check``: description of a study's data, and a sheet of near-duplicates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.planning.inputs import Inputs
from orchestrator.study.study_file import Study
from trainables.data.contact_sheet import MAX_SHOWN, draw_pairs
from trainables.data.describe import describe_dataset
from trainables.errors import StorageError, StudyError


def check_data(study: Study, path: Path, *, write_line: Callable[[str], None], verify: bool = False) -> None:
    """Read every data set of a study, write what was understood, and draw its near-duplicates.

    Args:
        study: study whose arms name the data.
        path: PNG of the near-duplicates; of a further data set ``<stem>-2.png`` and so on.
        write_line: receives the lines of the description.
        verify: whether to read every byte instead of trusting sizes and times.

    Raises:
        StudyError: the study has no arm.
        DataError: an image, label or split is unusable.
        StorageError: the image cannot be written.
    """
    inputs = Inputs(study.execution.cache_dir, verify=verify)
    for arm in study.arms():
        inputs.dataset(arm.config.data)
    if not inputs.datasets:
        raise StudyError(f"looked for the data of {study.study} and found no arm: exclude fewer")
    for number, dataset in enumerate({each.fingerprint: each for each in inputs.datasets}.values(), start=1):
        write_line(f"{dataset.name}, fingerprint {dataset.fingerprint[:12]}")
        for label, line in describe_dataset(dataset).items():
            write_line(f"  {label}: {line}")
        if not dataset.similar.pairs:
            continue
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_pairs(dataset).save(target, format="PNG")
        except OSError as error:
            raise StorageError(f"could not write {target}: {error}; choose another --out") from error
        num_pairs = sum(dataset.similar.counts.values())
        shown = f", {MAX_SHOWN} of {num_pairs:,} pairs" if num_pairs > MAX_SHOWN else ""
        write_line(f"look at them{shown}: {target.absolute()}")
