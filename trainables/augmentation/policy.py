"""What a policy is, and how operations chosen per image run as batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n c h w"]
Rows = Int64[Tensor, " rows"]


@runtime_checkable
class Policy(Protocol):
    """A random photometric or geometric change of every image, decided by its seed alone."""

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the changed images; the same (image, seed) gives the same result in any batch."""
        ...


def keep(images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
    """Return the images as they are: the policy "none"."""
    return images


def apply_chosen(
    images: UInt8[Tensor, "n c h w"],
    choice: Int64[Tensor, " n"],
    operations: Sequence[Callable[[Images, Rows], Images]],
) -> UInt8[Tensor, "n c h w"]:
    """Return the images, each after the operation it chose.

    Args:
        images: a batch.
        choice: index into ``operations``, or −1 to stay as it is.
        operations: each gets the images that chose it, and their row numbers in the batch.
    """
    result = images.clone()
    order = torch.argsort(choice, stable=True)
    counts = torch.bincount(choice + 1, minlength=len(operations) + 1).tolist()
    for rows, operation in zip(torch.split(order, counts)[1:], operations, strict=True):
        if len(rows):
            result[rows] = operation(images[rows], rows)
    return result
