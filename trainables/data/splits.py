"""Splits by group and checks for leakage between them: pure functions on arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from trainables.data.table import MAX_NAMED, list_first
from trainables.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
EXTERNAL = "external/"
#: Set of the test images of held-out classes.
HELD_OUT = "held_out"
#: Limit for the name of an external set: file systems allow 255, and a suffix follows.
MAX_NAME_BYTES = 200


def assign_splits(
    splits: np.ndarray,
    labels: Int64[np.ndarray, " n"],
    groups: np.ndarray,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """Return ``splits`` with every "" replaced and a missing val or test cut from train.

    Groups are never divided. A group belongs to the stratum of its most frequent label, where groups are sorted by
    their hash with ``seed``; the first ``test_fraction`` of the stratum's images go to test, the next
    ``val_fraction`` to val. So the result depends neither on the order of rows nor on the arm.

    Raises:
        ConfigError: the fractions leave nothing for training.
    """
    test = 0.0 if (splits == "test").any() else test_fraction
    val = 0.0 if (splits == "val").any() else val_fraction
    if test + val >= 1.0:
        raise ConfigError(
            f"tried to cut data.val_fraction={val_fraction} and data.test_fraction={test_fraction} from train; "
            "nothing would be left: their sum has to be below 1"
        )
    assigned = np.where(splits == "", "train", splits).astype(object)
    pool = np.flatnonzero(assigned == "train")
    if len(pool) == 0:
        return assigned
    position = _position_in_stratum(labels[pool], groups[pool], seed)
    assigned[pool] = np.where(position < test, "test", np.where(position < test + val, "val", "train"))
    return assigned


def _position_in_stratum(labels: Int64[np.ndarray, " n"], groups: np.ndarray, seed: int) -> np.ndarray:
    """Return for each image the position of its group among the images of its stratum, in (0, 1)."""
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    stratum = _most_frequent_label(group_of, labels)
    digests = (hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest() for name in names)
    hashes = np.fromiter((int.from_bytes(digest, "big") >> 1 for digest in digests), dtype=np.int64)
    order = np.lexsort((hashes, stratum))
    ordered_sizes, ordered_stratum = sizes[order], stratum[order]
    # The middle of a group decides, so that a class of one group stays in train if val and test take at most one half.
    middle = np.cumsum(ordered_sizes) - ordered_sizes / 2
    _, first, stratum_of = np.unique(ordered_stratum, return_index=True, return_inverse=True)
    before = (np.cumsum(ordered_sizes) - ordered_sizes)[first]
    totals = np.bincount(stratum_of, weights=ordered_sizes)
    position = np.empty(len(names))
    position[order] = (middle - before[stratum_of]) / totals[stratum_of]
    return position[group_of]


def _most_frequent_label(
    group_of: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " groups"]:
    """Return the most frequent label of each group; on a tie the larger one (the graver grade)."""
    num_labels = int(labels.max()) + 1
    codes, counts = np.unique(group_of * num_labels + labels, return_counts=True)
    order = np.lexsort((codes, counts, codes // num_labels))
    is_last = np.append(np.diff(codes[order] // num_labels) != 0, True)
    return codes[order][is_last] % num_labels


def derive_split_seed(seed: int, replicate: int) -> int:
    """Return the seed of a replicate's own split, in [0, 2⁶³): ``seed`` for replicate 0, else a hash of both."""
    if replicate == 0:
        return seed
    digest = hashlib.blake2b(f"split\x1f{seed}\x1f{replicate}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def check_split_names(splits: Sequence[str]) -> None:
    """Check that every name is train, val, test or external/<name>.

    Raises:
        DataError: an external set has the name of a split, or one that is not allowed in metric keys or file names.
    """
    for name in sorted(set(splits) - set(SPLITS)):
        short = name.removeprefix(EXTERNAL)
        if not is_set_name(short):
            raise DataError(
                f"tried to name an external set {short!r}; expected letters, digits, '_', '-', '.' or blanks inside, "
                f"at most {MAX_NAME_BYTES} bytes, and none of {', '.join(SPLITS)}, {HELD_OUT}: rename the site or "
                "folder"
            )


def is_set_name(name: str) -> bool:
    """Return whether a set beside the splits may have this name, which is part of metric keys and file names."""
    plain = name.strip() == name and all(character.isalnum() or character in "_-. " for character in name)
    taken = name in (*SPLITS, HELD_OUT) or name.startswith(".")
    return plain and not taken and 0 < len(name.encode()) <= MAX_NAME_BYTES


def check_disjoint(sets: np.ndarray, values: np.ndarray, *, what: str) -> None:
    """Check that no value of ``values`` (ids, groups) occurs in two sets.

    Raises:
        DataError: a value occurs in two sets; the message gives the first such values, their sets, and the number.
    """
    names, set_of = np.unique(sets.astype(str), return_inverse=True)
    unique, value_of = np.unique(values.astype(str), return_inverse=True)
    pairs = np.unique(np.stack([value_of, set_of]), axis=1)
    straddling = np.flatnonzero(np.bincount(pairs[0]) > 1)
    if len(straddling) == 0:
        return
    lines = [
        f"{str(unique[value])!r} is in {', '.join(names[pairs[1, pairs[0] == value]])}"
        for value in straddling[:MAX_NAMED]
    ]
    raise DataError(
        f"{len(straddling)} {what}(s) straddle the splits, expected each in one only (train, val, test, external): "
        f"the test would not be on unseen cases. Correct the split or the {what} of\n  "
        + list_first(lines, total=len(straddling))
    )


def check_unique(values: Sequence[str], places: Sequence[str], *, what: str) -> None:
    """Check that every value occurs once.

    Raises:
        DataError: a value occurs twice; the message gives the first such values, their places, and the number.
    """
    first: dict[str, str] = {}
    repeated = []
    for value, place in zip(values, places, strict=True):
        if value in first:
            repeated.append(f"{value!r}: {first[value]} and {place}")
        first.setdefault(value, place)
    if repeated:
        raise DataError(
            f"{len(repeated)} image(s) repeat the {what} of another; expected each {what} once:\n  "
            + list_first(repeated)
        )


def check_no_empty_split(sets: np.ndarray, labels: Int64[np.ndarray, " n"], classes: Sequence[str]) -> None:
    """Check that train, val and test hold images, and that train holds every class.

    Raises:
        DataError: a split is empty, or train lacks a class; the message names them and where the class occurs.
    """
    empty = [name for name in SPLITS if not (sets == name).any()]
    if empty:
        raise DataError(
            f"no image is in {', '.join(empty)} ({len(sets)} images in all); expected train, val and test to hold "
            "some: raise data.val_fraction or data.test_fraction, or check the split column or folders"
        )
    missing = np.setdiff1d(np.arange(len(classes)), labels[sets == "train"])
    if len(missing):
        lines = [
            f"{classes[index]!r}: {int((labels == index).sum())} image(s) elsewhere"
            f" ({', '.join(sorted(set(sets[labels == index]))) or 'in no set'})"
            for index in missing
        ]
        raise DataError(
            "train has no image of some classes, so they could never be learnt. Add some, map them with "
            f"data.label_map, or leave their images out:\n  {list_first(lines)}"
        )
