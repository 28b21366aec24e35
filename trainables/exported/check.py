"""Comparison of two networks that should be the same one: on logits, or on what a trial stored of its predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainables.errors import CheckpointError

#: How far logits may differ, relative to the largest one (at least 1), from those that the trial stored: float32 on a
#: CPU (another batch size or CPU: 1e-6 measured), TF32 and bfloat16 on a GPU (11 and 8 bits: assumed, not measured).
TOLERANCES = {"float32": 1e-4, "TF32": 1e-2, "bfloat16": 5e-2}
LOGITS = "largest difference of a logit"


@dataclass(frozen=True)
class Check:
    """Comparison of two networks on the same images."""

    what: str
    #: What differs, in words.
    quantity: str
    difference: float
    #: The largest difference that would have been accepted.
    tolerance: float
    num_images: int
    #: Images that both networks put into the same class; of segmentations those of which all pixels are.
    num_same_class: int

    def describe(self) -> str:
        """Return the check as a sentence."""
        return (
            f"{self.what}: {self.quantity} {self.difference:.2g} (accepted: {self.tolerance:.2g}) on "
            f"{self.num_images} test images, {self.num_same_class} of them in the same class"
        )

    def require(self) -> Check:
        """Return the check.

        Raises:
            CheckpointError: the difference is larger than what is accepted, or not finite.
        """
        if not self.difference <= self.tolerance:
            raise CheckpointError(
                f"compared {self.what} on {self.num_images} test images: the {self.quantity} is {self.difference:.3g}, "
                f"expected at most {self.tolerance:.3g}; nothing was exported: verify the ledger with `robustsweep "
                "status --verify`, and compare the versions of torch, torchvision and timm with the report's"
            )
        return self


def compare(found: np.ndarray, expected: np.ndarray, *, what: str, tolerance: float) -> Check:
    """Return a check of the largest difference between two networks' logits.

    Args:
        found: logits of one network: images × classes, of a segmentation × height × width.
        expected: logits of the other network, on the same images.
        what: names of the two networks, in words.
        tolerance: accepted difference, relative to the largest logit expected (at least 1).

    Raises:
        CheckpointError: the difference is larger, or not finite.
    """
    accepted = tolerance * max(1.0, float(np.abs(expected).max()))
    has_same_shape = found.shape == expected.shape
    difference = float(np.abs(found - expected).max()) if has_same_shape else float("inf")
    same = count_same(found.argmax(1), expected.argmax(1)) if has_same_shape else 0
    return Check(what, LOGITS, difference, accepted, len(expected), same).require()


def count_same(found: np.ndarray, expected: np.ndarray) -> int:
    """Return the number of images whose classes, one or one per pixel, are all the same."""
    return int((found == expected).reshape(len(expected), -1).all(axis=1).sum())
