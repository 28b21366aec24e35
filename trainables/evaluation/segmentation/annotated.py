"""Several data sets that annotate different classes: which classes an image's pixels are told apart among."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainables.data.dataset import Dataset

#: Logit of a class that an image's data set does not annotate: its probability is 0 in float32.
_EXCLUDED = -1e4


def restrict(
    logits: Float[Tensor, "n classes *space"],
    sources: Int64[Tensor, " n"],
    annotated: Bool[Tensor, "sources classes"] | None,
) -> Float[Tensor, "n classes *space"]:
    """Return logits in which the classes that an image's data set does not annotate have a probability of 0.

    One output per data set (and the background that all share) on one encoder and decoder is the same as a head each.
    """
    if annotated is None:
        return logits
    excluded = ~annotated[sources]
    return logits.masked_fill(excluded[(..., *[None] * (logits.ndim - 2))], _EXCLUDED)


def tabulate_annotated(data: Dataset) -> Bool[Tensor, "sources classes"] | None:
    """Return source × class: whether a data set annotates the class; None if all annotate all.

    Sources are in the order of ``Dataset.components``; the background is annotated everywhere.
    """
    table = torch.zeros(len(data.components), data.num_classes, dtype=torch.bool)
    for row, name in enumerate(data.components):
        table[row, [0, *data.annotated.get(name, range(data.num_classes))]] = True
    return None if bool(table.all()) else table
