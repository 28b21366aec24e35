"""What a policy is, and the kinds of operations that policies draw from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n c h w"]
#: Two per sample; most operations use the first only.
Magnitudes = Float[Tensor, "n 2"]
Seeds = Int64[Tensor, " n"]


@runtime_checkable
class Policy(Protocol):
    """A random photometric or geometric change of every image, decided by its seed alone."""

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the changed images; the same (image, seed) gives the same result in any batch."""
        ...

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Return the masks of these samples moved as their images are; 0 comes in from outside.

        Raises:
            ConfigError: the policy mixes images that moved differently, so that no mask fits the result.
        """
        ...


@dataclass(frozen=True)
class PointOperation:
    """Every value becomes another by itself: applied to a ramp it is its own look-up table."""

    apply: Callable[[Images, Magnitudes], Images]
    #: The one channel of a colour image that changes; none: all.
    channel: int | None = None


@dataclass(frozen=True)
class TableOperation:
    """A look-up table that depends on the image: contrast, autocontrast, equalize."""

    tabulate: Callable[[Images, Magnitudes], UInt8[Tensor, "n c 256"]]


@dataclass(frozen=True)
class PixelOperation:
    """Neighbours, channels or chance have a say."""

    apply: Callable[[Images, Magnitudes, Seeds], Images]


@dataclass(frozen=True)
class WarpOperation:
    """Pixels move: masks follow."""

    #: From magnitudes, height and width to the matrices of ``geometry.warp_affine``.
    build_matrices: Callable[[Magnitudes, int, int], Float[Tensor, "n 2 3"]]
    #: Grey value of what comes in from outside.
    fill: int = 0


Operation = PointOperation | TableOperation | PixelOperation | WarpOperation


class NoPolicy:
    """The policy "none"."""

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the images as they are."""
        return images

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Return the masks as they are."""
        return masks
