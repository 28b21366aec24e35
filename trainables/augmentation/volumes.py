"""Augmentation of volumes: that of images, slice by slice, with one draw for all slices of a volume."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.pipeline import build_augmentation, random_erasing
from trainables.augmentation.policy import NoPolicy
from trainables.augmentation.sequences import Sequences, apply_sequences
from trainables.augmentation.standard import StandardPolicy
from trainables.augmentation.strong import StrongPolicy
from trainables.augmentation_config import AugmentationConfig
from trainables.errors import ConfigError
from trainables.ops import geometry
from trainables.ops.geometry import join_slices, split_slices
from trainables.seeding import mix, uniform


class VolumeAugmenter:
    """Crop, flips and policy of volumes.

    All slices of a volume have the same crop, flips, operations and magnitudes; noise is drawn for each of them.
    Contrast, autocontrast and equalize go by the intensities of each slice.

    Args:
        config: the augmentation.
        size: side in px of cropped slices.

    Raises:
        ConfigError: the policy mixes images (AugMix).
    """

    def __init__(self, config: AugmentationConfig, size: int) -> None:
        self._augmenter, self._flips_slices = build_augmentation(config, size), config.slice_flip
        if not isinstance(self._augmenter.policy, NoPolicy | StandardPolicy | StrongPolicy):
            raise ConfigError(f"augmentation: found {config.kind} with volumes; expected another policy, or none")

    def __call__(self, volumes: UInt8[Tensor, "n c d h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c d H W"]:
        """Return the augmented volumes; the same (volume, seed) gives the same result in any batch."""
        depth, policy = volumes.shape[2], self._augmenter.policy
        slices = self._place(volumes, seeds, geometry.resize_crop)
        if isinstance(policy, StandardPolicy | StrongPolicy):
            drawn = policy.draw(seeds)
            number = torch.arange(depth, device=seeds.device).repeat(len(seeds))
            of_slices = Sequences(
                drawn.choices.repeat_interleave(depth, 0),
                drawn.magnitudes.repeat_interleave(depth, 0),
                mix(seeds.repeat_interleave(depth) + number, "slice"),
            )
            slices = apply_sequences(slices, of_slices, policy.operations)
        return join_slices(slices, depth)

    def move(self, masks: UInt8[Tensor, "n 1 d h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 d H W"]:
        """Return masks cropped, flipped and moved like the volumes of the same seeds, by nearest pixel; 0 outside."""
        depth = masks.shape[2]
        slices = self._place(masks, seeds, geometry.resize_crop_nearest)
        return join_slices(self._augmenter.policy.move(slices, seeds.repeat_interleave(depth)), depth)

    def _place(
        self, volumes: UInt8[Tensor, "n c d h w"], seeds: Int64[Tensor, " n"], resize: Callable[..., Tensor]
    ) -> UInt8[Tensor, "slices c H W"]:
        if self._flips_slices:
            is_flipped = uniform(seeds, stream="front-back") < 0.5
            volumes = torch.where(is_flipped[:, None, None, None, None], volumes.flip(2), volumes)
        return self._augmenter.place(split_slices(volumes), seeds.repeat_interleave(volumes.shape[2]), resize=resize)


def erase_boxes(
    volumes: Float[Tensor, "n c d h w"], seeds: Int64[Tensor, " n"], probability: float
) -> Float[Tensor, "n c d h w"]:
    """Return normalised volumes in which, with ``probability``, the same rectangle of all slices is 0."""
    depth = volumes.shape[2]
    return join_slices(random_erasing(split_slices(volumes), seeds.repeat_interleave(depth), probability), depth)
