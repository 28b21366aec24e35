"""The shift bank: every shift of a study as a value that turns test images into shifted ones, the same each time."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.config import EvaluationConfig
from trainables.errors import ConfigError
from trainables.seeding import mix
from trainables.shifts.operations import OPERATIONS, Strength

#: Every shift there is, in the order in which tables and figures list them.
SHIFT_NAMES: tuple[str, ...] = tuple(OPERATIONS)

#: Values shifted at a time: bounds the memory of noise (a few 8-byte temporaries a value).
_CHUNK_VALUES = 2**23


@dataclass(frozen=True)
class Shift:
    """One corruption at one severity.

    Attributes:
        name: in ``SHIFT_NAMES``, or "identity".
        severity: 1 (mild) to 5; 0 is the identity.
        strength: in the units of severities.json.
    """

    name: str
    severity: int
    strength: Strength

    @property
    def needs_colour(self) -> bool:
        """Whether images of one channel come back unchanged: such a shift tests nothing there."""
        return self.name != "identity" and OPERATIONS[self.name].needs_colour

    def apply(self, images: UInt8[Tensor, "n c h w"], sample_seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the shifted images, on the images' device, each the same in whatever batch it comes.

        Args:
            images: 1 or 3 channels.
            sample_seeds: ``mix(hash_ids(ids), shift_seed)`` on the images' device; name and strength are mixed in here.
        """
        if self.name == "identity" or self.strength == OPERATIONS[self.name].identity:
            return images
        seeds = mix(sample_seeds, "shift", self.name, self.strength)
        rows = max(1, _CHUNK_VALUES // max(1, math.prod(images.shape[1:])))
        parts = zip(torch.split(images, rows), torch.split(seeds, rows), strict=True)
        return torch.cat([OPERATIONS[self.name].apply(part, self.strength, part_seeds) for part, part_seeds in parts])


#: Severity 0: the input, bit for bit.
IDENTITY = Shift("identity", 0, 0.0)


def build_shifts(evaluation: EvaluationConfig, modality: str) -> list[Shift]:
    """Return the shifts of an evaluation, shift by shift with rising severity; the identity is not among them.

    Args:
        evaluation: names, severities, and a modality that overrides the data's unless it is "auto".
        modality: what the data set says it is.

    Raises:
        ConfigError: an unknown or repeated shift, severity or modality.
    """
    if evaluation.modality != "auto":
        modality = evaluation.modality
    names = SHIFT_NAMES if evaluation.shifts == "all" else evaluation.shifts
    _check_known("evaluation.modality", [modality], tuple(_load_tables()))
    _check_known("evaluation.shifts", names, SHIFT_NAMES)
    _check_once("evaluation.shifts", names)
    _check_once("evaluation.severities", evaluation.severities)
    table = _load_tables()[modality]
    return [
        Shift(name, severity, table[name][severity - 1]) for name in names for severity in sorted(evaluation.severities)
    ]


@cache
def _load_tables() -> dict[str, dict[str, tuple[Strength, ...]]]:
    """Modality -> shift -> strengths at severity 1–5."""
    text = resources.files("trainables.shifts").joinpath("severities.json").read_text(encoding="utf-8")
    return {
        modality: {
            name: tuple(tuple(map(float, value)) if isinstance(value, list) else float(value) for value in strengths)
            for name, strengths in table.items()
        }
        for modality, table in json.loads(text)["tables"].items()
    }


def _check_known(key: str, found: Iterable[str], known: tuple[str, ...]) -> None:
    for name in found:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"{key}: found {name!r}, expected one of {', '.join(known)}{hint}")


def _check_once(key: str, found: tuple[str, ...] | tuple[int, ...]) -> None:
    repeated = sorted({str(value) for value in found if found.count(value) > 1})
    if repeated:
        raise ConfigError(f"{key}: {', '.join(repeated)} is listed more than once; name every value once")
