"""Families of shifts, such as noise and blur: those of a study, and the default ones for shifts that it does not list.

A family groups types of shift (``find_type``). Families only group results: no trial depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trainables.shifts.tables import FAMILIES, OTHER, STAIN_GRID, load_aliases


def group_by_family(types: Iterable[str], own: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return family → its types among ``types``, without families that have none of them.

    A type is in the family that lists it in ``own``; otherwise in its default family, or in ``OTHER`` if it has none or
    ``own`` defines that family anew.

    Args:
        types: types of shift.
        own: families of a study → names of shifts, each in one family.
    """
    known = {shift: family for family, shifts in FAMILIES.items() if family not in own for shift in shifts}
    known |= {normalise_member(shift): family for family, shifts in own.items() for shift in shifts}
    found: dict[str, list[str]] = {}
    for kind in types:
        found.setdefault(known.get(kind, OTHER), []).append(kind)
    order = [*own, *FAMILIES, OTHER]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def normalise_member(name: str) -> str:
    """Return the type of shift that a study file's family lists: names of other banks and ``stain-grid`` resolved."""
    return STAIN_GRID if name == "stain-grid" else load_aliases().get(name, name)
