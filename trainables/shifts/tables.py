"""Contents of severities.json: strengths by modality, shift and severity; groups of shifts; aliases."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

#: One number or several, as a table gives them per severity.
Strength = float | tuple[float, ...]
#: The modality that has every shift; shifts that another modality lacks are taken from it.
GENERAL = "general"

#: Names that stand for several shifts.
GROUPS = ("all", "imagenet-c", "medmnist-c", "stain-grid")
#: Name of a cell of the stain grid, with the factors of haematoxylin and eosin.
STAIN_NAME = re.compile(r"stain_h(\d+(?:\.\d+)?)_e(\d+(?:\.\d+)?)")
#: Type of all cells of a stain grid.
STAIN_GRID = "stain grid"
#: Default family → types of shift; every shift of the bank is in exactly one.
FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("gaussian_blur", "defocus_blur", "motion_blur", "glass_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "spatter"),
    "digital": ("jpeg", "pixelate"),
    "colour": (
        "brightness_up", "brightness_down", "brightness", "contrast_up", "contrast_down", "contrast", "gamma_up",
        "gamma_down", "saturation", "saturate",
    ),
    "geometry": ("elastic_transform",),
    "overlay": ("stain_deposit", "bubble", "black_corner", "characters"),
    "stain": (STAIN_GRID,),
}  # fmt: skip
#: Family of the shifts that no family lists: compositions, and shifts of a study's own.
OTHER = "other"
#: Group of the entry points by which packages bring shifts (``registry``).
ENTRY_POINTS = "robustsweep.shifts"
#: Names of the shifts that this process has registered itself.
registered_names: set[str] = set()


def find_type(name: str) -> str:
    """Return the type of a shift: its name, or ``STAIN_GRID`` for a cell of a stain grid."""
    return STAIN_GRID if STAIN_NAME.fullmatch(name) else name


@cache
def load_tables() -> dict[str, dict[str, tuple[Strength, ...]]]:
    """Return modality → shift → strengths at severity 1–5. Every modality has every shift."""
    tables = {
        modality: {name: tuple(map(_to_strength, strengths)) for name, strengths in table.items()}
        for modality, table in _read()["tables"].items()
    }
    return {modality: tables[GENERAL] | table for modality, table in tables.items()}


@cache
def load_groups(modality: str) -> dict[str, tuple[str, ...]]:
    """Return group → names of shifts: ``imagenet-c``, and ``medmnist-c`` if MedMNIST-C has the modality."""
    groups = _read()["groups"]
    found = {"imagenet-c": tuple(groups["imagenet-c"])}
    if modality in groups["medmnist-c"]:
        found["medmnist-c"] = tuple(groups["medmnist-c"][modality])
    return found


@cache
def load_aliases() -> dict[str, str]:
    """Return published name → name in this bank, for shifts that have another name here."""
    return dict(_read()["aliases"])


@cache
def _read() -> dict[str, Any]:
    text = resources.files("trainables.shifts").joinpath("severities.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _to_strength(value: Any) -> Strength:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)
