"""Texts that a person reads as the same and a program as two: spellings of one patient, site or label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal

from trainables.data.table import list_first
from trainables.errors import DataError

#: Longer digits are compared as text.
_MAX_DIGITS = 100
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
#: Zeros before a digit, but not those of a fraction: 0.05 mm is not 0.5 mm.
_LEADING_ZEROS = re.compile(r"(?<!\d)(?<!\d[.,])0+(?=\d)")
_SEPARATORS = re.compile(r"\s*[|;,/&+]\s*")


def normalise(text: str) -> str:
    """Return text in Unicode's composed form (NFC), without blanks around it: macOS writes "ü" as two characters."""
    return unicodedata.normalize("NFC", text).strip()


def make_key(text: str) -> str:
    """Return a key that is equal for texts that differ in case, leading zeros or the way a number is written."""
    plain = unicodedata.normalize("NFKC", text).strip().casefold()
    if len(plain) <= _MAX_DIGITS and _NUMBER.fullmatch(plain):
        return f"{Decimal(plain).normalize(Context(prec=_MAX_DIGITS)):f}"
    return _LEADING_ZEROS.sub("", " ".join(plain.split()))


def find_similar(values: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the sets of values that have one key (``make_key``), each sorted, in the order of the first value."""
    spellings: dict[str, set[str]] = {}
    for value in dict.fromkeys(values):
        spellings.setdefault(make_key(value), set()).add(value)
    return [tuple(sorted(found)) for found in spellings.values() if len(found) > 1]


def check_similar(values: Iterable[str], *, what: str, advice: str) -> None:
    """Check that no two values differ in case, leading zeros or the way a number is written only.

    Raises:
        DataError: some do; the message gives the first such values and their number.
    """
    similar = find_similar(values)
    if similar:
        lines = [" and ".join(map(repr, spellings)) for spellings in similar]
        raise DataError(
            f"{len(similar)} {what}(s) are spelt in several ways that differ only in case, leading zeros or the way a "
            f"number is written; expected one spelling each: correct them, or {advice}:\n  {list_first(lines)}"
        )


def check_single(labels: Sequence[str]) -> None:
    """Check that no label is a list of other labels, as in data sets with several labels per image.

    Raises:
        DataError: such as ``A|B`` beside ``A``.
    """
    known = set(labels)
    several = sorted(
        label for label in known if len(_split(label)) > 1 and any(part in known for part in _split(label))
    )
    if several:
        raise DataError(
            f"{len(several)} label(s) look like several labels of one image, such as {several[0]!r} beside "
            f"{next(part for part in _split(several[0]) if part in known)!r}; several labels per image are not "
            "supported: choose one per image, or name every label in data.classes or data.label_map if it is a class:"
            f"\n  {list_first([repr(label) for label in several])}"
        )


def _split(label: str) -> list[str]:
    return [part for part in _SEPARATORS.split(label) if part]
