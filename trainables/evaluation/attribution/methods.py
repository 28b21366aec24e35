"""The methods of attribution, each a function of one batch of normalised images; captum is imported inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainables.evaluation.attribution.convolutional_map import find_last_map
from trainables.models.networks import Classifier

#: Side of the occluding patch as a share of the image's, and its places along an axis at most: steps of half a patch
#: where the image's side is a multiple of 16 (Zeiler & Fergus 2014 move a grey square over the image; their sizes are
#: not stated).
PATCH, PLACES = 8, 15
#: Steps along the path from black to the image: attributions then sum to the change of the logit within some per cent.
NUM_STEPS = 32
#: Draws of a reference and a place on the path to it, for each image.
NUM_DRAWS = 64


@dataclass(frozen=True)
class Settings:
    """Settings of the methods, beside model, images and targets."""

    #: Largest number of images in one pass.
    batch_size: int
    seed: int
    #: Normalised images that expected gradients compare with.
    references: Float[Tensor, "r c h w"] | None


Images: TypeAlias = Float[Tensor, "n c h w"]
Targets: TypeAlias = Int[Tensor, " n"]
Maps: TypeAlias = Float[Tensor, "n h w"]


@dataclass(frozen=True)
class AttributionMethod:
    """A method of attribution."""

    function: Callable[[Classifier, Images, Targets, Settings], Maps]
    title: str
    #: Whether values below zero occur: pixels that speak against the class.
    is_signed: bool
    #: Passes through the network per image at most.
    num_passes: int
    needs_references: bool = False


def _attribute_grad_cam(model: Classifier, images: Images, targets: Targets, settings: Settings) -> Maps:
    """Return the channels of the last map weighted by their mean gradients, negative sums cut off, interpolated.

    Source: Selvaraju et al. 2017, Grad-CAM, equations 1 and 2.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    layer = find_last_map(model, images[:1])
    method, found = LayerGradCam(model, layer), []
    for rows in torch.split(torch.arange(len(images)), settings.batch_size):
        maps = method.attribute(images[rows].requires_grad_(), target=targets[rows], relu_attributions=True)
        found.append(LayerAttribution.interpolate(maps.detach(), tuple(images.shape[2:]), "bilinear")[:, 0])
    return torch.cat(found)


def _attribute_integrated_gradients(model: Classifier, images: Images, targets: Targets, settings: Settings) -> Maps:
    """Return the gradients integrated along the straight path from a black image, times the way.

    The sum over an image is the logit's change. Source: Sundararajan et al. 2017, equation 1, by Gauss–Legendre.
    """
    from captum.attr import IntegratedGradients

    method, found = IntegratedGradients(model), []
    black = -model.mean / model.std
    for rows in torch.split(torch.arange(len(images)), settings.batch_size):
        batch = images[rows].requires_grad_()
        maps = method.attribute(
            batch,
            baselines=black.expand_as(batch),
            target=targets[rows],
            n_steps=NUM_STEPS,
            internal_batch_size=max(settings.batch_size, len(batch)),
        )
        found.append(maps.detach().sum(dim=1))
    return torch.cat(found)


def _attribute_expected_gradients(model: Classifier, images: Images, targets: Targets, settings: Settings) -> Maps:
    """Return the mean over references, and places on the paths from them, of gradient times way.

    Source: Erion et al. 2021, equation 3 (captum's ``GradientShap`` without noise). Every image has the same draws,
    so that its map does not depend on which others are asked for.
    """
    from captum.attr import GradientShap

    assert settings.references is not None
    method, found = GradientShap(model), []
    draws = [len(part) for part in torch.split(torch.arange(NUM_DRAWS), settings.batch_size)]
    for image, target in zip(torch.split(images, 1), torch.split(targets, 1), strict=True):
        total = torch.zeros_like(image)
        with _seeded(settings.seed):
            for number in draws:
                maps = method.attribute(
                    image.clone().requires_grad_(), baselines=settings.references, n_samples=number, target=target
                )
                total += number * maps.detach()
        found.append(total.sum(dim=1) / NUM_DRAWS)
    return torch.cat(found)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that captum draws from, numpy's and torch's, and give them back as they were."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def _attribute_occlusion(model: Classifier, images: Images, targets: Targets, settings: Settings) -> Maps:
    """Return by how much the logit falls if a patch of mean colour covers a pixel, averaged over the patches on it.

    Source: Zeiler & Fergus 2014, section 4.2.
    """
    from captum.attr import Occlusion

    method, found = Occlusion(model), []
    channels, height, width = images.shape[1:]
    patch = (channels, max(2, height // PATCH), max(2, width // PATCH))
    steps = [max(1, -(-(side - size) // (PLACES - 1))) for side, size in zip((height, width), patch[1:], strict=True)]
    for rows in torch.split(torch.arange(len(images)), settings.batch_size):
        with torch.no_grad():
            maps = method.attribute(
                images[rows],
                sliding_window_shapes=patch,
                strides=(channels, *steps),
                baselines=0,
                target=targets[rows],
                perturbations_per_eval=max(1, settings.batch_size // len(rows)),
            )
        found.append(maps[:, 0])  # the same in every channel: all are covered at once
    return torch.cat(found)


#: Name → method, quickest first.
ATTRIBUTION_METHODS: dict[str, AttributionMethod] = {
    "grad_cam": AttributionMethod(_attribute_grad_cam, "Grad-CAM", is_signed=False, num_passes=1),
    "integrated_gradients": AttributionMethod(
        _attribute_integrated_gradients, "integrated gradients", is_signed=True, num_passes=NUM_STEPS
    ),
    "expected_gradients": AttributionMethod(
        _attribute_expected_gradients, "expected gradients", is_signed=True, num_passes=NUM_DRAWS, needs_references=True
    ),
    "occlusion": AttributionMethod(_attribute_occlusion, "occlusion", is_signed=True, num_passes=PLACES**2),
}
