from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.evaluation.representation.similarity import CrossMoments, compare_features


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased CKA by n × n matrices: the formula of Song et al. 2007 as it is printed."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        whole = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        return (whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def draw(num_images: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two correlated representations with large means, of 7 and 11 features."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(num_images, 7)) * np.linspace(0.1, 3.0, 7) + 20.0
    return x, np.tanh(x @ random.normal(size=(7, 11)) * 0.3 - 5.0) + 0.3 * random.normal(size=(num_images, 11))


def test_cka_is_that_of_n_by_n_matrices() -> None:
    x, y = draw()
    cka, _ = compare_features(x, y)
    assert cka == pytest.approx(gram_cka(x, y), abs=1e-8)  # whose entries are large where means are
    assert 0.05 < cka < 0.95


def test_batches_do_not_matter() -> None:
    x, y = (torch.from_numpy(each) for each in draw(37))
    whole, parts = CrossMoments(), CrossMoments()
    whole.update(x, y)
    for start, end in ((0, 1), (1, 20), (20, 37)):
        parts.update(x[start:end], y[start:end])
    assert parts.compute_hsic() == pytest.approx(whole.compute_hsic(), rel=1e-12)
    assert parts.compute_procrustes() == pytest.approx(whole.compute_procrustes(), rel=1e-12)


def test_rotation_scale_and_shift_change_nothing() -> None:
    x, y = draw()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(11, 11)))
    assert compare_features(x, 3.0 * y @ rotation - 40.0) == pytest.approx(compare_features(x, y), abs=1e-10)
    cka, distance = compare_features(y, 0.1 * y @ rotation + 7.0)
    assert (cka, distance) == (pytest.approx(1.0, abs=1e-12), pytest.approx(0.0, abs=1e-12))


def test_procrustes_is_what_the_best_rotation_leaves() -> None:
    from scipy.linalg import orthogonal_procrustes

    x, y = draw()
    a, b = np.pad(x - x.mean(0), ((0, 0), (0, 4))), y - y.mean(0)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, _ = orthogonal_procrustes(a, b)
    assert compare_features(x, y)[1] == pytest.approx(np.linalg.norm(a @ rotation - b) ** 2, abs=1e-10)


def test_independent_representations_have_no_similarity_on_average() -> None:
    """With many features the biased estimator is near 1 for noise; the unbiased one scatters about 0."""
    random = np.random.default_rng(0)
    found = [compare_features(*random.normal(size=(2, 30, 200)))[0] for _ in range(20)]
    assert abs(np.mean(found)) < 0.02


def test_what_does_not_vary_has_no_similarity() -> None:
    x, _ = draw()
    assert compare_features(x, np.ones((50, 3))) == (None, None)
    with pytest.raises(ValueError, match="of 50 and of 49 images"):
        compare_features(x, x[1:])
    with pytest.raises(ValueError, match="HSIC of 3 images, expected 4 or more"):
        compare_features(x[:3], x[:3])
