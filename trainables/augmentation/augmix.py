"""AugMix: mixtures of an image with several chains of mild operations on it (Hendrycks et al. 2020, arXiv 1912.02781).

Magnitudes are those of the reference implementation: a level drawn from [.1, severity] of 10 per operation. Left out:
the Jensen–Shannon consistency loss. Differs: integer magnitudes (translation, solarize) are rounded as the operations
here round them, the posterize level is rounded instead of cut, and the chains are summed before rounding to uint8.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.policy import Operation, PointOperation
from trainables.augmentation.sequences import Sequences, apply_sequences
from trainables.augmentation.standard import SWITCHES, Space, build_operations
from trainables.errors import ConfigError
from trainables.ops import colour
from trainables.ops.pixels import per_sample, to_uint8
from trainables.seeding import mix, uniform

#: Largest magnitudes at level 10: a third of the side for translations.
_AUGMIX = Space(0.3, 1.0 / 3.0, 0.0, 30.0, 0.0, 0)
#: Operations of the paper, none of which is also a corruption of ImageNet-C (contrast, colour, brightness, sharpness).
_NAMES = ("autocontrast", "equalize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y")


def _posterize(images: UInt8[Tensor, "n c h w"], share: Float[Tensor, "n 2"]) -> UInt8[Tensor, "n c h w"]:
    # The reference keeps 4 bits at level 0 and none at 10.
    return colour.posterize(images, 8 - torch.round(share[:, 1] * (4.0 + 4.0 * share[:, 0].abs())))


class AugMixPolicy:
    """Policy that mixes ``width`` chains of 1 to ``max_depth`` operations, and their mixture with the image.

    Weights are drawn from Dirichlet(1, …, 1) for the chains and from Beta(1, 1) for the image.

    Args:
        severity: largest level, out of 10.
        width: number of chains.
        max_depth: largest number of operations in a chain.
        strength: factor on the magnitudes and probability that autocontrast and equalize act; 0 is no change.
    """

    def __init__(self, *, severity: int, width: int, max_depth: int, strength: float) -> None:
        self.severity, self.width, self.max_depth, self.strength = severity, width, max_depth, strength
        named = build_operations(_AUGMIX)
        self.operations: list[Operation] = [named[name] for name in _NAMES] + [PointOperation(_posterize)]
        self._is_switch = torch.tensor([name in SWITCHES for name in _NAMES] + [False])

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the augmented images."""
        chain_weights, image_weight = self.draw_weights(seeds)
        mixture = torch.zeros(images.shape, device=images.device)
        for number in range(self.width):  # in fixed order: the same sum in any batch
            chain = apply_sequences(images, self.draw(mix(seeds, "chain", number)), self.operations)
            mixture.add_(chain.float().mul_(per_sample(chain_weights[:, number])))
        keep = per_sample(image_weight)
        return to_uint8(mixture.mul_(1.0 - keep).add_(images.float().mul_(keep)))

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Raise an error: no mask fits a mixture of differently moved images.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "moved masks along with AugMix, which mixes several differently moved copies of an image: no mask fits the "
            "mixture. Take another augmentation.kind for segmentation: strong, randaugment or trivialaugment."
        )

    def draw(self, seeds: Int64[Tensor, " n"]) -> Sequences:
        """Return one chain per seed."""
        u = uniform(seeds, self.max_depth, 4, stream="augmix")
        depth = 1 + torch.floor(self.max_depth * uniform(seeds, stream="depth")).to(torch.int64)
        choices = torch.floor(u[..., 0] * len(self.operations)).to(torch.int64)
        levels = 0.1 + (self.severity - 0.1) * u[..., 1]
        shares = self.strength * levels / 10.0 * torch.where(u[..., 2] < 0.5, 1.0, -1.0)
        off = self._is_switch.to(seeds.device)[choices] & (u[..., 3] >= self.strength)
        beyond = torch.arange(self.max_depth, device=seeds.device) >= depth[:, None]
        magnitudes = torch.stack([shares, torch.full_like(shares, self.strength)], dim=2)
        return Sequences(torch.where(off | beyond, -1, choices), magnitudes, seeds)

    def draw_weights(self, seeds: Int64[Tensor, " n"]) -> tuple[Float[Tensor, "n width"], Float[Tensor, " n"]]:
        """Return the weights of the chains, which sum to 1, and the weight of the image."""
        exponential = -torch.log1p(-uniform(seeds, self.width, stream="dirichlet").double())
        weights = exponential / exponential.sum(1, keepdim=True).clamp(min=2.0**-60)
        return weights.float(), uniform(seeds, stream="beta")
