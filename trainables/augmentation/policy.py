"""Interface of augmentation policies, and the kinds of operations that they draw from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n c h w"]
#: Two numbers per sample; most operations use the first only.
Magnitudes = Float[Tensor, "n 2"]
Seeds = Int64[Tensor, " n"]


@runtime_checkable
class Policy(Protocol):
    """Random photometric or geometric change of every image, determined by its seed alone."""

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the changed images; the same (image, seed) gives the same result in any batch."""
        ...

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Return the masks of the same samples, moved like their images; pixels from outside the mask become 0.

        Raises:
            ConfigError: the policy mixes images that moved differently, so that no mask fits the result.
        """
        ...


@dataclass(frozen=True)
class PointOperation:
    """Operation on every value by itself; applied to a ramp it yields its own look-up table."""

    apply: Callable[[Images, Magnitudes], Images]
    #: The one channel of a colour image that changes; None if all do.
    channel: int | None = None


@dataclass(frozen=True)
class TableOperation:
    """Operation by a look-up table that depends on the image: contrast, autocontrast, equalize."""

    tabulate: Callable[[Images, Magnitudes], UInt8[Tensor, "n c 256"]]


@dataclass(frozen=True)
class PixelOperation:
    """Operation that depends on neighbouring pixels, other channels or random numbers."""

    apply: Callable[[Images, Magnitudes, Seeds], Images]


@dataclass(frozen=True)
class WarpOperation:
    """Operation that moves pixels; it is applied to masks as well."""

    #: Function from magnitudes, height and width to the matrices of ``geometry.warp_affine``.
    build_matrices: Callable[[Magnitudes, int, int], Float[Tensor, "n 2 3"]]
    #: Grey value of pixels from outside the image.
    fill: int = 0


Operation = PointOperation | TableOperation | PixelOperation | WarpOperation


class NoPolicy:
    """Policy "none", which changes nothing."""

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the images unchanged."""
        return images

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Return the masks unchanged."""
        return masks
