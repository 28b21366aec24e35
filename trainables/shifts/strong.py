"""Operations of the strong policy, for shifts that a study defines: ``{name: …, op: strong_hue, strengths: …}``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from trainables.ops import colour, filters, noise
from trainables.shifts.operation import Images, Operation, Seeds, each, one
from trainables.shifts.tables import Strength


def _first(operation: Callable[[Images, Tensor], Images], identity: float, *, needs_colour: bool = False) -> Operation:
    return Operation(lambda x, s, seeds: operation(x, each(one(s), x)), identity, needs_colour)


def _switch(operation: Callable[[Images], Images], *, needs_colour: bool = False) -> Operation:
    """Return an operation that acts at strength 1 and not at 0."""
    return Operation(lambda x, s, seeds: operation(x) if one(s) else x, 0.0, needs_colour)


def _blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    sigma = one(strength)
    radius = torch.full((len(images),), max(1, round(3.5 * sigma) // 2), device=images.device)
    return filters.gaussian_blur(images, each(sigma, images), radius)


#: Operations by their name in the policy, with a prefix, since "brightness" and others differ from the bank's.
OPERATIONS: dict[str, Operation] = {
    **{
        f"strong_{name}": _first(partial(colour.adjust_channel, channel=index), 1.0, needs_colour=True)
        for index, name in enumerate(("red", "green", "blue"))
    },
    "strong_hue": _first(colour.adjust_hue, 0.0, needs_colour=True),
    "strong_saturation": _first(colour.adjust_saturation, 1.0, needs_colour=True),
    "strong_brightness": _first(colour.adjust_brightness, 1.0),
    "strong_contrast": _first(colour.adjust_contrast, 1.0),
    "strong_gamma": _first(colour.adjust_gamma, 1.0),
    "strong_solarize": _first(colour.solarize, 256.0),
    "strong_posterize": _first(colour.posterize, 8.0),
    "strong_sharpen": _first(filters.sharpen, 0.0),
    "strong_emboss": _first(filters.emboss, 0.0),
    "strong_blur": Operation(_blur, 0.0),
    "strong_noise": Operation(lambda x, s, seeds: noise.mix_uniform_noise(x, each(s, x), seeds), 0.0),
    "strong_jpeg": Operation(lambda x, s, seeds: filters.jpeg(x, each(one(s), x).long()), math.inf),
    "strong_tone": Operation(lambda x, s, seeds: colour.adjust_tone(x, each(s, x, 0), each(s, x, 1)), (1 / 3, 2 / 3)),
    "strong_autocontrast": _switch(colour.autocontrast),
    "strong_equalize": _switch(colour.equalize),
    "strong_grayscale": _switch(colour.to_grayscale, needs_colour=True),
}
