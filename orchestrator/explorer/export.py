"""The page and one trial's data as a single file that asks nobody: from a disk, or in MLflow's artifact viewer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.explorer.app import describe_study
from orchestrator.explorer.attributions import TITLES
from orchestrator.explorer.classification import app as classification_app
from orchestrator.explorer.classification.export import LOOKED, collect_content
from orchestrator.explorer.page import render_file
from orchestrator.explorer.segmentation import app as segmentation_app
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import read_annotations
from trainables.errors import StorageError


@dataclass(frozen=True)
class Exported:
    """A written file."""

    path: Path
    num_bytes: int
    #: What is not in it, in words; None if all of the trial is.
    left_out: str | None


def export_page(explored: ExploredStudy, number: int, path: Path) -> Exported:
    """Write one trial as a page.

    Args:
        explored: the study; what the page shows of the trial is made if it is not there.
        number: number of the trial.
        path: file to write.

    Raises:
        RobustSweepError: the page cannot be made.
        StorageError: the file cannot be written.
    """
    study = describe_study(explored) | {"trials": [vars(explored.trials[number]) | {"number": 0}], "first": 0}
    if explored.is_segmentation:
        page, content = segmentation_app.PAGE, explored.collect_cases(number)
        content["study"] = study | segmentation_app.ABOUT
    else:
        page, content = classification_app.PAGE, collect_content(explored, number)
        content["study"] = study | {"attributions": [{"name": LOOKED, "title": TITLES[LOOKED]}]}
    content["notes"] = [each.as_json() for each in read_annotations(explored.ledger.root)]
    text = render_file(page, content).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}; choose another --export") from error
    return Exported(path.absolute(), len(text), content["left_out"])
