"""Eigenvectors of many small symmetric matrices at once, each bit for bit what it is alone."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

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
