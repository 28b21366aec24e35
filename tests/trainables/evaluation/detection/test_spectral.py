"""Spectral signatures by their definition, and the traps of their computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.errors import DataError
from trainables.evaluation.detection import spectral
from trainables.evaluation.detection.spectral import spectral_signature

FLOOR = 1e-6


def sign(maps: np.ndarray) -> np.ndarray:
    return spectral_signature(torch.from_numpy(maps)).numpy()


def by_svd(maps: np.ndarray) -> np.ndarray:
    """Signatures by the definition, with the floor."""
    found = []
    for image in maps.reshape(*maps.shape[:2], -1):
        values = np.zeros(len(image))
        singular = np.linalg.svd(image.T, compute_uv=False)
        values[: len(singular)] = singular
        logarithm = np.log(np.maximum(values, FLOOR * values[0]))
        found.append(logarithm / np.linalg.norm(logarithm))
    return np.array(found)


@given(seed=st.integers(0, 10_000), shape=st.sampled_from([(3, 4, 8, 8), (2, 9, 5, 4), (2, 6, 3, 4, 2), (1, 1, 7, 7)]))
@settings(max_examples=30, deadline=None)
def test_gram_and_svd_agree_on_maps_of_full_rank(seed: int, shape: tuple[int, ...]) -> None:
    maps = np.random.default_rng(seed).normal(size=shape) * 3
    np.testing.assert_allclose(sign(maps), by_svd(maps), atol=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_gram_and_svd_agree_after_flooring_on_dependent_channels(kind: type, rank: int) -> None:
    random = np.random.default_rng(0)
    maps = (random.normal(size=(4, 8, rank)) @ random.normal(size=(4, rank, 30))).reshape(4, 8, 5, 6).astype(kind)
    if kind == np.float64:  # of the others rounding makes every rank full
        assert (np.linalg.matrix_rank(maps.reshape(4, 8, 30)) == rank).all()
    np.testing.assert_allclose(sign(maps), by_svd(maps.astype(np.float64)), atol=1e-5)


def test_fewer_positions_than_channels_leave_the_others_at_the_floor() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 10, 2, 2))
    found = sign(maps)
    assert found.shape == (2, 10)
    np.testing.assert_allclose(found, by_svd(maps), atol=1e-5)
    np.testing.assert_array_equal(found[:, 4:], np.broadcast_to(found[:, 4:5], (2, 6)))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_order_of_channels_and_pixels_does_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    maps = random.normal(size=(2, 6, 4, 5))
    channels, pixels = random.permutation(6), random.permutation(20)
    moved = maps[:, channels].reshape(2, 6, 20)[:, :, pixels].reshape(2, 6, 4, 5)
    np.testing.assert_allclose(sign(moved), sign(maps), atol=1e-10)


def test_a_diagonal_map_has_the_known_signature() -> None:
    values = np.array([8.0, 4.0, 2.0, 0.5])
    maps = np.zeros((1, 4, 2, 2))
    maps.reshape(4, 4)[np.arange(4), [2, 0, 3, 1]] = values
    logarithm = np.log(values)
    np.testing.assert_allclose(sign(maps)[0], logarithm / np.linalg.norm(logarithm), atol=1e-12)


def test_maps_of_zeros_or_ones_are_numbers_and_infinite_ones_an_error() -> None:
    found = sign(np.zeros((2, 4, 3, 3)))
    np.testing.assert_allclose(found, -0.5)
    unit = np.zeros((1, 3, 1, 3))
    unit[0, :, 0] = np.eye(3)
    np.testing.assert_array_equal(sign(unit), np.zeros((1, 3)))
    with pytest.raises(DataError, match="not finite"):
        sign(np.full((1, 2, 2, 2), np.inf))


@pytest.mark.parametrize("shape", [(7, 3, 4, 4), (5, 9, 2, 3), (4, 1, 6), (4, 6, 1), (3, 5)])
def test_signatures_in_blocks_are_those_in_one_piece(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By both routes: LAPACK's on a CPU, torch's on any other device."""
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    whole = spectral_signature(maps)
    np.testing.assert_allclose(whole, by_svd(maps.double().numpy()), atol=1e-5)
    monkeypatch.setattr(spectral, "_CPU_BLOCK", 20)
    np.testing.assert_allclose(spectral_signature(maps), whole, atol=1e-12)
    monkeypatch.setattr(spectral, "_find_squares_on_cpu", spectral._find_squares)
    for block in (1 << 23, 20):
        monkeypatch.setattr(spectral, "_BLOCK", block)
        np.testing.assert_allclose(spectral_signature(maps), whole, atol=1e-7)
    assert spectral_signature(maps[:0]).shape == (0, shape[1])


def test_a_map_that_is_not_finite_is_noticed_by_the_other_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "_find_squares_on_cpu", spectral._find_squares)
    with pytest.raises(DataError, match="not finite"):
        sign(np.full((1, 2, 2, 2), np.nan))


def test_it_is_the_logarithm_of_the_vector_and_not_of_the_diagonal_matrix() -> None:
    """With log(diag(s)), zeros included at the floor, all images are nearly the same: the trap of the public code."""
    random = np.random.default_rng(0)
    maps = random.normal(size=(2, 8, 6, 6)) * np.exp(random.normal(size=(2, 8, 1, 1)))
    found = sign(maps)
    matrices = np.full((2, 8, 8), np.log(1e-6))
    for matrix, image in zip(matrices, maps.reshape(2, 8, 36), strict=True):
        np.fill_diagonal(matrix, np.log(np.linalg.svd(image.T, compute_uv=False)))
    flattened = matrices.reshape(2, -1) / np.linalg.norm(matrices.reshape(2, -1), axis=1, keepdims=True)
    assert np.linalg.norm(found[0] - found[1]) > 10 * np.linalg.norm(flattened[0] - flattened[1])
