"""Contact sheet of near-duplicates: pairs of images side by side with their sets, classes and names."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainables.data.dataset import Dataset, ImageSet, SimilarPair
from trainables.data.splits import EXTERNAL

#: Pairs on a sheet.
MAX_SHOWN = 60
_COLUMNS = 4
_IMAGE_PX = 128
_GAP_PX = 4
_MARGIN_PX = 12
_FONT_PX = 12
_LINE_PX = 15


def draw_pairs(dataset: Dataset) -> Image.Image:
    """Return the sheet of the first near-duplicates of a data set; pairs of two sets come first and are in red."""
    pairs = dataset.similar.pairs[:MAX_SHOWN]
    columns = min(_COLUMNS, max(1, len(pairs)))
    cell = 2 * _IMAGE_PX + _GAP_PX + _MARGIN_PX, _IMAGE_PX + 4 * _LINE_PX + _MARGIN_PX
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (_MARGIN_PX + columns * cell[0], _MARGIN_PX + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    sets = dataset.splits | {EXTERNAL + name: images for name, images in dataset.external.items()}
    for place, pair in enumerate(pairs):
        left, top = _MARGIN_PX + place % columns * cell[0], _MARGIN_PX + place // columns * cell[1]
        _draw_pair(sheet, draw, (left, top), pair, sets, dataset.components or dataset.classes)
    return sheet


def _draw_pair(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    pair: SimilarPair,
    sets: dict[str, ImageSet],
    names: tuple[str, ...],
) -> None:
    (left, top), font = corner, ImageFont.load_default(_FONT_PX)
    for column, (name, row) in enumerate((pair.first, pair.second)):
        x = left + column * (_IMAGE_PX + _GAP_PX)
        images = sets[name]
        sheet.paste(_enlarge(np.asarray(images.images[row])), (x, top))
        lines = (f"{name}: {names[images.labels[row]]}", str(images.ids[row]))
        colour = "black" if pair.first[0] == pair.second[0] else "firebrick"
        for number, line in enumerate(lines):
            draw.text(
                (x, top + _IMAGE_PX + 2 + number * _LINE_PX), _shorten(line, font), fill=colour, font_size=_FONT_PX
            )
    text = f"correlation {pair.correlation:.3f}"
    draw.text((left, top + _IMAGE_PX + 2 + 2 * _LINE_PX), text, fill="dimgrey", font_size=_FONT_PX)


def _enlarge(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert("RGB")
    how = Image.Resampling.NEAREST if image.width <= _IMAGE_PX else Image.Resampling.LANCZOS
    return image.resize((_IMAGE_PX, _IMAGE_PX), how)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text as far as it fits under an image; of a long name the end says more than the start."""
    if font.getlength(text) <= _IMAGE_PX:
        return text
    while font.getlength("…" + text) > _IMAGE_PX:
        text = text[1:]
    return "…" + text
