"""Artefacts that cover the object: deposits of stain, air bubbles, the black frame of a dermatoscope, characters.

All are from MedMNIST-C. Lengths are in px of the given images. Positions and numbers are drawn per sample, and loops
run over the artefacts, never over the images.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainables.ops.pixels import to_uint8
from trainables.seeding import uniform

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]

#: Opacity of a bubble and of its rim (of 255), and the smallest number of bubbles.
_BUBBLE, _RIM, _FEWEST_BUBBLES = 100.0, 130.0, 7
#: Bumps of a deposit's outline: number per turn, and height as a share of the radius.
_BUMPS = ((2, 0.18), (3, 0.14), (5, 0.10), (9, 0.06))
#: Size of a letter in Pillow's built-in bitmap font (px), with the gap behind it.
_GLYPH_HEIGHT, _GLYPH_WIDTH = 11, 6
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FEWEST_LETTERS = 3


def deposit_stain(images: Images, seeds: Seeds, *, most: int, radius_px: float) -> Images:
    """Return the images with 1 to ``most`` black deposits of about ``radius_px``.

    Source: ``stain_deposit`` of MedMNIST-C. Differs: outlines are drawn at random; there they are ten fixed masks.
    """
    height, width = images.shape[-2:]
    number = _draw_integer(seeds, 1, most, "number")
    result = images
    for index in range(most):
        radius = radius_px * _draw(seeds, 0.85, 1.15, ("radius", index))
        y, x = _offsets(seeds, ("place", index), radius, (height, width))
        angle, outline = torch.atan2(y, x), torch.ones_like(y)
        for bumps, share in _BUMPS:
            phase = _draw(seeds, 0.0, 2.0 * torch.pi, ("bump", index, bumps))
            outline = outline + share * torch.cos(bumps * angle + phase)
        inside = (y**2 + x**2).sqrt() < radius * outline
        result = result * ~(inside & _exists(index, number))
    return result


def add_bubbles(images: Images, seeds: Seeds, *, most: int, radius_px: tuple[float, float], rim_px: float) -> Images:
    """Return the images with 7 to ``most`` bubbles, half transparent and white, their rims brighter.

    Source: ``bubble`` of MedMNIST-C (a later bubble hides those below it).
    """
    number = _draw_integer(seeds, min(_FEWEST_BUBBLES, most), most, "number")
    opacity = torch.zeros((len(images), 1, *images.shape[-2:]), device=images.device)
    for index in range(most):
        radius = _draw(seeds, *radius_px, ("radius", index))
        y, x = _offsets(seeds, ("place", index), radius, images.shape[-2:])
        square, exists = y**2 + x**2, _exists(index, number).float()
        for reach, value in ((radius + rim_px, _RIM), (radius, _BUBBLE)):
            opacity += (square <= reach**2) * exists * (value - opacity)  # torch.where is slow on a CPU
    share = opacity / 255.0
    return to_uint8(images + (255.0 - images) * share)


def blacken_corners(images: Images, *, radius: float) -> Images:
    """Return the images, black outside a centred circle of ``radius`` in halves of the shorter side.

    At √2 the circle reaches the corners of a square image up to rounding. Source: ``black_corner`` of MedMNIST-C.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device)[:, None] - height // 2
    x = torch.arange(width, device=images.device) - width // 2
    limit = int(min(height, width) // 2 * radius)
    return images * (y**2 + x**2 <= limit**2)


def write_characters(
    images: Images, seeds: Seeds, *, most_words: int, most_letters: int, heights_px: tuple[float, float]
) -> Images:
    """Return the images with 1 to ``most_words`` words of 3 to ``most_letters`` random letters, coloured per word.

    Source: ``characters`` of MedMNIST-C. Differs: Pillow's bitmap font (OpenCV's strokes there).

    Args:
        images: uint8 images; words on grey images are grey.
        seeds: one per sample.
        most_words: largest number of words, at least 1.
        most_letters: largest number of letters per word, at least 3.
        heights_px: smallest and largest height of a line.
    """
    height, width = images.shape[-2:]
    words = _draw_integer(seeds, 1, most_words, "words")
    result = images.float()
    for index in range(most_words):
        letters = _draw_integer(seeds, _FEWEST_LETTERS, most_letters, ("letters", index))
        scale = _GLYPH_HEIGHT / _draw(seeds, *heights_px, ("height", index))
        top = _draw(seeds, 0.0, 1.0, ("down", index)) * (height - _GLYPH_HEIGHT / scale).clamp(min=0.0)
        left = _draw(seeds, 0.0, 1.0, ("right", index)) * (width - letters * _GLYPH_WIDTH / scale).clamp(min=0.0)
        y = ((torch.arange(height, device=images.device) + 0.5)[:, None] - top) * scale
        x = ((torch.arange(width, device=images.device) + 0.5) - left) * scale
        text = torch.floor(26 * uniform(seeds, most_letters, stream=("text", index))).to(torch.int64)
        ink = _read_ink(text, letters, y, x) * _exists(index, words)
        colour = torch.floor(256 * uniform(seeds, images.shape[1], 1, 1, stream=("colour", index)))
        result = result + ink * (colour - result)
    return to_uint8(result)


def _read_ink(
    text: Int64[Tensor, "n letters"], num: Float[Tensor, "n 1 1 1"], y: Float[Tensor, "n 1 h 1"], x: Tensor
) -> Float[Tensor, "n 1 h w"]:
    """Return the coverage by the word at (y, x) in glyph px from its top left corner: bilinear in the glyphs."""
    atlas = _glyphs(x.device)
    place = torch.floor(x / _GLYPH_WIDTH).to(torch.int64)
    letter = text.gather(1, place.clamp(0, text.shape[1] - 1).flatten(1)).reshape(place.shape)
    column = x - _GLYPH_WIDTH * place - 0.5
    row = y - 0.5
    ink = torch.zeros((), device=x.device)
    for near_row in (torch.floor(row), torch.floor(row) + 1):
        for near_column in (torch.floor(column), torch.floor(column) + 1):
            weight = (1 - (row - near_row).abs()) * (1 - (column - near_column).abs())
            is_on = (near_row >= 0) & (near_row < _GLYPH_HEIGHT) & (near_column >= 0) & (near_column < _GLYPH_WIDTH)
            index = (letter * _GLYPH_HEIGHT + near_row.clamp(0, _GLYPH_HEIGHT - 1)) * _GLYPH_WIDTH
            index = (index + near_column.clamp(0, _GLYPH_WIDTH - 1)).to(torch.int64)
            ink = ink + torch.where(is_on, weight * atlas[index], 0.0)
    return torch.where((place >= 0) & (place < num), ink, 0.0)


@lru_cache(maxsize=4)
def _glyphs(device: torch.device) -> Float[Tensor, " pixels"]:
    """Return the coverage of the pixels of a…z, letter by letter, row by row."""
    sheets = []
    for letter in _LETTERS:
        sheet = Image.new("1", (_GLYPH_WIDTH, _GLYPH_HEIGHT))
        ImageDraw.Draw(sheet).text((0, 0), letter, fill=1, font=ImageFont.load_default_imagefont())
        sheets.append(np.asarray(sheet, dtype=np.float32))
    return torch.from_numpy(np.stack(sheets)).flatten().to(device)


def _draw(seeds: Seeds, low: float, high: float, stream: object) -> Float[Tensor, "n 1 1 1"]:
    return (low + (high - low) * uniform(seeds, stream=stream))[:, None, None, None]


def _draw_integer(seeds: Seeds, low: int, high: int, stream: object) -> Float[Tensor, "n 1 1 1"]:
    """Return whole numbers from low to high, both included."""
    return low + torch.floor((high - low + 1) * uniform(seeds, stream=stream))[:, None, None, None]


def _exists(index: int, number: Float[Tensor, "n 1 1 1"]) -> Bool[Tensor, "n 1 1 1"]:
    return index < number


def _offsets(
    seeds: Seeds, stream: object, radius: Float[Tensor, "n 1 1 1"], size: tuple[int, int] | torch.Size
) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, "n 1 h w"]]:
    """Return distances down and right from a centre at least ``radius`` inside (in the middle if that does not fit)."""
    offsets = []
    for axis, side in enumerate(size):
        room = (side - 1 - 2.0 * radius).clamp(min=0.0)
        centre = (side - 1 - room) / 2.0 + room * _draw(seeds, 0.0, 1.0, (stream, axis))
        line = torch.arange(side, device=seeds.device).reshape((1, 1, side, 1) if axis == 0 else (1, 1, 1, side))
        offsets.append(line - centre)
    y, x = offsets
    return y.expand(-1, -1, -1, size[1]), x.expand(-1, -1, size[0], -1)
