"""Examples of each shift: one of the study's own test images at every severity, as small PNGs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.wording import word_strength
from trainables.config import TrialConfig

if TYPE_CHECKING:
    from torch import Tensor

#: Larger images are scaled down to this side for the page (px); corruptions are applied at full size before.
MAX_SIDE_PX = 112


@dataclass(frozen=True)
class Examples:
    """One image under every shift."""

    #: Id and class of the image.
    image: str
    severities: tuple[int, ...]
    #: The unshifted image, PNG.
    original: bytes
    #: Shift → PNG and strength in words, per severity.
    rows: dict[str, tuple[tuple[bytes, str], ...]]
    scaled: bool


def build_examples(config: TrialConfig, *, cache_dir: Path) -> Examples:
    """Return the first test image of the last class (the diseased one, by convention) under every shift of the study.

    The image gets the same random numbers as in the evaluation, so that it is shown exactly as models received it.

    Raises:
        RobustSweepError: the data or a shift is not available on this machine, e.g. the images have moved.
    """
    import torch

    from trainables.data.load import load_dataset
    from trainables.data.segmentation.extents import find_extents
    from trainables.ops.geometry import index_first
    from trainables.seeding import hash_ids, mix
    from trainables.shifts.bank import build_shifts

    data = load_dataset(config.data, cache_dir=cache_dir)
    modality = data.modality if config.evaluation.modality == "auto" else config.evaluation.modality
    test = data.splits["test"]
    label = int(test.labels.max())
    row = int((test.labels == label).argmax())
    image = torch.from_numpy(test.images[row : row + 1].copy())
    if test.holds_volumes:  # as it is evaluated, without its padding
        image = image[index_first(find_extents(test)[row].tolist())]
    seeds = mix(torch.from_numpy(hash_ids(test.ids[row : row + 1])), "shift", config.evaluation.shift_seed)
    rows: dict[str, list[tuple[bytes, str]]] = {}
    severities = []
    for shift in build_shifts(config.evaluation, modality):
        if shift.severity:
            rows.setdefault(shift.name, []).append((_png(shift.apply(image, seeds)), word_strength(shift.strength)))
            severities.append(shift.severity)
    shown, kind = ", central slice" * test.holds_volumes, "" if data.components else "class "
    return Examples(
        image=f"{test.ids[row]}{shown}, {kind}{(data.components or data.classes)[label]}",
        severities=tuple(sorted(set(severities))),
        original=_png(image),
        rows={name: tuple(cells) for name, cells in rows.items()},
        scaled=max(image.shape[-2:]) > MAX_SIDE_PX,
    )


def _png(image: Tensor) -> bytes:
    """Return a 1 × C × H × W uint8 tensor as PNG, at most ``MAX_SIDE_PX`` a side; of a volume its central slice."""
    from PIL import Image

    if image.ndim == 5:
        image = image[:, :, image.shape[2] // 2]
    pixels = image[0].permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
