"""Data of one trial of segmentations in a page by itself: numbers, pictures of the worst cases, small ones of all."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.explorer.images import Images
from orchestrator.explorer.segmentation.groups import cluster_cases
from orchestrator.explorer.segmentation.index import list_cases
from orchestrator.explorer.segmentation.pictures import draw_panels
from orchestrator.ledger.ledger import Ledger
from trainables.errors import RobustSweepError

#: Set of the training images.
TRAINING = "train"
#: Cases in a file: those with the lowest Dice, then those without a truth. 1 to 2 KB each.
MAX_CASES = 4_000
#: Cases with all of their pictures: the worst, and the first of every set without a truth. 40 KB each.
MAX_DRAWN, MAX_DRAWN_FOREIGN = 100, 10
#: Sides of these pictures, and of the small ones of all other cases, px.
PANEL_PX, THUMBNAIL_PX = 192, 64


def collect_cases(ledger: Ledger, signature: str, *, cache_dir: Path) -> dict[str, Any]:
    """Return what the page shows of a trial, ready for JSON; ``left_out`` says in words what it lacks.

    Args:
        ledger: ledger of the study.
        signature: signature of a complete trial.
        cache_dir: folder of this node's decoded images.

    Raises:
        RobustSweepError: its cases cannot be listed.
    """
    index = list_cases(ledger, signature, cache_dir=cache_dir)
    try:
        clusters = cluster_cases(ledger, signature, cache_dir=cache_dir)
    except RobustSweepError as error:
        clusters = {"error": str(error)}
    ranked = _rank(index)
    kept = ranked[:MAX_CASES]
    drawn = _choose_drawn(index, kept)
    images = Images(ledger, cache_dir)
    for key in ("codes", "part_codes"):
        if key in clusters:
            clusters[key] = [clusters[key][case] for case in kept]
    return {
        # Training images, whose set is the last, are left out.
        "index": index
        | {
            "sets": [each for each in index["sets"] if each["name"] != TRAINING],
            "cases": [index["cases"][case] for case in kept],
        },
        "clusters": clusters,
        "pictures": _draw(images, signature, index, kept, set(drawn)),
        "left_out": _describe_left_out(index, len(ranked), len(kept), len(drawn)),
    }


def _rank(index: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the cases that are no training images: lowest Dice first, at the end those without."""
    metrics = [each["name"] for each in index["metrics"]]
    dice = metrics.index("dice") if "dice" in metrics else None
    found = []
    for number, each in enumerate(index["cases"]):
        value = None if dice is None or each["metrics"] is None else each["metrics"][dice]
        if index["sets"][each["set"]]["name"] != TRAINING:
            found.append((value is None, value or 0.0, number))
    return [number for *_, number in sorted(found)]


def _choose_drawn(index: Mapping[str, Any], kept: list[int]) -> list[int]:
    """Return the numbers of the cases that are in the file with all of their pictures."""
    chosen, room = [], dict.fromkeys(range(len(index["sets"])), MAX_DRAWN_FOREIGN)
    known = 0
    for number in kept:
        of = index["cases"][number]["set"]
        if index["sets"][of]["has_targets"]:
            known += 1
            if known <= MAX_DRAWN:
                chosen.append(number)
        elif room[of] > 0:
            room[of] -= 1
            chosen.append(number)
    return chosen


def _draw(
    images: Images, signature: str, index: Mapping[str, Any], kept: list[int], whole: set[int]
) -> list[dict[str, str]]:
    """Return the pictures of every kept case, panel → JPEG in base64; none where images are not on this machine."""
    if index["no_images"]:
        return [{} for _ in kept]
    wanted = []
    for case in kept:
        each = index["cases"][case]
        of = index["sets"][each["set"]]
        small = ["errors" if of["has_targets"] else "prediction"]
        wanted.append((of["name"], each["row"], None if case in whole else small))
    drawn = draw_panels(images, signature, wanted, side_px=PANEL_PX, small_px=THUMBNAIL_PX)
    return [{panel: base64.b64encode(each).decode() for panel, each in panels.items()} for panels in drawn]


def _describe_left_out(index: Mapping[str, Any], total: int, kept: int, drawn: int) -> str | None:
    said = []
    if any(each["name"] == TRAINING for each in index["sets"]):
        said.append("Training images are not in this file.")
    if kept < total:
        said.append(
            f"This file holds {kept:,} of {total:,} cases, those with the lowest Dice: means in it are not those of "
            "the whole sets."
        )
    if index["no_images"]:
        said.append(f"It has no pictures: {index['no_images']}")
    elif drawn < kept:
        said.append(
            f"All pictures are there of {drawn} cases: the worst, and the first of every set without a truth; of the "
            "others a small one."
        )
    return " ".join(said) or None
