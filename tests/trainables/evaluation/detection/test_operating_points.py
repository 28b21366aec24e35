"""Thresholds fixed on validation, and Platt scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from trainables.errors import DataError
from trainables.evaluation.classification import compute_ece
from trainables.evaluation.detection.operating_points import (
    compute_selective_risk,
    fit_platt_scaling,
    fix_coverage,
    fix_risk,
)


def draw(seed: int, count: int, levels: int = 10**9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    confidence = random.integers(0, levels, count) / levels
    return confidence, random.random(count) < 0.2 + 0.7 * confidence


@given(seed=st.integers(0, 10_000), count=st.integers(1, 50), levels=st.sampled_from([1, 4, 10**9]))
@settings(max_examples=100, deadline=None)
def test_a_fixed_coverage_is_the_highest_threshold_that_keeps_enough(seed: int, count: int, levels: int) -> None:
    confidence, is_correct = draw(seed, count, levels)
    for coverage in (0.3, 0.7, 1.0):
        point = fix_coverage(confidence, is_correct, coverage)
        assert point.coverage == (confidence >= point.threshold).mean() >= coverage - 1e-12
        assert point.risk == pytest.approx((~is_correct[confidence >= point.threshold]).mean())
        higher = confidence[confidence > point.threshold]
        assert not len(higher) or (confidence >= higher.min()).mean() < coverage


@given(seed=st.integers(0, 10_000), count=st.integers(1, 50), levels=st.sampled_from([1, 4, 10**9]))
@settings(max_examples=100, deadline=None)
def test_a_fixed_risk_is_the_lowest_threshold_that_holds_it(seed: int, count: int, levels: int) -> None:
    confidence, is_correct = draw(seed, count, levels)
    for risk in (0.0, 0.1, 0.4):
        risks = {value: (~is_correct[confidence >= value]).mean() for value in confidence}
        allowed = [value for value, found in risks.items() if found <= risk + 1e-12]
        point = fix_risk(confidence, is_correct, risk)
        assert (point is None) == (not allowed)
        if point is not None:
            assert point.threshold == min(allowed)
            assert point.risk == pytest.approx(risks[point.threshold])
            assert point.coverage == (confidence >= point.threshold).mean()


def test_seven_of_ten_are_seven() -> None:
    assert fix_coverage(np.arange(10.0), np.ones(10, dtype=bool), 0.7).threshold == 3.0


def test_an_operating_point_is_applied_unchanged() -> None:
    point = fix_coverage(np.arange(10.0), np.arange(10) >= 1, 0.8)
    assert (point.threshold, point.coverage, point.risk, point.num_images) == (2.0, 0.8, 0.0, 10)
    found = compute_selective_risk(point, np.array([0.0, 1.9, 2.0, 5.0]), np.array([1, 0, 0, 1]))
    assert (found.coverage, found.risk, found.num_kept, found.num_errors) == (0.5, 0.5, 2, 1)
    nothing = compute_selective_risk(point, np.array([0.0, 1.0]), np.array([1, 0]))
    assert (nothing.coverage, nothing.risk) == (0.0, None)
    itself = compute_selective_risk(point, np.arange(10.0), np.arange(10) >= 1)
    assert (itself.coverage, itself.risk) == (point.coverage, point.risk)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="expected a share"):
        fix_coverage(np.arange(3.0), np.ones(3, dtype=bool), share)
    with pytest.raises(DataError, match="expected a share"):
        fix_risk(np.arange(3.0), np.ones(3, dtype=bool), share)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-3e6, 1e3), (5.0, 1e-6)])
def test_platt_scaling_minimises_the_loss_of_platt(shift: float, scale: float) -> None:
    """Against SciPy's minimiser on the same targets, whatever the unit of the score."""
    confidence, is_correct = draw(0, 300)
    scaling, reason = fit_platt_scaling(shift + scale * confidence, is_correct)
    assert scaling is not None
    assert reason == ""
    right = is_correct.sum()
    target = np.where(is_correct, (right + 1) / (right + 2), 1 / (300 - right + 2))

    def loss(weights: np.ndarray) -> float:
        outputs = weights[0] + weights[1] * confidence
        return float(np.logaddexp(0, outputs).sum() - target @ outputs)

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000})
    np.testing.assert_allclose([scaling.intercept + scaling.slope * shift, scaling.slope * scale], best.x, rtol=1e-4)


def test_platt_scaling_calibrates_and_keeps_the_order() -> None:
    random = np.random.default_rng(0)
    confidence = random.normal(size=20_000) * 3
    is_correct = random.random(20_000) < 1 / (1 + np.exp(-(0.5 * confidence + 1)))
    scaling, _ = fit_platt_scaling(confidence[:10_000], is_correct[:10_000])
    assert scaling is not None
    assert (scaling.slope, scaling.intercept) == (pytest.approx(0.5, abs=0.03), pytest.approx(1, abs=0.1))
    probability = scaling.apply(confidence[10_000:])
    assert compute_ece(probability, is_correct[10_000:], bins=20) < 0.02
    assert (np.diff(probability[np.argsort(confidence[10_000:])]) >= 0).all()


def test_separable_scores_have_a_finite_scaling() -> None:
    scaling, _ = fit_platt_scaling(np.arange(10.0), np.arange(10) >= 5)
    assert scaling is not None
    assert np.isfinite([scaling.slope, scaling.intercept]).all()
    assert scaling.slope > 0


def test_without_two_kinds_or_two_values_there_is_a_reason() -> None:
    assert fit_platt_scaling(np.arange(3.0), np.ones(3))[1] == "none of the 3 predictions on validation is wrong"
    assert fit_platt_scaling(np.arange(3.0), np.zeros(3))[1] == "none of the 3 predictions on validation is right"
    assert "equal" in fit_platt_scaling(np.ones(3), np.array([0, 1, 1]))[1]
    with pytest.raises(DataError, match="1 infinite"):
        fit_platt_scaling(np.array([1.0, np.inf]), np.array([0, 1]))
