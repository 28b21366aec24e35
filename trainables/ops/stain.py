"""Scaling of haematoxylin and eosin: images are separated into stains and recombined with changed amounts."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from trainables.ops.pixels import is_grey, levels, per_sample, to_uint8

Images = UInt8[Tensor, "n c h w"]

#: Optical density per channel of haematoxylin, eosin and DAB (Ruifrok & Johnston 2001, as scikit-image has them).
HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
#: Smallest share of white that is told apart from black, as in scikit-image.
_DARKEST = 1e-6


def scale_stains(images: Images, haematoxylin: Float[Tensor, " n"], eosin: Float[Tensor, " n"]) -> Images:
    """Return the images with their amounts of haematoxylin and eosin multiplied; 1 and 1 is identity.

    Source: ``rgb2hed`` and ``hed2rgb`` of scikit-image, H and E multiplied in between. Differs: the change of optical
    density is added to the image's own, so that colour outside the three stains (amounts below 0, which
    scikit-image cuts) is kept; where no amount is negative, the result is the same. Grey images are returned unchanged.
    """
    if is_grey(images):
        return images
    table = -torch.log((levels(images.device) / 255.0).clamp(min=_DARKEST)).float()
    density = table.expand(len(images), 3, 256).gather(2, images.flatten(2).to(torch.int64)).reshape(images.shape)
    into_stains = torch.linalg.inv(torch.tensor(HED, dtype=torch.float64)).tolist()
    red, green, blue = density.unbind(1)
    result = density
    for number, factor in enumerate((haematoxylin, eosin)):
        amount = red * into_stains[0][number] + green * into_stains[1][number] + blue * into_stains[2][number]
        change = (per_sample(factor)[:, 0] - 1.0) * amount.clamp(min=0.0)
        result = result + torch.stack([weight * change for weight in HED[number]], dim=1)
    return to_uint8(255.0 * torch.exp(-result))
