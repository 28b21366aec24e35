"""Overlays: relevance maps of a few test images by arm and method, with the outlines of their lesions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import callout, note
from trainables.config import read_trial_config
from trainables.errors import RobustSweepError
from trainables.storage.completeness import ATTRIBUTION

#: Arms with overlays; a page with more is not looked at.
MAX_ARMS = 8
#: Side of a drawn image, px.
SIDE_PX = 112
HEAT, OUTLINE = (255, 120, 0), (0, 220, 255)


def draw_overlays(results: Results, ledger: Ledger, cache_dir: Path, titles: Mapping[str, str]) -> str:
    """Return a table of overlays (HTML), a row per arm and method and a column per image; the reason if there is none.

    Of every arm the first complete replicate is shown. The images are those that the evaluation drew by a hash of their
    ids, not chosen by what the maps look like.

    Args:
        results: tables of the study.
        ledger: ledger of the study.
        cache_dir: folder of this node's decoded images.
        titles: method → its title.
    """
    from trainables.evaluation.attribution.evaluate import read_attribution  # imports torch

    firsts = results.complete.sort_values("replicate").drop_duplicates("name")
    rows: list[str] = []
    shown: list[str] = []
    for name, signature in list(zip(firsts["name"], firsts["signature"], strict=True))[:MAX_ARMS]:
        folder = ledger.folder("trial", str(signature))
        if not folder.exists(ATTRIBUTION):
            continue
        arrays = read_attribution(folder)
        methods = [key.removeprefix("maps/") for key in arrays if key.startswith("maps/")]
        if not methods or not len(arrays["masks"]):
            continue
        try:
            images = _load_images(results, str(signature), arrays, cache_dir)
        except RobustSweepError as error:
            return callout(f"No overlays are shown, because the images could not be had here: {error}", "warn")
        pairs = list(zip(images, arrays["masks"], strict=True))
        if (ids := list(map(str, arrays["ids"][: len(images)]))) != shown:  # arms on other images have their own row
            shown = ids
            head = "".join(
                f"<td>{_picture(_outline(_grow(image), _grow(mask)), name_of)}</td>"
                for (image, mask), name_of in zip(pairs, ids, strict=True)
            )
            rows.append(f'<tr><th scope="row">image</th>{head}</tr>')
        label = results.labels.get(str(name), str(name))
        for method in methods:
            cells = "".join(
                f"<td>{_picture(_overlay(image, mask, heat), f'{label}, {titles[method]}')}</td>"
                for (image, mask), heat in zip(pairs, arrays[f"maps/{method}"], strict=True)
            )
            rows.append(f'<tr><th scope="row">{escape(label)}<br>{titles[method]}</th>{cells}</tr>')
    if not rows:
        return ""
    text = (
        "Maps of the first complete replicate of each arm, on test images drawn by a hash of their ids. Orange: "
        "relevance, each map scaled to its own maximum; light blue: outlines of the lesions."
    )
    return (
        f'{note(text)}<div class="scroll gallery"><table class="examples"><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _load_images(
    results: Results, signature: str, arrays: Mapping[str, np.ndarray], cache_dir: Path
) -> UInt8[np.ndarray, "cases c h w"]:
    from trainables.data.load import load_dataset

    config = read_trial_config(results.records[signature].config["config"])
    test = load_dataset(config.data, cache_dir=cache_dir).splits["test"]
    return np.asarray(test.images[arrays["rows"][: len(arrays["masks"])]])


def _grow(values: UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Return an image (channels first) or a mask at ``SIDE_PX``, pixels repeated or left out."""
    index = np.arange(SIDE_PX) * values.shape[-1] // SIDE_PX
    return values[..., index[:, None], index[None, :]]


def _outline(image: UInt8[np.ndarray, "c h w"], mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image in colour with the outlines of a mask: its outside neighbours."""
    inside = np.pad(mask > 0, 1)
    near = inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]
    drawn = np.array(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
    drawn[near & ~inside[1:-1, 1:-1]] = OUTLINE
    return drawn


def _overlay(
    image: UInt8[np.ndarray, "c h w"], mask: UInt8[np.ndarray, "h w"], heat: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    grey = _grow(image).mean(axis=0, keepdims=True)
    share = _grow(heat)[None] / 255
    mixed = (1 - share) * 0.7 * grey + share * np.array(HEAT)[:, None, None]
    return _outline(mixed.round().astype(np.uint8), _grow(mask))


def _picture(pixels: UInt8[np.ndarray, "h w 3"], text: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" title="{escape(text)}">'
