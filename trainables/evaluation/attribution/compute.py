"""Attributions of a trained classifier for images of a data set."""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor

from trainables.errors import ConfigError
from trainables.evaluation.attribution.methods import ATTRIBUTION_METHODS, Settings
from trainables.models.networks import Classifier


def compute_attribution(
    model: Classifier,
    images: UInt8[Tensor, "n c h w"],
    targets: Int[Tensor, " n"],
    *,
    method: str,
    references: UInt8[Tensor, "r c h w"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Float32[Tensor, "n h w"]:
    """Return how much the logit of the target class depends on each pixel, summed over channels; higher speaks for it.

    Values are in units of the logit, and not comparable between methods. The map of an image does not depend on the
    others but for rounding. The model computes in float32 and evaluation mode, and is left as it was.

    Args:
        model: trained model; its device is computed on.
        images: images as they are stored.
        targets: class of each image whose logit is explained.
        method: name in ``ATTRIBUTION_METHODS``.
        references: images that expected gradients compare with, some tens of training images.
        batch_size: largest number of images in a pass through the network: it bounds the memory.
        seed: of expected gradients; the others draw nothing.

    Raises:
        ConfigError: if there is no such method, references are missing, or the network has no map for Grad-CAM.
    """
    if method not in ATTRIBUTION_METHODS:
        raise ConfigError(f"attribution: found {method!r}, expected one of {', '.join(ATTRIBUTION_METHODS)}")
    chosen = ATTRIBUTION_METHODS[method]
    if chosen.needs_references and (references is None or not len(references)):
        raise ConfigError(f"attribution: {method} compares with reference images and got none; pass training images")
    if not len(images):
        return torch.zeros(0, *images.shape[2:])
    device, was_training = model.mean.device, model.training
    model.eval()
    try:
        settings = Settings(
            batch_size, seed, None if references is None else model.normalise(references.to(device)).detach()
        )
        normalised = torch.cat([model.normalise(part.to(device)) for part in torch.split(images, batch_size)]).detach()
        with torch.enable_grad():
            found = chosen.function(model, normalised, targets.to(device).long(), settings)
        return found.detach().float().cpu()
    finally:
        model.train(was_training)
