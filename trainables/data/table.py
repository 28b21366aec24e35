"""Table of a source's images before decoding, and the interface to their pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

#: Number of offenders that a message names; further ones are only counted.
MAX_NAMED = 20


@runtime_checkable
class Pixels(Protocol):
    """Images of a table: files, arrays or a generator."""

    @property
    def has_masks(self) -> bool:
        """Whether ``decode`` also fills masks: of lesions, or the targets of a segmentation."""

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels *space"],
        masks: UInt8[np.ndarray, "n *space"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Fill ``images[i]`` (and ``masks[i]``) with the table's row ``rows[i]``.

        Returns the content digest of every row, and row → problem for unusable rows. A digest depends on the source's
        bytes alone, not on their location.
        """


@dataclass(frozen=True)
class Table:
    """Images of a source before decoding; every list has one entry per image."""

    pixels: Pixels
    ids: list[str]
    #: Labels as the source has them, before ``label_map``.
    labels: list[str]
    #: train, val, test, external/<name>, or "" where the source has no split.
    splits: list[str]
    groups: list[str]
    sites: list[str]
    #: Name of the image in messages.
    file_names: list[str]
    #: See ``BadImage.row``.
    rows: list[int | None]
    metadata: dict[str, list[Any]] = field(default_factory=dict)
    #: Rows already known to be unusable, with the reason.
    problems: dict[int, str] = field(default_factory=dict)
    #: Row → in words how intensities of more than 8 bits were converted; filled in by decoding.
    conversions: dict[int, str] = field(default_factory=dict)
    #: Order of the classes, if the source or the user gives one; of a segmentation those of its pixels.
    classes: tuple[str, ...] | None = None
    #: Data sets that the images of a segmentation come from, whose names are the labels; () if images have classes.
    components: tuple[str, ...] = ()
    #: Data set -> indices of the classes that its masks tell apart.
    annotated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: Depth, height and width of stored volumes; None: images of the size of the config.
    shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Source:
    """Source of a table that is read only if its content is not in the cache yet."""

    #: Hash that changes with the images and with the data about them; computed without decoding.
    content: str
    read_table: Callable[[], Table]


def describe_row(file_name: str, row: int | None) -> str:
    """Return the name of an image in messages: ``a.png`` or ``a.png (row 7)``."""
    return file_name if row is None else f"{file_name} (row {row})"


def list_first(items: Sequence[str], *, total: int | None = None) -> str:
    """Return the first items, one per line, and how many of ``total`` (default: all items) are not shown."""
    shown = list(items[:MAX_NAMED])
    more = (len(items) if total is None else total) - len(shown)
    return "\n  ".join([*shown, f"… and {more} more"] if more > 0 else shown)


def hash_json(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
