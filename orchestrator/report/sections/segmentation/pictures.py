"""The worst cases of a segmentation as pictures: image, truth, prediction, errors, uncertainty."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import UInt8

from orchestrator.analysis.segmentation.cases import Case
from orchestrator.analysis.segmentation.panels import PANELS, choose_slice, paint_panels

#: Side of a drawn image, px.
SIDE_PX = 160


def draw_cases(cases: Sequence[Case]) -> str:
    """Return a table (HTML) with a row per case: image, truth, prediction, error map and entropy."""
    head = "".join(f"<th>{name}</th>" for name in PANELS)
    rows = "".join(
        f'<tr><th scope="row">{escape(case.identifier)}<br><span class="sd">{escape(case.set_name)} · Dice '
        f"{case.dice:.3f}{_word_slice(case)}</span></th>"
        f"{''.join(f'<td>{_picture(each, case)}</td>' for each in _panels(case))}</tr>"
        for case in cases
    )
    return (
        f'<div class="scroll gallery"><table class="examples cases"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _word_slice(case: Case) -> str:
    """Return which slice of a volume is shown, from 1."""
    if case.predicted.ndim == 2:
        return ""
    return f" · slice {choose_slice(case.target, case.predicted) + 1} of {len(case.predicted)}"


def _panels(case: Case) -> list[UInt8[np.ndarray, "h w 3"]]:
    return list(paint_panels(case.image, case.target, case.predicted, case.entropy).values())


def _picture(pixels: UInt8[np.ndarray, "h w 3"], case: Case) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(case.identifier)}" title="{escape(case.identifier)}">'
