"""Augmentation of a trial: RandomResizedCrop → flips → policy on uint8 images, erasing after normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.augmix import AugMixPolicy
from trainables.augmentation.policy import Images, NoPolicy, Policy
from trainables.augmentation.standard import RANDAUGMENT, TRIVIALAUGMENT, StandardPolicy
from trainables.augmentation.strong import SPACES, StrongPolicy
from trainables.augmentation_config import AugmentationConfig
from trainables.ops import geometry
from trainables.seeding import uniform


class Augmenter:
    """Crop, flips and policy of one trial, built by ``build_augmentation``.

    Args:
        policy: policy applied after crop and flips.
        image_size: side in px of cropped images.
        crop_scale_min: smallest area share of the random crop; None if images are not cropped.
        horizontal_flip: whether to mirror left–right with probability ½.
        vertical_flip: whether to mirror up–down with probability ½.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        image_size: int,
        crop_scale_min: float | None,
        horizontal_flip: bool,
        vertical_flip: bool,
    ) -> None:
        self.policy, self.image_size, self.crop_scale_min = policy, image_size, crop_scale_min
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c H W"]:
        """Return the augmented images on their device; the same (image, seed) gives the same result in any batch.

        Args:
            images: images of 1 or 3 channels.
            seeds: ``mix(hash_ids(ids), derive_seed(seed, replicate, "augmentation"), epoch)``.
        """
        return self.policy(self.place(images, seeds, resize=geometry.resize_crop), seeds)

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 H W"]:
        """Return segmentation masks cropped, flipped and moved like the images of the same seeds, by nearest pixel.

        Args:
            masks: labels 0–255; pixels from outside the mask become 0.
            seeds: seeds of the images.

        Raises:
            ConfigError: the policy is AugMix.
        """
        return self.policy.move(self.place(masks, seeds, resize=geometry.resize_crop_nearest), seeds)

    def place(
        self, images: Images, seeds: Int64[Tensor, " n"], *, resize: Callable[..., Images]
    ) -> UInt8[Tensor, "n c H W"]:
        """Return images or masks cropped and flipped, without the policy.

        Args:
            images: images or masks.
            seeds: seeds of the images.
            resize: function that cuts boxes out, see ``geometry.resize_crop``.
        """
        mirrored = torch.stack(
            [
                (uniform(seeds, stream=stream) < 0.5) & wanted
                for wanted, stream in ((self.vertical_flip, "up-down"), (self.horizontal_flip, "left-right"))
            ],
            dim=1,
        )
        if self.crop_scale_min is not None:
            boxes = draw_crops(seeds, scale_min=self.crop_scale_min, height=images.shape[2], width=images.shape[3])
            return resize(images, boxes, mirrored, size=self.image_size)
        for wanted, dim in ((self.vertical_flip, -2), (self.horizontal_flip, -1)):
            if wanted:
                images = geometry.flip(images, mirrored[:, dim], dim=dim)
        return images


def build_augmentation(config: AugmentationConfig, image_size: int) -> Augmenter:
    """Return the augmentation that ``config`` describes, except for ``random_erasing``, which follows normalisation."""
    return Augmenter(
        _build_policy(config),
        image_size=image_size,
        crop_scale_min=config.crop_scale_min,
        horizontal_flip=config.horizontal_flip,
        vertical_flip=config.vertical_flip,
    )


def changes_images(config: AugmentationConfig) -> bool:
    """Return whether an image can differ from one epoch to the next, erasing included."""
    places = config.crop_scale_min is not None or config.horizontal_flip or config.vertical_flip
    return places or config.erasing > 0.0 or not isinstance(_build_policy(config), NoPolicy)


def _build_policy(config: AugmentationConfig) -> Policy:
    if config.kind == "none" or config.strength == 0.0:
        return NoPolicy()
    if config.kind == "randaugment":
        return StandardPolicy(RANDAUGMENT, num_ops=config.num_ops, bin=config.magnitude, strength=config.strength)
    if config.kind == "trivialaugment":
        return StandardPolicy(TRIVIALAUGMENT, num_ops=1, bin=None, strength=config.strength)
    if config.kind == "augmix":
        return AugMixPolicy(
            severity=config.severity, width=config.width, max_depth=config.max_depth, strength=config.strength
        )
    return StrongPolicy(SPACES[config.policy], config.strength)


def draw_crops(seeds: Int64[Tensor, " n"], *, scale_min: float, height: int, width: int) -> Int64[Tensor, "n 4"]:
    """Return random boxes (top, left, height, width, px): area share in [scale_min, 1], sides 3:4 to 4:3.

    Source: RandomResizedCrop of torchvision. Differs: a box that does not fit is shortened instead of drawn again.
    """
    u = uniform(seeds, 4, stream="crop")
    area = height * width * (scale_min + (1.0 - scale_min) * u[:, 0])
    ratio = torch.exp((2.0 * u[:, 1] - 1.0) * math.log(4.0 / 3.0))
    box_height = torch.sqrt(area / ratio).round().clamp(1, height)
    box_width = torch.sqrt(area * ratio).round().clamp(1, width)
    top = torch.floor(u[:, 2] * (height - box_height + 1))
    left = torch.floor(u[:, 3] * (width - box_width + 1))
    return torch.stack([top, left, box_height, box_width], dim=1).long()


def random_erasing(
    images: Float[Tensor, "n c h w"], seeds: Int64[Tensor, " n"], probability: float
) -> Float[Tensor, "n c h w"]:
    """Return normalised images in which, with ``probability``, one rectangle (2–33 % of the area) is 0.

    Source: Zhong et al. 2020 with torchvision's defaults (sides .3 to 3.3). Differs: a rectangle that does not fit is
    shortened instead of drawn again.
    """
    if probability == 0.0:
        return images
    height, width = images.shape[-2:]
    u = uniform(seeds, 5, stream="erasing")
    area = height * width * (0.02 + 0.31 * u[:, 1])
    ratio = torch.exp(math.log(0.3) + u[:, 2] * math.log(3.3 / 0.3))
    box_height = torch.sqrt(area * ratio).round().clamp(1, height)
    box_width = torch.sqrt(area / ratio).round().clamp(1, width)
    top = torch.floor(u[:, 3] * (height - box_height + 1))[:, None]
    left = torch.floor(u[:, 4] * (width - box_width + 1))[:, None]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (y >= top) & (y < top + box_height[:, None])
    in_columns = (x >= left) & (x < left + box_width[:, None])
    chosen = (u[:, 0] < probability)[:, None, None]
    return torch.where((chosen & in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0, images)
