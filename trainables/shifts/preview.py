"""Contact sheets of shifted example images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.shifts.shift import IDENTITY, Shift


def contact_sheet(
    images: UInt8[Tensor, "n c *space"], shifts: Sequence[Shift], seeds: Int64[Tensor, " n"]
) -> UInt8[np.ndarray, "height width c"]:
    """Return one picture with one row per shift and image: the unshifted image, then the severities of the shift.

    Cells beyond the severities of a shift are black. ``seeds`` are passed to ``Shift.apply``. Of volumes, which are
    shifted as a whole, the central slices are shown.
    """
    by_name: dict[str, list[Shift]] = {}
    for shift in shifts:
        by_name.setdefault(shift.name, []).append(shift)
    columns = 1 + max((len(row) for row in by_name.values()), default=0)
    rows = []
    for row in by_name.values():
        cells = [_take_centre(shift.apply(images, seeds)) for shift in (IDENTITY, *row)]
        cells += [torch.zeros_like(cells[0])] * (columns - len(cells))
        rows.append(torch.cat(cells, dim=3))  # n c h (columns·w)
    sheet = torch.cat(rows, dim=0) if rows else _take_centre(images)
    return sheet.permute(0, 2, 3, 1).flatten(0, 1).cpu().numpy()


def _take_centre(images: UInt8[Tensor, "n c *space"]) -> UInt8[Tensor, "n c h w"]:
    """Return images, or the central slices of volumes."""
    return images[:, :, images.shape[2] // 2] if images.ndim == 5 else images
