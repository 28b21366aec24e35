from __future__ import annotations

import torch

from trainables.ops.stain_normalisation import eigen_3x3


def random_matrices(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
    return factors @ factors.transpose(1, 2)


def test_values_and_vectors_are_lapacks() -> None:
    matrices = random_matrices(200)
    values, vectors = eigen_3x3(matrices)
    expected, theirs = torch.linalg.eigh(matrices)
    torch.testing.assert_close(values, expected.flip(1), rtol=1e-9, atol=1e-12)
    alignment = (vectors * theirs.flip(2)).sum(1).abs()  # up to the sign
    torch.testing.assert_close(alignment, torch.ones_like(alignment), rtol=1e-7, atol=1e-7)


def test_degenerate_matrices_have_orthonormal_vectors_too() -> None:
    one = torch.ones(3, dtype=torch.float64)
    matrices = torch.stack([torch.zeros(3, 3).double(), torch.eye(3).double(), torch.outer(one, one)])
    values, vectors = eigen_3x3(matrices)
    torch.testing.assert_close(vectors.transpose(1, 2) @ vectors, torch.eye(3).double().expand(3, 3, 3))
    torch.testing.assert_close(values[2], torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))


def test_a_matrix_alone_is_what_it_is_in_a_batch() -> None:
    matrices = random_matrices(17)
    together = eigen_3x3(matrices)[1]
    for index in range(17):
        assert torch.equal(eigen_3x3(matrices[index : index + 1])[1][0], together[index])
