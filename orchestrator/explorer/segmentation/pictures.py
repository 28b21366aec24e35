"""Pictures of one segmented case as PNG."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from orchestrator.analysis.segmentation.panels import PANELS, paint_panels
from orchestrator.explorer.images import Images, encode_png
from trainables.errors import StudyError
from trainables.evaluation.segmentation.stored import SegmentedSet, load_segmented
from trainables.storage.folder import Folder


@lru_cache(maxsize=8)  # a set is read and checked once, not for every picture
def _load(uri: str, name: str) -> SegmentedSet:
    return load_segmented(Folder(uri), name)


def draw_panel(images: Images, signature: str, name: str, row: int, *, panel: str, side_px: int) -> bytes:
    """Return one picture of a case as PNG, at most ``side_px`` wide or high.

    Args:
        images: data sets of the study.
        signature: signature of the trial.
        name: name of the set.
        row: number of the case in it.
        panel: name in ``PANELS``.
        side_px: longer side.

    Raises:
        StudyError: there is no such picture.
        RobustSweepError: the images cannot be had on this machine.
    """
    opened = images.open_set(signature, name)
    stored = _load(images.folder(signature).uri, name)
    if not 0 <= row < len(stored.ids) or panel not in PANELS:
        raise StudyError(f"asked for {panel} of case {row} of {name}; expected {', '.join(PANELS)} of a stored case")
    if row >= len(opened) or str(opened.ids[row]) != str(stored.ids[row]):
        raise StudyError(f"the images of {name} are not those of the evaluation any more; run the study again")
    if stored.predicted is None or stored.entropy is None:
        raise StudyError(f"no masks of {name} are stored")
    is_foreign = name in images.config(signature).evaluation.foreign  # its masks are of other classes
    target = None if opened.targets is None or is_foreign else np.asarray(opened.targets[row])
    drawn = paint_panels(np.asarray(opened.images[row]), target, stored.predicted[row], stored.entropy[row])
    if panel not in drawn:
        raise StudyError(f"asked for {panel} of case {row} of {name}, whose truth is not known")
    return encode_png(np.moveaxis(drawn[panel], 2, 0), side_px)
