"""Stain normalisation of H&E tiles, batched (Macenko et al. 2009, Reinhard et al. 2001), and eigenvectors for it.

Every tile is measured by itself and brought to one target. Tiles that cannot be measured (blank, one colour) are
returned bit for bit. As in ``ops.pixels``, a result never depends on the batch around it: sums over pixels are exact
integers, everything else is computed per element in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.ops.pixels import to_uint8

#: Jacobi's method converges quadratically: from the sixth sweep on 3 × 3 matrices do not change any more.
_SWEEPS = 6


def eigen_3x3(matrices: Float64[Tensor, "n 3 3"]) -> tuple[Float64[Tensor, "n 3"], Float64[Tensor, "n 3 3"]]:
    """Return eigenvalues, largest first, and eigenvectors as columns in that order; the sign of a vector is arbitrary.

    Jacobi rotations, elementwise: ``torch.linalg.eigh`` may take another algorithm for another number of matrices, and
    waits for the device. Source: Golub & Van Loan 2013, algorithm 8.5.1.
    """
    a, v = matrices.clone(), torch.eye(3, dtype=matrices.dtype, device=matrices.device).expand_as(matrices).clone()
    for _ in range(_SWEEPS):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            cosine, sine = _choose_rotation(a[:, p, p], a[:, q, q], a[:, p, q])
            a = _rotate(_rotate(a, p, q, cosine, sine).transpose(1, 2), p, q, cosine, sine)
            v = _rotate(v, p, q, cosine, sine)
    values, order = a.diagonal(dim1=1, dim2=2).sort(1, descending=True)
    return values, v.gather(2, order[:, None, :].expand_as(v))


def _choose_rotation(app: Tensor, aqq: Tensor, apq: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the smaller angle that brings the element at (p, q) to 0."""
    is_zero = apq == 0
    tau = (aqq - app) / (2.0 * torch.where(is_zero, 1.0, apq))
    tangent = torch.where(tau >= 0, 1.0, -1.0) / (tau.abs() + (1.0 + tau * tau).sqrt())
    tangent = torch.where(is_zero, 0.0, tangent)
    cosine = 1.0 / (1.0 + tangent * tangent).sqrt()
    return cosine, tangent * cosine


def _rotate(matrices: Tensor, p: int, q: int, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return the matrices with their columns p and q rotated."""
    columns = list(matrices.unbind(2))
    one, other = columns[p], columns[q]
    columns[p] = cosine[:, None] * one - sine[:, None] * other
    columns[q] = sine[:, None] * one + cosine[:, None] * other
    return torch.stack(columns, dim=2)


Images = UInt8[Tensor, "n 3 h w"]
#: Transmitted light, and the optical density below which a pixel is background (Macenko et al. 2009; the usual values).
LIGHT, BACKGROUND = 240.0, 0.15
#: Percentiles (%) of the stain angle and of the concentrations that stand for their extremes (Macenko et al. 2009).
ANGLE_PERCENTILE, CONCENTRATION_PERCENTILE = 1.0, 99.0
#: Smallest share of tissue from which a staining can be measured (assumption).
MIN_TISSUE = 0.02
#: Smallest angle (radians) between two stains: a tile of one colour has none (assumption).
MIN_ANGLE = 0.05
#: Most training tiles that a target is fitted to, evenly spaced (assumption: a median of so many is stable).
MAX_FITTED = 256
_FITTED_AT_ONCE = 32
#: Fixed point of exact sums: 2¹⁶ steps per unit of optical density.
_STEPS = 2.0**16
#: Haematoxylin and eosin, RGB each, and their largest concentrations, of the public MATLAB and torchstain code.
MACENKO_REFERENCE = (0.5626, 0.7201, 0.4062, 0.2159, 0.8012, 0.5581, 1.9705, 1.0308)
#: Mean and standard deviation in lαβ of the TCGA-A2-A3XS-DX1 region in Amgad et al. 2019 (HistomicsTK's reference).
REINHARD_REFERENCE = (8.74108109, -0.12440419, 0.0444982, 0.6135447, 0.10989545, 0.0286032)


class Method(Protocol):
    """Method that measures the staining of tiles and replaces it."""

    #: Staining of the published target.
    reference: tuple[float, ...]

    def measure(self, images: Images) -> tuple[Float[Tensor, "n k"], Bool[Tensor, " n"]]:
        """Return the staining of each tile, and whether it could be measured."""

    def replace_stain(self, images: Images, found: Float[Tensor, "n k"], target: Float[Tensor, " k"]) -> Images:
        """Return the tiles with the target's staining instead of the one found."""


class StainNormaliser(nn.Module):
    """Module that gives all tiles one staining; its target is a buffer, stored with the model's weights.

    Args:
        method: ``macenko`` or ``reinhard``.
    """

    target: Tensor

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = METHODS[method]
        self.register_buffer("target", torch.tensor(self._method.reference, dtype=torch.float64))

    def fit(self, batches: Sequence[Tensor]) -> None:
        """Set each number of the target to its median over the tiles of all batches (uint8 n × 3 × h × w).

        Raises:
            ConfigError: the staining cannot be measured on any tile.
        """
        measured = [found[usable] for found, usable in map(self._method.measure, batches)]
        stains = torch.cat(measured) if measured else torch.empty(0, len(self.target))
        if len(stains) == 0:
            raise ConfigError(
                f"regulariser.target: looked for stained tissue in {sum(map(len, batches))} training images and found "
                "none; expected H&E tiles: set target to reference, or choose another regulariser"
            )
        self.target.copy_(stains.median(0).values)

    def forward(self, images: Images) -> Images:
        """Return the normalised tiles; tiles that cannot be measured are unchanged."""
        found, usable = self._method.measure(images)
        restained = self._method.replace_stain(images, found, self.target)
        return torch.where(usable[:, None, None, None], restained, images)


def choose_tiles(count: int) -> list[list[int]]:
    """Return the rows of at most ``MAX_FITTED`` of ``count`` tiles, evenly spaced, in batches."""
    rows = [index * count // min(count, MAX_FITTED) for index in range(min(count, MAX_FITTED))]
    return [rows[start : start + _FITTED_AT_ONCE] for start in range(0, len(rows), _FITTED_AT_ONCE)]


def check_stainable(channels: int) -> None:
    """Check that images have colour.

    Raises:
        ConfigError: ``channels`` is not 3.
    """
    if channels != 3:
        raise ConfigError(
            f"regulariser: asked for stain normalisation of images of {channels} channel, expected RGB tiles of H&E; "
            "set data.channels to 3 if the files have colour, or choose another regulariser"
        )


def find_tissue(images: Images) -> tuple[Bool[Tensor, "n h w"], Bool[Tensor, " n"]]:
    """Return which pixels have a density ≥ ``BACKGROUND`` in all channels, and which tiles have enough of them."""
    brightest = LIGHT * math.exp(-BACKGROUND) - 1.0  # density = −ln((x + 1) / light)
    tissue = (images <= brightest).all(1)
    share = tissue.flatten(1).sum(1).double() / tissue[0].numel()
    return tissue, share >= MIN_TISSUE


class Macenko:
    """Two stain vectors from the plane of the optical densities, and the largest concentration of each."""

    reference: tuple[float, ...] = MACENKO_REFERENCE

    def measure(self, images: Images) -> tuple[Float[Tensor, "n 8"], Bool[Tensor, " n"]]:
        """Return haematoxylin (3), eosin (3) and their largest concentrations (2) of each tile, in float64."""
        tissue, usable = find_tissue(images)
        first, second = _find_plane(images, tissue)
        density = _compute_density(images)
        angles = torch.atan2(_project(density, second), _project(density, first)).flatten(1)
        low = _quantile(angles, tissue.flatten(1), ANGLE_PERCENTILE / 100).double()
        high = _quantile(angles, tissue.flatten(1), 1.0 - ANGLE_PERCENTILE / 100).double()
        one, other = (torch.cos(a)[:, None] * first + torch.sin(a)[:, None] * second for a in (low, high))
        # Haematoxylin absorbs more red than eosin does.
        swap = (other[:, 0] > one[:, 0])[:, None]
        stains = torch.cat([torch.where(swap, other, one), torch.where(swap, one, other)], dim=1)
        everywhere = torch.ones_like(tissue).flatten(1)
        largest = [
            _quantile(values.flatten(1), everywhere, CONCENTRATION_PERCENTILE / 100).double()
            for values in _separate(density, stains)
        ]
        usable = usable & (high - low >= MIN_ANGLE) & (largest[0] > 0) & (largest[1] > 0)
        return torch.cat([stains, torch.stack(largest, dim=1)], dim=1), usable

    def replace_stain(self, images: Images, found: Float[Tensor, "n 8"], target: Float[Tensor, "8"]) -> Images:
        """Return light·exp(−Σ stain · concentration · target's largest / the tile's largest)."""
        gains = (target[6:] / found[:, 6:]).float()
        scaled = [
            values * gains[:, index, None, None]
            for index, values in enumerate(_separate(_compute_density(images), found))
        ]
        stains = target[:6].float().view(2, 3, 1, 1)
        return to_uint8(LIGHT * torch.exp(-(scaled[0][:, None] * stains[0] + scaled[1][:, None] * stains[1])))


class Reinhard:
    """Mean and standard deviation of each channel in the decorrelated colour space lαβ, over all pixels."""

    reference: tuple[float, ...] = REINHARD_REFERENCE

    def measure(self, images: Images) -> tuple[Float[Tensor, "n 6"], Bool[Tensor, " n"]]:
        """Return mean (3) and standard deviation (3) in lαβ of each tile, in float64."""
        _, usable = find_tissue(images)
        fixed = (_rgb_to_lab(images) * _STEPS).round().to(torch.int64).flatten(2)
        count = fixed.shape[2]
        mean = fixed.sum(2).double() / count
        variance = fixed.square().sum(2).double() / count - mean.square()
        deviation = variance.clamp(min=0.0).sqrt()
        usable = usable & (deviation > 1.0).all(1)
        return torch.cat([mean, deviation], dim=1) / _STEPS, usable

    def replace_stain(self, images: Images, found: Float[Tensor, "n 6"], target: Float[Tensor, "6"]) -> Images:
        """Return the tiles moved and scaled in lαβ to the target's mean and standard deviation."""
        mean, deviation = (part.float()[:, :, None, None] for part in (found[:, :3], found[:, 3:]))
        wanted, spread = (part.float().view(1, 3, 1, 1) for part in (target[:3], target[3:]))
        return _lab_to_rgb((_rgb_to_lab(images) - mean) * (spread / deviation) + wanted)


METHODS: dict[str, Method] = {"macenko": Macenko(), "reinhard": Reinhard()}


def _density_table(device: torch.device) -> Float[Tensor, "256"]:
    return -torch.log((torch.arange(256, dtype=torch.float64, device=device) + 1.0) / LIGHT)


def _compute_density(images: Images) -> Float[Tensor, "n 3 h w"]:
    """Return −ln((x + 1) / light)."""
    return _density_table(images.device).float()[images.to(torch.int64)]


def _project(density: Float[Tensor, "n 3 h w"], vector: Float[Tensor, "n 3"]) -> Float[Tensor, "n h w"]:
    """Return the scalar product of every pixel with its tile's vector, added in a fixed order."""
    parts = density * vector.float()[:, :, None, None]
    return parts[:, 0] + parts[:, 1] + parts[:, 2]


def _find_plane(images: Images, tissue: Bool[Tensor, "n h w"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Return the two main directions of the tissue's densities in each tile; the first points to more density."""
    fixed = (_density_table(images.device) * _STEPS).round().to(torch.int64)[images.to(torch.int64)]
    fixed = torch.where(tissue[:, None], fixed, 0).flatten(2)
    count = tissue.flatten(1).sum(1).clamp(min=1).double()
    mean = fixed.sum(2).double() / count[:, None]
    products = torch.stack([(fixed * fixed[:, index : index + 1]).sum(2) for index in range(3)], dim=1)
    covariance = products.double() / count[:, None, None] - mean[:, :, None] * mean[:, None, :]
    vectors = eigen_3x3(covariance / _STEPS**2)[1]
    first, second = vectors[:, :, 0], vectors[:, :, 1]
    sign = torch.where((first[:, 0] + first[:, 1] + first[:, 2])[:, None] < 0, -1.0, 1.0)
    return first * sign, second


def _separate(
    density: Float[Tensor, "n 3 h w"], stains: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Return the least-squares concentrations of the two stains in the first six columns."""
    one, other = stains[:, :3], stains[:, 3:6]
    a, b, c = ((u * v).sum(1, keepdim=True) for u, v in ((one, one), (one, other), (other, other)))
    scale = 1.0 / (a * c - b * b).clamp(min=1e-12)
    return _project(density, scale * (c * one - b * other)), _project(density, scale * (a * other - b * one))


def _quantile(values: Float[Tensor, "n m"], chosen: Bool[Tensor, "n m"], share: float) -> Float[Tensor, " n"]:
    """Return the quantile of each row's chosen values, interpolated linearly; arbitrary for a row without any."""
    ordered = torch.where(chosen, values, math.inf).sort(1).values
    place = share * (chosen.sum(1) - 1).clamp(min=0).double()
    below: Int64[Tensor, " n"] = place.floor().to(torch.int64)
    above = place.ceil().to(torch.int64)
    low, high = (ordered.gather(1, index[:, None]).squeeze(1).double() for index in (below, above))
    return (low + (high - low) * (place - below)).float()


_RGB_TO_LMS_MATRIX = torch.tensor(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
).double()
_LMS_TO_LAB_MATRIX = (
    torch.tensor([3.0, 6.0, 2.0]).double().rsqrt()[:, None]
    * torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]]).double()
)
#: Rows of RGB → cone responses → lαβ (Reinhard et al. 2001, equations 3 to 9), and back: ONNX has no matrix inverse.
_RGB_TO_LMS, _LMS_TO_LAB = _RGB_TO_LMS_MATRIX.tolist(), _LMS_TO_LAB_MATRIX.tolist()
_LMS_TO_RGB, _LAB_TO_LMS = torch.linalg.inv(_RGB_TO_LMS_MATRIX).tolist(), torch.linalg.inv(_LMS_TO_LAB_MATRIX).tolist()


def _transform(values: Float[Tensor, "n 3 h w"], rows: list[list[float]]) -> Float[Tensor, "n 3 h w"]:
    """Return every pixel times the matrix, added in a fixed order."""
    return torch.stack([row[0] * values[:, 0] + row[1] * values[:, 1] + row[2] * values[:, 2] for row in rows], dim=1)


def _rgb_to_lab(images: Images) -> Float[Tensor, "n 3 h w"]:
    # Cone responses below one grey level count as one: black has no logarithm.
    return _transform(_transform(images.float(), _RGB_TO_LMS).clamp(min=1.0).log(), _LMS_TO_LAB)


def _lab_to_rgb(values: Float[Tensor, "n 3 h w"]) -> Images:
    cones = _transform(values, _LAB_TO_LMS).exp()
    return to_uint8(_transform(cones, _LMS_TO_RGB))
