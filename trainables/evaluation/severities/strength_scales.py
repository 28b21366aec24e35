"""Continuous scales of strength: from (almost) no change through the published strengths to a stated strongest one.

A scale is a list of knots. Position 0 is the first, 1 the next …; between knots every number of a strength changes
linearly, the photons of shot noise as their inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainables.shifts.operations import OPERATIONS
from trainables.shifts.tables import Strength, load_tables

#: Shift → the strongest change that is ever chosen. Assumptions: two to ten times the strongest published strength, in
#: a range in which the operation is defined and its cost stays that of a shift.
STRONGEST: dict[str, Strength] = {
    "gaussian_noise": 1.5,
    "shot_noise": 0.3,
    "impulse_noise": 0.9,
    "speckle_noise": 3.0,
    "gaussian_blur": 30.0,
    "defocus_blur": (40.0, 0.5),
    "motion_blur": (60.0, 60.0),
    "brightness_up": 8.0,
    "brightness_down": 0.02,
    "contrast_up": 10.0,
    "contrast_down": 0.01,
    "gamma_up": 8.0,
    "gamma_down": 0.05,
    "saturation": (40.0, 0.5),
    "jpeg": 1.0,
    "pixelate": 0.03,
    "glass_blur": (5.0, 12.0, 3.0),
    "zoom_blur": (2.5, 0.05),
    "snow": (0.9, 0.3, 2.5, 0.7, 12.0, 12.0, 0.2),
    "frost": (0.1, 1.0),
    "fog": (10.0, 1.2),
    "spatter": (1.1, 0.4, 1.0, 0.65, 1.5, 1.0),
    "brightness": 0.95,
    "contrast": 0.01,
    "saturate": (40.0, 0.5),
    "elastic_transform": 150.0,
    "stain_deposit": (20.0, 48.0),
    "bubble": (50.0, 60.0),
    "black_corner": 0.2,
    "characters": (20.0, 12.0, 0.6),
}
#: Shift → first knot, where the strength without effect is a limit or cannot be applied: JPEG of quality 100, a circle
#: that just holds a square image, one small bubble, deposit or word, mud that wets nothing.
WEAKEST: dict[str, Strength] = {
    "jpeg": 100.0,
    "black_corner": 1.45,
    "stain_deposit": (1.0, 1.0),
    "bubble": (1.0, 1.0),
    "characters": (1.0, 3.0, 0.05),
    "zoom_blur": (1.0, 0.01),
    "spatter": (0.2, 0.3, 1.0, 0.65, 1.5, 1.0),
}
#: Shifts whose strength counts as its inverse, so that their limit without effect, infinity, is a position.
INVERSE = ("shot_noise",)


@dataclass(frozen=True)
class StrengthScale:
    """Scale of one shift."""

    knots: tuple[tuple[float, ...], ...]
    form: Literal["one", "several", "inverse"]

    @property
    def end(self) -> int:
        """Position of the strongest strength; that of no change is 0."""
        return len(self.knots) - 1

    def at(self, position: float) -> Strength:
        """Return the strength at a position in [0, ``end``]."""
        index = min(int(position), self.end - 1)
        share = position - index
        numbers = tuple(
            low + share * (high - low) for low, high in zip(self.knots[index], self.knots[index + 1], strict=True)
        )
        if self.form == "several":
            return numbers
        return numbers[0] if self.form == "one" else 1.0 / max(numbers[0], 1e-9)


def build_scale(name: str, modality: str) -> StrengthScale:
    """Return the scale of a shift of the bank, through the strengths of a modality's table.

    Two tables turn back: of ``saturate`` the strengths that take colour away are left out, and of ``spatter`` those of
    water.
    """
    rows: Sequence[Strength] = load_tables()[modality][name]
    if name == "saturate":
        rows = [row for row in rows if isinstance(row, tuple) and row[0] >= 1.0]
    elif name == "spatter":
        rows = [row for row in rows if isinstance(row, tuple) and row[-1] == 1.0]
    strengths = [WEAKEST.get(name, OPERATIONS[name].identity), *rows, STRONGEST[name]]
    if name in INVERSE:
        return StrengthScale(tuple((1.0 / float(each),) for each in strengths if isinstance(each, float)), "inverse")
    if isinstance(strengths[0], tuple):
        return StrengthScale(tuple(tuple(each) for each in strengths if isinstance(each, tuple)), "several")
    return StrengthScale(tuple((each,) for each in strengths if isinstance(each, float)), "one")
