"""Numbers, plurals and nested settings as text, for the report, the model card and the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from trainables.shifts.tables import find_type


def plural(count: int, noun: str) -> str:
    """Return the count with its noun, e.g. "1 arm" or "2 arms"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def sentence(text: str) -> str:
    """Return ``text`` with its first letter in upper case and the others unchanged (AUROC stays AUROC)."""
    return text[:1].upper() + text[1:]


#: Keeps "82.3 ± 1.1 %" on one line.
NO_BREAK = "\u00a0"


def percent(mean: float | None, sd: float | None = None) -> str:
    """Return shares in [0, 1] as "82.3 ± 1.1 %", as "82.3 %" without sd, or as "undefined" without mean."""
    if mean is None or pd.isna(mean):
        return "undefined"
    text = f"{100 * mean:.1f} %" if sd is None or pd.isna(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f} %"
    return text.replace(" ", NO_BREAK)


def mark_used(shift: str, used: Collection[str]) -> str:
    """Return the name of a shift, with † behind it if its type was used for selection.

    Args:
        shift: name of the shift.
        used: types that were used for selection.
    """
    return f"{shift} †" if find_type(shift) in used else shift


def explain_used(used: Collection[str]) -> str:
    """Return the sentence that explains the mark of ``mark_used``, with a space before it; nothing if none was used."""
    if not used:
        return ""
    return " † Used for selection: it, or a shift of its kind, was applied to validation images to choose by."


#: Behind a number: the arm's own training policy contains the shift.
SEEN_MARK = "•"


def explain_seen(seen: Mapping[str, Collection[str]]) -> str:
    """Return the sentence that explains ``SEEN_MARK``, with a space before it; nothing if no arm has seen a shift.

    Args:
        seen: name of an arm → shifts that its training policy contains.
    """
    if not any(seen.values()):
        return ""
    return (
        f" {SEEN_MARK} Seen: the arm’s own training policy contains a change of this kind; without the mark the shift "
        "is unseen by the policy."
    )


def word_seen(seen: Mapping[str, Collection[str]], arms: Collection[str], shift: str) -> str:
    """Return in words whether the policies of some arms contain a shift; empty if that is not known of one of them.

    Args:
        seen: name of an arm → shifts that its training policy contains.
        arms: names of arms, at least one.
        shift: name of the shift.
    """
    if any(arm not in seen for arm in arms):
        return ""
    number = sum(shift in seen[arm] for arm in arms)
    if 0 < number < len(arms):
        return f"seen by the policies of {number} of {len(arms)} arms"
    return "seen by the policy" if number else "unseen by the policy"


def word_strength(strength: Any) -> str:
    """Return the strength of a shift, a number or several, in words."""
    if isinstance(strength, tuple | list):
        return ", ".join(map(word_strength, strength))
    return f"{strength:.3g}" if isinstance(strength, int | float) else str(strength)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
