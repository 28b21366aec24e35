"""Spectral signatures of feature maps, from Gram matrices that are summed where the maps are: maps are never kept."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainables.errors import DataError

#: Singular values are at least this share of the largest. Channels that depend on each other have some near 0, where
#: the logarithm would make rounding the largest part of the signature.
FLOOR = 1e-6
#: Numbers of activations that are held in 64 bits at a time: 8 MiB on a CPU, whose caches hold some of them, and 64.
_CPU_BLOCK, _BLOCK = 1 << 20, 1 << 23
#: Channels up to which LAPACK reduces that many columns at a time: there its own 32 took 1.15 times as long.
_SMALL, _SMALL_BLOCK = 256, 12


def spectral_signature(maps: Float[Tensor, "n channels *space"]) -> Float64[Tensor, "n channels"]:
    """Return θ = log(s) / ‖log(s)‖ of every image, s the singular values of its positions × channels, descending.

    From the eigenvalues of the smaller Gram matrix, in 64 bits, on the device of the maps; the values that a map of
    fewer positions than channels lacks are at the floor. θ depends on the size of the input: compare images of one
    size. A map of zeros gives the same number for every channel, one whose singular values are all 1 zeros.

    Args:
        maps: activations of one layer, channels first, with any number of spatial axes.

    Raises:
        DataError: if an activation is not finite.

    Source: Karimi & Gholipour 2022, section 2.3. Differs: the floor.
    """
    flat = maps.detach().flatten(2) if maps.ndim > 2 else maps.detach()[:, :, None]
    values = flat.new_zeros(flat.shape[:2], dtype=torch.float64)
    if flat.numel():
        sides = flat if flat.shape[1] <= flat.shape[2] else flat.mT
        squares = _find_squares_on_cpu(sides) if flat.device.type == "cpu" else _find_squares(sides)
        values[:, : sides.shape[1]] = squares.clamp(min=0.0).sqrt()
    return _take_logarithm(values)


def _find_squares(matrices: Float[Tensor, "n short long"]) -> Float64[Tensor, "n short"]:
    """Return the squared singular values of every matrix, descending."""
    found = matrices.new_empty(matrices.shape[:2], dtype=torch.float64)
    images = max(1, _BLOCK // matrices[0].numel())
    step = max(1, _BLOCK // (images * matrices.shape[1]))
    for start in range(0, len(matrices), images):
        block = matrices[start : start + images]
        gram = block.new_zeros(len(block), block.shape[1], block.shape[1], dtype=torch.float64)
        for first in range(0, block.shape[2], step):
            part = block[:, :, first : first + step].double()
            gram.baddbmm_(part, part.mT)
        _check_finite(bool(gram.diagonal(dim1=1, dim2=2).isfinite().all()))
        found[start : start + images] = torch.linalg.eigvalsh(gram).flip(1)
    return found


def _find_squares_on_cpu(matrices: Float[Tensor, "n short long"]) -> Float64[Tensor, "n short"]:
    """Return what ``_find_squares`` does.

    By BLAS's and LAPACK's own functions: half the products, since a Gram matrix is symmetric, and no copies between the
    steps.
    """
    from scipy.linalg.blas import dsyrk
    from scipy.linalg.lapack import dsterf, dsytrd, dsytrd_lwork

    num_images, short, long = matrices.shape
    step = min(long, max(1, _CPU_BLOCK // short))
    found = np.empty((num_images, short))
    work = short * _SMALL_BLOCK if short <= _SMALL else int(dsytrd_lwork(short, lower=1)[0])
    # Memory for one image, used again by the next: fresh pages for each took a tenth of the time.
    buffer, gram = torch.empty(short * step, dtype=torch.float64), np.empty((short, short), order="F")
    for image, matrix in enumerate(matrices):
        for first in range(0, long, step):
            single = matrix[:, first : first + step]
            part = buffer[: single.numel()].view(single.shape).copy_(single).numpy()
            # A C-ordered matrix is its transpose in the order of BLAS: AᵀA of that is the Gram matrix of the rows.
            gram = dsyrk(1.0, part.T, beta=float(first > 0), c=gram, trans=1, lower=1, overwrite_c=1)
        _check_finite(bool(np.isfinite(gram.diagonal()).all()))
        _, diagonal, beside, _, _ = dsytrd(gram, lower=1, lwork=work, overwrite_a=1)
        values, failed = dsterf(diagonal, beside) if short > 1 else (diagonal, 0)
        if failed:
            raise DataError(f"computed a spectral signature and found no eigenvalues ({failed} did not converge)")
        found[image] = values[::-1]
    return torch.from_numpy(found)


def _check_finite(is_finite: bool) -> None:
    if not is_finite:
        raise DataError("computed spectral signatures and found activations that are not finite; expected numbers")


def _take_logarithm(values: Float64[Tensor, "n channels"]) -> Float64[Tensor, "n channels"]:
    smallest = (FLOOR * values[:, :1]).clamp(min=torch.finfo(torch.float64).tiny)
    logarithm = torch.maximum(values, smallest).log()
    length = torch.linalg.vector_norm(logarithm, dim=1, keepdim=True)
    return logarithm / torch.where(length > 0, length, 1.0)
