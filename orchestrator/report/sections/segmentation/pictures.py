"""The worst cases of a segmentation as pictures: image, truth, prediction, errors, uncertainty."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import UInt8

from orchestrator.analysis.segmentation.cases import Case
from trainables.data.dataset import UNCOUNTED

#: Side of a drawn image, px.
SIDE_PX = 160
#: Colours of the foreground, of what was missed and of what was invented: told apart by colour-blind readers.
FOUND, MISSED, INVENTED = (0, 200, 160), (255, 120, 0), (60, 140, 255)
_HEADINGS = ("image", "truth", "prediction", "errors", "uncertainty")


def draw_cases(cases: Sequence[Case]) -> str:
    """Return a table (HTML) with a row per case: image, truth, prediction, error map and entropy."""
    head = "".join(f"<th>{name}</th>" for name in _HEADINGS)
    rows = "".join(
        f'<tr><th scope="row">{escape(case.identifier)}<br><span class="sd">{escape(case.set_name)} · Dice '
        f"{case.dice:.3f}</span></th>{''.join(f'<td>{_picture(each, case)}</td>' for each in _panels(case))}</tr>"
        for case in cases
    )
    return (
        f'<div class="scroll gallery"><table class="examples cases"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _panels(case: Case) -> list[UInt8[np.ndarray, "h w 3"]]:
    image = np.array(np.broadcast_to(case.image, (3, *case.image.shape[1:]))).transpose(1, 2, 0)
    grey = np.repeat((0.6 * image.mean(2, keepdims=True)).astype(np.uint8), 3, axis=2)
    counted = case.target != UNCOUNTED
    true, predicted = counted & (case.target > 0), counted & (case.predicted > 0)
    same = case.target == case.predicted
    errors = _paint(grey, [(true & predicted & same, FOUND), (true & ~(predicted & same), MISSED)])
    errors = _paint(errors, [(predicted & ~true, INVENTED)])
    uncertainty = np.repeat(case.entropy[:, :, None], 3, axis=2)
    return [image, _paint(grey, [(true, FOUND)]), _paint(grey, [(predicted, FOUND)]), errors, uncertainty]


def _paint(
    image: UInt8[np.ndarray, "h w 3"], masks: Sequence[tuple[np.ndarray, tuple[int, int, int]]]
) -> UInt8[np.ndarray, "h w 3"]:
    painted = image.copy()
    for mask, rgb in masks:
        painted[mask] = rgb
    return painted


def _picture(pixels: UInt8[np.ndarray, "h w 3"], case: Case) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(case.identifier)}" title="{escape(case.identifier)}">'
