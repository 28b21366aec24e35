from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from trainables.evaluation.representation.spectrum import CovarianceSum, Spectrum


def test_eigenvalues_are_those_of_the_covariance_whatever_the_batches() -> None:
    random = np.random.default_rng(0)
    samples = random.normal(size=(60, 5)) @ random.normal(size=(5, 5)) + 1000.0
    covariance = CovarianceSum()
    for start, end in ((0, 1), (1, 33), (33, 60)):
        covariance.update(torch.from_numpy(samples[start:end]))
    expected = np.linalg.eigvalsh(np.cov(samples.T))[::-1]
    np.testing.assert_allclose(covariance.compute_spectrum().eigenvalues, expected, rtol=1e-9)


def test_only_eigenvalues_that_can_differ_from_0_are_kept() -> None:
    covariance = CovarianceSum()
    covariance.update(torch.randn(6, 40, generator=torch.Generator().manual_seed(0)))
    values = covariance.compute_spectrum().eigenvalues
    assert len(values) == 5
    assert values.min() > 0.1
    with pytest.raises(ValueError, match="of 0 samples"):
        CovarianceSum().compute_spectrum()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_of_a_power_law_is_its_exponent(alpha: float) -> None:
    values = 7.0 * np.arange(1.0, 201.0) ** -alpha
    values[:3] *= 5.0  # the first three ranks and the tail are not fitted
    assert Spectrum(values).compute_alpha() == pytest.approx(alpha, abs=1e-10)
    short = values[:30].copy()
    short[20:] = 0.0
    assert Spectrum(short).compute_alpha() == pytest.approx(alpha, abs=1e-10)
    assert Spectrum(values[:22]).compute_alpha() is None
    assert Spectrum(values[:5]).compute_alpha() is None


def test_condition_number_is_a_ratio_of_percentiles() -> None:
    values = np.arange(1000.0, -1.0, -1.0)
    assert Spectrum(values).compute_condition_number() == pytest.approx(999.0 / 900.0)
    assert Spectrum(np.ones(8)).compute_condition_number() == 1.0
    assert Spectrum(np.eye(1, 64)[0]).compute_condition_number() is None
    assert Spectrum(np.zeros(3)).compute_condition_number() is None


def test_kurtosis_is_that_of_ranks_drawn_as_often_as_their_eigenvalue() -> None:
    values = np.array([9.0, 5.0, 2.0, 1.0])
    drawn = [0] * 9
    for rank, count in ((1, 5), (2, 2), (3, 1)):
        drawn += [rank, -rank] * count
    assert Spectrum(values).compute_kurtosis() == pytest.approx(kurtosis(drawn))
    assert Spectrum(np.ones(500)).compute_kurtosis() == pytest.approx(-1.2, abs=1e-4)
    steep, flat = (Spectrum(np.arange(1.0, 65.0) ** -alpha) for alpha in (3.0, 1.0))
    assert steep.compute_kurtosis() > flat.compute_kurtosis()
    assert Spectrum(np.eye(1, 5)[0]).compute_kurtosis() is None


def test_effective_rank_counts_equal_directions() -> None:
    assert Spectrum(np.array([2.0, 2.0, 2.0, 0.0])).compute_effective_rank() == pytest.approx(3.0)
    assert Spectrum(np.array([1.0, 0.0])).compute_effective_rank() == pytest.approx(1.0)
    assert Spectrum(np.zeros(2)).compute_effective_rank() is None
    shares = np.array([3.0, 2.0, 1.0]) / 6.0
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert Spectrum(np.array([9.0, 4.0, 1.0])).compute_effective_rank() == pytest.approx(expected)
