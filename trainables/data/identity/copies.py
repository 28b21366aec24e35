"""Exact copies of images, by their decoded pixels: a PNG and a BMP of one image are copies of each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.data.decoding.threads import map_threads
from trainables.data.splits import SPLITS
from trainables.data.table import Table, describe_row, list_first

#: Pairs that a message names.
MAX_PAIRS = 10
_DIGEST_BYTES = 16
#: Images hashed by one thread at a time.
_CHUNK = 1024


def digest_images(images: UInt8[np.ndarray, "n ..."]) -> list[bytes]:
    """Return a digest of the pixels of every image: equal for equal pixels, and for no others in practice."""

    def digest(start: int) -> list[bytes]:
        part = np.ascontiguousarray(images[start : start + _CHUNK]).reshape(len(images[start : start + _CHUNK]), -1)
        return [hashlib.blake2b(row.data, digest_size=_DIGEST_BYTES).digest() for row in part]

    return [each for part in map_threads(digest, range(0, len(images), _CHUNK)) for each in part]


@dataclass(frozen=True)
class Copies:
    """Images with the same pixels."""

    #: (row, row of its copy in a set that is kept): training and validation images with a copy in a later set.
    across: tuple[tuple[int, int], ...]
    #: Pairs of rows with the same pixels and different labels.
    contradicting: tuple[tuple[int, int], ...]
    #: Set → number of images that repeat another image of it; "external/a and test" → number of images of the first
    #: with a copy in the second. Those in ``across`` are left out.
    repeats: dict[str, int]


def find_copies(digests: Mapping[int, bytes], sets: np.ndarray, labels: Int64[np.ndarray, " n"]) -> Copies:
    """Return the copies among the images of all sets.

    Args:
        digests: row → digest of its pixels (``digest_images``).
        sets: set of every row.
        labels: class of every row.
    """
    rows_of: dict[bytes, list[int]] = {}
    for row in sorted(digests):
        rows_of.setdefault(digests[row], []).append(row)
    across: list[tuple[int, int]] = []
    contradicting: list[tuple[int, int]] = []
    repeats: Counter[str] = Counter()
    for same in rows_of.values():
        if len(same) == 1:
            continue
        # The set to be kept comes first: external, test, val, train.
        rows = sorted(same, key=lambda row: (_rank(str(sets[row])), row))
        contradicting += [(rows[0], row) for row in rows[1:] if labels[row] != labels[rows[0]]]
        leaked = [row for row in rows[1:] if sets[row] != sets[rows[0]] and sets[row] in ("train", "val")]
        across += [(row, rows[0]) for row in leaked]
        seen: list[str] = []
        for name in (str(sets[row]) for row in rows if row not in leaked):
            if name in seen:
                repeats[name] += 1
            elif seen:
                repeats[" and ".join(sorted((name, seen[0])))] += 1
            seen.append(name)
    return Copies(tuple(across), tuple(contradicting), dict(repeats))


def _rank(name: str) -> int:
    return len(SPLITS) - 1 - SPLITS.index(name) if name in SPLITS else -1


def describe_problems(
    copies: Copies,
    table: Table,
    sets: np.ndarray,
    labels: Int64[np.ndarray, " n"],
    classes: Sequence[str],
    on_leak: str,
) -> str | None:
    """Return the message about copies that stop a study, None if there are none.

    Copies with different labels always do, copies in two sets unless ``on_leak`` is "quarantine".

    Args:
        copies: the copies found.
        table: names of the images.
        sets: set of every row.
        labels: class of every row.
        classes: names of the classes.
        on_leak: ``data.on_leak``.
    """
    messages = []
    pairs = copies.contradicting
    if pairs:
        lines = [
            f"{_name(table, one)}: {classes[labels[one]]!r}, {_name(table, other)}: {classes[labels[other]]!r}"
            for one, other in pairs[:MAX_PAIRS]
        ]
        messages.append(
            f"{len(pairs)} image(s) have the same pixels as another image and a different label; expected one label "
            f"per image: correct or remove one of each pair:\n  {list_first(lines, total=len(pairs))}"
        )
    if copies.across and on_leak == "error":
        lines = [
            f"{_name(table, row)} in {sets[row]} is a copy of {_name(table, kept)} in {sets[kept]}"
            for row, kept in copies.across[:MAX_PAIRS]
        ]
        counted = Counter(f"{sets[row]} and {sets[kept]}" for row, kept in copies.across)
        counts = ", ".join(f"{number} between {pair}" for pair, number in sorted(counted.items()))
        messages.append(
            f"{len(copies.across)} image(s) have a copy with the same pixels in another set ({counts}): the test would "
            "not be on unseen images. Remove one of each pair, or set data.on_leak: quarantine to set the training "
            f"copies aside (the report counts them):\n  {list_first(lines, total=len(copies.across))}"
        )
    return "\n".join(messages) or None


def _name(table: Table, row: int) -> str:
    return describe_row(table.file_names[row], table.rows[row])
