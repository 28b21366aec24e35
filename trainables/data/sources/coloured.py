"""Digits whose colour agrees with the label with a probability that can differ between training and test.

After Colored-MNIST (Arjovsky et al. 2019).
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.data.decoding.pixels import build_pixel_spec
from trainables.data.identity.file_digests import FileDigests
from trainables.data.sources.arrays import ArrayPixels, build_array_table, read_digits
from trainables.data.splits import assign_splits
from trainables.data.table import Source, Table, hash_json
from trainables.data_config import ColouredDigitsData

#: Increase it when the random draws change.
COLOURED_VERSION = 1
#: Digits below it are the first class, the others the second.
HALF = 5


def build_coloured_digits_source(config: ColouredDigitsData, digests: FileDigests) -> Source:
    """Return the source of red and green 8×8 digits; metadata are digit, clean_label and nuisance (0 red, 1 green)."""
    settings = config.model_dump(mode="json", include=set(ColouredDigitsData.model_fields) - {"split"})
    return Source(
        hash_json(["coloured digits", COLOURED_VERSION, version("scikit-learn"), settings]), lambda: _read_table(config)
    )


def _read_table(config: ColouredDigitsData) -> Table:
    grey, digits = read_digits()
    generator = np.random.default_rng(config.seed)
    clean = (digits >= HALF).astype(np.int64)
    labels = np.where(generator.random(len(clean)) < config.label_noise, 1 - clean, clean)
    colours = generator.random(len(clean))
    table = build_array_table(
        ArrayPixels([(len(grey), lambda: images)], build_pixel_spec(config)),
        ["5 to 9" if label else "0 to 4" for label in labels],
        [""] * len(grey),
        "coloured digits",
    )
    splits = assign_splits(
        np.array(table.splits, dtype=object),
        labels,
        np.array(table.groups, dtype=object),
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    rho_test = config.rho if config.rho_test is None else config.rho_test
    agrees = colours < np.where(splits == "test", rho_test, config.rho)
    nuisance = np.where(agrees, labels, 1 - labels)
    images = _paint(grey, nuisance, config.tint)
    metadata = {"digit": digits.tolist(), "clean_label": clean.tolist(), "nuisance": nuisance.tolist()}
    return replace(table, splits=list(splits), metadata=metadata)


def _paint(
    grey: UInt8[np.ndarray, "n 8 8"], colour: Int64[np.ndarray, " n"], tint: float
) -> UInt8[np.ndarray, "n 8 8 3"]:
    """Return RGB images: one channel is the grey image (``colour`` 0: red, 1: green), the others are dimmed by tint."""
    images = np.repeat(np.round(grey * (1.0 - tint)).astype(np.uint8)[..., None], 3, axis=3)
    images[np.arange(len(grey)), :, :, colour] = grey
    return images
