"""Measurement of a pretraining's encoder after some epochs: accuracy of neighbours, spread and rank of its features."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from trainables.data.dataset import ImageSet
from trainables.evaluation.representation.alignment_uniformity import compute_alignment, compute_uniformity
from trainables.evaluation.representation.effective_rank import compute_lidar, compute_rankme
from trainables.evaluation.representation.nearest_neighbours import compute_knn_accuracy
from trainables.models.networks import Classifier
from trainables.pretraining.methods import embed_images
from trainables.pretraining.views import MakeView
from trainables.seeding import derive_seed, hash_ids, mix

#: Largest numbers of images: those that vote, those that are classified, and those of which views are compared.
NUM_REFERENCES, NUM_CLASSIFIED, NUM_VIEWED = 1024, 512, 256
#: Views of each of the latter.
NUM_VIEWS = 4
#: Epochs of a pretraining after which features are measured, at most; after the last one always.
NUM_MEASURED = 10
_BATCH = 256


class Monitor:
    """The same images, chosen once, measured after some of the epochs.

    Labels are read here, for the accuracy alone: no weight depends on it.

    Args:
        reference: training images of the step's first source; they vote.
        validation: validation images of the same source; None: without labels there is no accuracy, and views are those
            of training images.
        make_view: the views of the pretraining.
        seed: seed of the stage.
    """

    def __init__(self, reference: ImageSet, validation: ImageSet | None, make_view: MakeView, *, seed: int) -> None:
        self._reference, self._make_view, self._seed = reference, make_view, seed
        self._is_labelled = validation is not None
        self._validation = reference if validation is None else validation
        self._voters = self._choose(reference, NUM_REFERENCES)
        self._classified = self._choose(self._validation, NUM_CLASSIFIED)

    def _choose(self, images: ImageSet, most: int) -> Int64[np.ndarray, " n"]:
        """Return the rows of a random part of the images that have a class, in their order."""
        rows = np.flatnonzero(images.labels >= 0)
        random = np.random.default_rng(derive_seed(self._seed, "monitor", images.name))
        return np.sort(random.permutation(rows)[:most])

    @torch.no_grad()
    def measure(self, encoder: Classifier) -> dict[str, float]:
        """Return metric (``STAGE_METRICS``) → value, of the encoder in evaluation mode."""
        encoder.eval()
        voters = self._embed(encoder, self._reference.images[self._voters])
        viewed = self._classified[:NUM_VIEWED]
        seeds = mix(torch.from_numpy(hash_ids(self._validation.ids[viewed])), "monitor", self._seed)
        images = self._validation.images[viewed]
        views = torch.stack([self._embed(encoder, images, mix(seeds, side)) for side in range(NUM_VIEWS)], dim=1)
        accuracy = {"ssl/knn_accuracy": self._classify(encoder, voters)} if self._is_labelled else {}
        return {
            **accuracy,
            "ssl/alignment": compute_alignment(views[:, 0], views[:, 1]),
            "ssl/uniformity": compute_uniformity(voters),
            "ssl/rankme": compute_rankme(voters),
            "ssl/lidar": compute_lidar(views),
        }

    def _classify(self, encoder: Classifier, voters: Float32[Tensor, "n f"]) -> float:
        return compute_knn_accuracy(
            self._embed(encoder, self._validation.images[self._classified]),
            self._validation.labels[self._classified],
            reference=voters,
            reference_labels=self._reference.labels[self._voters],
        )

    def _embed(
        self, encoder: Classifier, images: UInt8[np.ndarray, "n c h w"], seeds: Int64[Tensor, " n"] | None = None
    ) -> Float32[Tensor, "n f"]:
        """Return the features of images, of views of them if there are seeds, on the CPU."""
        device = encoder.mean.device
        found = []
        for start in range(0, len(images), _BATCH):
            part = torch.from_numpy(images[start : start + _BATCH]).to(device)
            if seeds is not None:
                part = self._make_view(part, seeds[start : start + _BATCH].to(device))
            found.append(embed_images(part, encoder)[0].cpu())
        return torch.cat(found)


def is_measured(epoch: int, epochs: int) -> bool:
    """Return whether features are measured after ``epoch`` (from 1): the last one, and every so many before it."""
    return (epochs - epoch) % -(-epochs // NUM_MEASURED) == 0
