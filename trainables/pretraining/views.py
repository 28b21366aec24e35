"""Random views of images for contrastive pretraining, as batched operations on the images' device.

A view depends on the image and its seed alone, whatever the batch around it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.pipeline import build_augmentation, draw_crops
from trainables.augmentation.policy import Images, Magnitudes, Operation, PixelOperation, PointOperation, TableOperation
from trainables.augmentation.sequences import Sequences, apply_sequences
from trainables.augmentation_config import StrongAugmentation
from trainables.contrastive_config import NoColourViews, StrongViews
from trainables.ops.colour import adjust_brightness, adjust_hue, adjust_saturation, tabulate_contrast, to_grayscale
from trainables.ops.filters import gaussian_blur
from trainables.ops.geometry import resize_crop
from trainables.pretraining_config import ContrastivePretraining
from trainables.seeding import uniform

#: Function from images and one seed per image to one view of each.
MakeView = Callable[[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]], UInt8[Tensor, "n c h w"]]

# MoCo v2's policy: ColorJitter(.4, .4, .4, .1) with probability .8, greyscale .2, blur σ ∈ [.1, 2] px at 224 with .5.
_JITTER, _HUE = 0.4, 0.1
_P_JITTER, _P_GREY, _P_BLUR = 0.8, 0.2, 0.5
_BLUR_SIGMA_AT_224 = (0.1, 2.0)


def _blur(images: Images, magnitudes: Magnitudes) -> Images:
    sigma = magnitudes[:, 0]
    return gaussian_blur(images, sigma, (2.0 * sigma).ceil().clamp(min=1).to(torch.int64))


#: In order of application. Each view has the steps that were drawn for it.
_OPERATIONS: tuple[Operation, ...] = (
    PointOperation(lambda images, magnitudes: adjust_brightness(images, magnitudes[:, 0])),
    TableOperation(lambda images, magnitudes: tabulate_contrast(images, magnitudes[:, 0])),
    PixelOperation(lambda images, magnitudes, seeds: adjust_saturation(images, magnitudes[:, 0])),
    PixelOperation(lambda images, magnitudes, seeds: adjust_hue(images, magnitudes[:, 0])),
    PixelOperation(lambda images, magnitudes, seeds: to_grayscale(images)),
    PixelOperation(lambda images, magnitudes, seeds: _blur(images, magnitudes)),
)
#: Number of the first operation on colour, and of the one after the last.
_COLOUR = slice(2, 5)


def build_views(config: ContrastivePretraining) -> MakeView:
    """Return the function that makes views as ``config`` describes them."""
    views = config.views
    if isinstance(views, StrongViews):
        strong = StrongAugmentation(
            policy=views.policy,
            strength=views.strength,
            crop_scale_min=config.crop_scale_min,
            horizontal_flip=config.horizontal_flip,
        )
        return lambda images, seeds: build_augmentation(strong, images.shape[-1])(images, seeds)
    strength, has_colour = views.jitter_strength, not isinstance(views, NoColourViews)

    def make_view(images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        draws = uniform(seeds, 12, stream="view")
        left_right = (draws[:, 3] < 0.5) & config.horizontal_flip
        mirrored = torch.stack([torch.zeros_like(left_right), left_right], dim=1)
        boxes = draw_crops(seeds, scale_min=config.crop_scale_min, height=images.shape[-2], width=images.shape[-1])
        images = resize_crop(images, boxes, mirrored, size=images.shape[-1])
        choices, magnitudes = _draw_steps(draws, images, strength)
        if not has_colour:
            choices[:, _COLOUR] = -1
        return apply_sequences(images, Sequences(choices, magnitudes, seeds), _OPERATIONS)

    return make_view


def _draw_steps(
    draws: Float[Tensor, "n 12"], images: Images, strength: float
) -> tuple[Int64[Tensor, "n steps"], Float[Tensor, "n steps 2"]]:
    """Return which of the operations each view has, −1 where it has not, and their magnitudes."""
    spread = strength * (2.0 * draws[:, 4:8] - 1.0)
    low, high = _BLUR_SIGMA_AT_224
    sigma = (low + (high - low) * draws[:, 10:11]) * images.shape[-1] / 224
    sizes = torch.cat(
        [(1.0 + _JITTER * spread[:, :3]).clamp(min=0.0), _HUE * spread[:, 3:], torch.zeros_like(sigma), sigma], dim=1
    )
    is_jittered = (draws[:, 8:9] < _P_JITTER).expand(-1, 4)
    chosen = torch.cat([is_jittered, draws[:, 9:10] < _P_GREY, draws[:, 11:12] < _P_BLUR], dim=1)
    numbers = torch.arange(len(_OPERATIONS), device=draws.device).expand_as(chosen)
    choices = torch.where(chosen, numbers, -1)
    if images.shape[1] == 1:
        choices[:, _COLOUR] = -1  # these change nothing in a grey image
    return choices, torch.stack([sizes, torch.zeros_like(sizes)], dim=2)
