"""Corruptions of MedMNIST-C that ImageNet-C lacks (Di Salvo et al. 2024), and changes of stain."""

from __future__ import annotations

import math

from trainables.ops import overlays, stain
from trainables.shifts.operation import Images, Operation, Seeds, each, one, scale_to, several
from trainables.shifts.tables import Strength

#: Radius of a deposit as a share of its size: MedMNIST-C's masks are squares of the given side, in which black covers
#: as much as a circle of this radius.
_DEPOSIT_RADIUS = 0.44
#: Height of a line in OpenCV's font at scale 1 (px), the smallest scale used, and the least legible height.
_LINE_PX, _SMALLEST_FONT, _LEGIBLE_PX = 32.0, 0.14, 5.0


def _stain_deposit(images: Images, strength: Strength, seeds: Seeds) -> Images:
    most, size = several(strength, 2)
    return overlays.deposit_stain(images, seeds, most=int(most), radius_px=_DEPOSIT_RADIUS * scale_to(images, size))


def _bubble(images: Images, strength: Strength, seeds: Seeds) -> Images:
    largest, most = several(strength, 2)
    radius, rim = (scale_to(images, 3.0), scale_to(images, largest)), scale_to(images, 2.0)
    return overlays.add_bubbles(images, seeds, most=int(most), radius_px=radius, rim_px=rim)


def _characters(images: Images, strength: Strength, seeds: Seeds) -> Images:
    words, letters, font = several(strength, 3)
    smallest, largest = (max(_LEGIBLE_PX, scale_to(images, _LINE_PX * scale)) for scale in (_SMALLEST_FONT, font))
    return overlays.write_characters(
        images, seeds, most_words=int(words), most_letters=int(letters), heights_px=(smallest, largest)
    )


#: Operations by MedMNIST-C's name. The identity of black_corner is a limit, not a strength that can be applied.
OPERATIONS: dict[str, Operation] = {
    "stain_deposit": Operation(_stain_deposit, (0.0, 0.0)),
    "bubble": Operation(_bubble, (0.0, 0.0)),
    "black_corner": Operation(lambda x, s, seeds: overlays.blacken_corners(x, radius=one(s)), math.inf),
    "characters": Operation(_characters, (0.0, 0.0, 0.0)),
}

#: Multiplication of haematoxylin and eosin by the two numbers of the strength; not part of MedMNIST-C.
STAIN = Operation(
    lambda x, s, seeds: stain.scale_stains(x, each(s, x, 0), each(s, x, 1)), (1.0, 1.0), needs_colour=True
)
