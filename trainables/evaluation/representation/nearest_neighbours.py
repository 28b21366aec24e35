"""Accuracy of a weighted vote among the nearest training images: what features are worth before anything is trained."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from trainables.evaluation.representation.alignment_uniformity import normalise_rows

#: Images whose similarities to all references are held at once.
_BLOCK = 1024


def compute_knn_accuracy(
    features: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    *,
    reference: Shaped[Tensor, "m d"] | Shaped[np.ndarray, "m d"],
    reference_labels: Int64[np.ndarray, " m"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the share of images whose class their nearest references vote for, in [0, 1]; higher is better.

    Each of the k references with the highest cosine similarity s votes for its class with weight exp(s / temperature);
    equal votes go to the lower class.

    Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4, temperature .07. Differs: k is 20 rather than 200, as DINO
    (Caron et al. 2021) found to be best, and no more than there are references.

    Args:
        features: of the images to be classified.
        labels: their classes.
        reference: features of the images that vote.
        reference_labels: their classes.
        k: number of votes.
        temperature: of the weights.
    """
    queries, known = normalise_rows(features), normalise_rows(reference)
    classes = torch.from_numpy(reference_labels)
    num_classes = int(max(labels.max(), reference_labels.max())) + 1
    found = torch.empty(len(queries), dtype=torch.int64)
    for start in range(0, len(queries), _BLOCK):
        similarity, nearest = (queries[start : start + _BLOCK] @ known.T).topk(min(k, len(known)), dim=1)
        votes = torch.zeros(len(similarity), num_classes, dtype=torch.float64)
        votes.scatter_add_(1, classes[nearest], ((similarity - 1.0) / temperature).exp())
        found[start : start + _BLOCK] = votes.argmax(1)
    return float((found == torch.from_numpy(labels)).double().mean())
