"""Pictures of one segmented case as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8

from orchestrator.analysis.segmentation.panels import paint_panels
from orchestrator.explorer.images import Images, encode_png, encode_thumbnail
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
    drawn = _paint(images, signature, name, row)
    if panel not in drawn:
        raise StudyError(f"asked for {panel} of case {row} of {name}, whose truth is not known")
    return encode_png(np.moveaxis(drawn[panel], 2, 0), side_px)


def _paint(images: Images, signature: str, name: str, row: int) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Return the pictures of a case by their names in ``PANELS``.

    Raises:
        StudyError: there is no such case, or its masks are not stored.
        RobustSweepError: the images cannot be had on this machine.
    """
    opened = images.open_set(signature, name)
    stored = _load(images.folder(signature).uri, name)
    if not 0 <= row < len(stored.ids):
        raise StudyError(f"asked for case {row} of {name}, which has {len(stored.ids)}")
    if row >= len(opened) or str(opened.ids[row]) != str(stored.ids[row]):
        raise StudyError(f"the images of {name} are not those of the evaluation any more; run the study again")
    if stored.predicted is None or stored.entropy is None:
        raise StudyError(f"no masks of {name} are stored")
    is_foreign = name in images.config(signature).evaluation.foreign  # its masks are of other classes
    target = None if opened.targets is None or is_foreign else np.asarray(opened.targets[row])
    return paint_panels(np.asarray(opened.images[row]), target, stored.predicted[row], stored.entropy[row])


def draw_panels(
    images: Images, signature: str, wanted: Sequence[tuple[str, int, list[str] | None]], *, side_px: int, small_px: int
) -> list[dict[str, bytes]]:
    """Return pictures of many cases as JPEG: panel → picture of each.

    Args:
        images: data sets of the study.
        signature: signature of the trial.
        wanted: name of the set, number of the case in it, and the panels to draw small; None: all of them, large.
        side_px: longer side of large pictures.
        small_px: that of small ones.

    Raises:
        StudyError: there is no such case.
        RobustSweepError: the images cannot be had on this machine.
    """
    found = []
    for name, row, panels in wanted:
        drawn = _paint(images, signature, name, row)
        side = side_px if panels is None else small_px
        chosen = drawn if panels is None else {panel: drawn[panel] for panel in panels}
        found.append(
            {panel: encode_thumbnail(np.moveaxis(each, 2, 0), side, chroma=True) for panel, each in chosen.items()}
        )
    return found
