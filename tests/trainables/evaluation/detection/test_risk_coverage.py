"""AURC, AUGRC and the rates: worked values, a loop over thresholds, ties, weights as repeated rows, scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from trainables.errors import DataError
from trainables.evaluation.confidence import compute_augrc, compute_aurc, compute_eaurc
from trainables.evaluation.detection.risk_coverage import (
    FAILURE,
    OOD,
    compute_failure_metrics,
    compute_failure_replicates,
    compute_ood_metrics,
    compute_risk_coverage_curve,
    compute_risk_metrics,
    count_risks,
    draw_weights,
    thin_curve,
)
from trainables.evaluation.metrics import FAILURE_METRICS, OOD_METRICS

COUNT, ERROR = 10_000, 0.2


def worked(order: str) -> tuple[np.ndarray, np.ndarray]:
    """A fifth of the predictions wrong, ranked as named."""
    is_correct = np.arange(COUNT) >= ERROR * COUNT
    random = np.random.default_rng(0).permutation(COUNT).astype(np.float64)
    ranks = np.arange(COUNT, dtype=np.float64)
    return {"perfect": ranks, "constant": np.ones(COUNT), "random": random, "adversarial": -ranks}[order], is_correct


@pytest.mark.parametrize(
    ("order", "aurc", "augrc", "tolerance"),
    [
        ("perfect", ERROR + (1 - ERROR) * math.log(1 - ERROR), 0.02, 1e-4),
        ("constant", 0.2, 0.1, 1e-12),
        ("random", 0.2, 0.1, 0.01),
        ("adversarial", ERROR - ERROR * math.log(ERROR), 0.18, 1e-4),
    ],
)
def test_worked_values(order: str, aurc: float, augrc: float, tolerance: float) -> None:
    confidence, is_correct = worked(order)
    assert compute_aurc(confidence, is_correct) == pytest.approx(aurc, abs=tolerance)
    assert compute_augrc(confidence, is_correct) == pytest.approx(augrc, abs=tolerance)
    perfect = ERROR + (1 - ERROR) * math.log(1 - ERROR)
    assert compute_eaurc(confidence, is_correct) == pytest.approx(aurc - perfect, abs=tolerance)


def loop(confidence: np.ndarray, is_correct: np.ndarray) -> dict[str, float]:
    """AURC, e-AURC and AUGRC by a loop over thresholds, one trapezoid each."""
    total, errors = len(confidence), int((~is_correct).sum())
    points = []
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        kept = confidence >= threshold
        points.append((kept.sum() / total, (kept & ~is_correct).sum() / kept.sum(), (kept & ~is_correct).sum() / total))
    aurc = augrc = 0.0
    before = (0.0, points[0][1], 0.0)
    for point in points:
        width = point[0] - before[0]
        aurc += width * (point[1] + before[1]) / 2
        augrc += width * (point[2] + before[2]) / 2
        before = point
    rate = errors / total
    perfect = rate + (1 - rate) * math.log(1 - rate) if rate < 1 else 1.0
    return {"aurc": aurc, "eaurc": aurc - perfect, "augrc": augrc}


def loop_over_risks(confidence: np.ndarray, risks: np.ndarray) -> dict[str, float]:
    """AURC and AUGRC by a loop over thresholds: mean risk of the kept, and their sum over all images."""
    found = {"aurc": 0.0, "augrc": 0.0}
    before: tuple[float, float, float] | None = None
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        kept = risks[confidence >= threshold].tolist()
        point = (len(kept) / len(risks), sum(kept) / len(kept), sum(kept) / len(risks))
        start = (0.0, point[1], 0.0) if before is None else before
        found["aurc"] += (point[0] - start[0]) * (point[1] + start[1]) / 2
        found["augrc"] += (point[0] - start[0]) * (point[2] + start[2]) / 2
        before = point
    return found


@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), levels=st.sampled_from([1, 2, 5, 40, 10**9]))
@settings(max_examples=100, deadline=None)
def test_risks_are_those_of_a_loop(seed: int, count: int, levels: int) -> None:
    confidence, is_correct = draw(seed, count, levels)
    risks = np.random.default_rng(seed + 1).random(count)
    assert compute_risk_metrics(confidence, risks).values == pytest.approx(
        loop_over_risks(confidence, risks), abs=1e-12
    )
    order = np.random.default_rng(seed).permutation(count)  # ties: in whatever order
    shuffled = compute_risk_metrics(confidence[order], risks[order]).values
    assert shuffled == pytest.approx(compute_risk_metrics(confidence, risks).values, abs=1e-12)
    counted = compute_failure_metrics(confidence, is_correct).values
    by_risk = compute_risk_metrics(confidence, 1.0 - is_correct).values
    assert by_risk == pytest.approx({name: counted[name] for name in ("aurc", "augrc")}, abs=1e-12)


def test_worked_values_of_risks() -> None:
    """Three cases of Dice .9, .6 and .2: kept from the best on, all at once, and from the worst on."""
    risks = np.array([0.1, 0.4, 0.8])
    best = compute_risk_metrics(np.array([3.0, 2.0, 1.0]), risks).values
    assert best["augrc"] == pytest.approx((0.1 / 2 + (0.1 + 0.5) / 2 + (0.5 + 1.3) / 2) / 9)
    assert best["aurc"] == pytest.approx((0.1 + (0.1 + 0.25) / 2 + (0.25 + 1.3 / 3) / 2) / 3)
    tied = compute_risk_metrics(np.ones(3), risks).values
    assert tied == pytest.approx({"aurc": 1.3 / 3, "augrc": 1.3 / 6})
    assert compute_risk_metrics(np.array([1.0, 2.0, 3.0]), risks).values["augrc"] > tied["augrc"] > best["augrc"]
    curve = thin_curve(count_risks(np.array([1.0, 3.0, 2.0]), risks))
    assert curve.coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert curve.risk == pytest.approx([0.4, 0.6, 1.3 / 3])


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_risks_outside_of_their_range_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="found 1 of 2 risks that are NaN or not between 0 and 1"):
        compute_risk_metrics(np.array([0.5, 0.6]), np.array([0.3, bad]))


def reference(confidence: np.ndarray, is_correct: np.ndarray) -> dict[str, float]:
    """Every metric, from the loop and from scikit-learn."""
    found = loop(confidence, is_correct)
    if is_correct.all() or not is_correct.any():
        return found
    rejected, kept, _ = roc_curve(is_correct, confidence, drop_intermediate=False)
    found["failure_auroc"] = roc_auc_score(is_correct, confidence)
    found["failure_fpr_at_95_tpr"] = rejected[kept >= 0.95 - 1e-12].min()
    found["failure_ap"] = average_precision_score(~is_correct, -confidence)
    return found


def draw(seed: int, count: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    confidence = random.integers(0, levels, count) / 7
    return confidence, random.random(count) < 0.3 + 0.6 * confidence / confidence.max(initial=1.0)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), levels=st.sampled_from([1, 2, 5, 40, 10**9]))
@settings(max_examples=150, deadline=None)
def test_every_metric_is_that_of_a_loop_and_of_scikit_learn(seed: int, count: int, levels: int) -> None:
    confidence, is_correct = draw(seed, count, levels)
    found = compute_failure_metrics(confidence, is_correct)
    assert found.values == pytest.approx(reference(confidence, is_correct), abs=1e-12)
    assert set(found.values) | set(found.undefined) == set(FAILURE)
    for name, value in found.values.items():
        assert FAILURE_METRICS[name].low - 1e-12 <= value <= FAILURE_METRICS[name].high + 1e-12


def test_no_ranking_leaves_the_ranges_of_the_table() -> None:
    """Every order of up to 6 predictions with every pattern of ties, and long ones that come near the ends."""
    highest = dict.fromkeys(FAILURE, -math.inf)
    cases = [
        (np.append(0, np.cumsum(steps)), np.array(labels))
        for count in range(1, 7)
        for steps in itertools.product([0, 1], repeat=count - 1)
        for labels in itertools.product([False, True], repeat=count)
    ]
    ordered = np.append(np.arange(433, 0, -1), np.zeros(567))
    cases += [(ordered, ordered == 0), (np.append(1, np.zeros(999)), np.arange(1000) == 0)]
    for confidence, is_correct in cases:
        for name, value in compute_failure_metrics(confidence, is_correct).values.items():
            assert FAILURE_METRICS[name].low - 1e-12 <= value <= FAILURE_METRICS[name].high + 1e-12, (name, confidence)
            highest[name] = max(highest[name], value)
    # The ends of the table are reached, or nearly: they are not merely wide.
    assert highest == pytest.approx({name: FAILURE_METRICS[name].high for name in FAILURE}, abs=1e-3)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), levels=st.sampled_from([1, 3, 10**9]))
@settings(max_examples=60, deadline=None)
def test_weights_are_repeated_rows(seed: int, count: int, levels: int) -> None:
    confidence, is_correct = draw(seed, count, levels)
    weights = draw_weights(count, 20, np.random.default_rng(seed))
    assert (weights.sum(axis=1) == count).all()
    found = compute_failure_replicates(confidence[None], is_correct, weights)
    for row, weight in enumerate(weights):
        rows = np.repeat(np.arange(count), weight)
        once = compute_failure_metrics(confidence[rows], is_correct[rows])
        for name in FAILURE:
            if name in once.undefined:
                assert np.isnan(found[name][0, row])
            else:
                assert found[name][0, row] == pytest.approx(once.values[name], abs=1e-12)


def test_weights_in_blocks_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence, is_correct = draw(3, 50, 20)
    weights = draw_weights(50, 33, np.random.default_rng(0))
    whole = compute_failure_replicates(confidence[None], is_correct, weights, metrics=("aurc", "augrc"))
    monkeypatch.setattr("trainables.evaluation.detection.risk_coverage._BLOCK", 200)
    parts = compute_failure_replicates(confidence[None], is_correct, weights, metrics=("aurc", "augrc"))
    assert list(parts) == ["aurc", "augrc"]
    for name, values in whole.items():
        np.testing.assert_allclose(values, parts[name], rtol=1e-12)


def test_a_replicate_without_images_is_nan() -> None:
    found = compute_failure_replicates(np.array([[1.0, 2.0]]), np.array([True, False]), np.array([[0, 0], [1, 1]]))
    assert np.isnan([values[0, 0] for values in found.values()]).all()
    assert found["aurc"][0, 1] == pytest.approx(0.875)


def test_several_scores_have_the_same_replicates_and_each_its_own_predictions() -> None:
    confidence, is_correct = draw(1, 40, 10)
    other, also_correct = draw(2, 40, 10**9)
    weights = draw_weights(40, 25, np.random.default_rng(0))
    both = compute_failure_replicates(np.stack([confidence, other]), np.stack([is_correct, also_correct]), weights)
    for name, values in both.items():
        for row, arrays in zip(values, ((confidence, is_correct), (other, also_correct)), strict=True):
            alone = compute_failure_replicates(arrays[0][None], arrays[1], weights, metrics=[name])
            np.testing.assert_array_equal(row, alone[name][0])


@pytest.mark.parametrize(("is_correct", "word"), [(True, "wrong"), (False, "right")])
def test_without_errors_or_with_nothing_else_rates_are_undefined(is_correct: bool, word: str) -> None:
    found = compute_failure_metrics(np.arange(4.0), np.full(4, is_correct))
    assert found.values == ({"aurc": 0.0, "eaurc": 0.0, "augrc": 0.0} if is_correct else found.values)
    if not is_correct:
        assert found.values == {"aurc": 1.0, "eaurc": 0.0, "augrc": 0.5}
    assert set(found.undefined) == {"failure_auroc", "failure_fpr_at_95_tpr", "failure_ap"}
    assert all(f"is {word}" in reason for reason in found.undefined.values())


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 3 that are NaN"):
        compute_aurc(np.array([1.0, np.nan, 2.0]), np.array([True, False, True]))
    with pytest.raises(DataError, match="of one length"):
        compute_aurc(np.array([]), np.array([], dtype=bool))
    with pytest.raises(DataError, match="other than 0 and 1"):
        compute_augrc(np.array([1.0, 2.0]), np.array([0, 2]))
    infinite = compute_aurc(np.array([-np.inf, np.inf, np.inf, 0.0]), np.array([0, 1, 1, 0]))
    assert infinite == compute_aurc(np.array([0, 2, 2, 1]), np.array([0, 1, 1, 0]))


def test_ties_make_eaurc_negative_and_this_is_not_hidden() -> None:
    """Two thresholds: the straight line between them lies below the curve of a perfect ranking."""
    confidence, is_correct = np.repeat([1.0, 0.0], [8, 2]), np.repeat([True, False], [8, 2])
    assert compute_aurc(confidence, is_correct) == pytest.approx(0.02)
    assert compute_eaurc(confidence, is_correct) == pytest.approx(0.02 - (0.2 + 0.8 * math.log(0.8)))


@given(seed=st.integers(0, 10_000), count=st.integers(2, 60), levels=st.sampled_from([2, 5, 10**9]))
@settings(max_examples=60, deadline=None)
def test_ood_metrics_are_those_of_scikit_learn_both_ways(seed: int, count: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    inside, outside = random.integers(0, levels, count) + levels // 3, random.integers(0, levels, count // 2 + 1)
    found = compute_ood_metrics(inside, outside)
    score = np.concatenate([inside, outside])
    is_inside = np.arange(len(score)) < count
    passed, kept, _ = roc_curve(is_inside, score, drop_intermediate=False)
    flagged_in, flagged_out, _ = roc_curve(~is_inside, -score, drop_intermediate=False)
    assert found.values == pytest.approx(
        {
            "auroc": roc_auc_score(is_inside, score),
            "aupr_in": average_precision_score(is_inside, score),
            "aupr_out": average_precision_score(~is_inside, -score),
            "fpr_at_95_tpr": passed[kept >= 0.95 - 1e-12].min(),
            "fpr_at_95_tpr_out": flagged_in[flagged_out >= 0.95 - 1e-12].min(),
        },
        abs=1e-12,
    )
    assert set(found.values) == set(OOD) == set(OOD_METRICS)


def test_ood_metrics_without_images_have_a_reason() -> None:
    assert compute_ood_metrics(np.arange(3.0), np.array([])).undefined["auroc"] == "there are no other images"


def test_tables_and_functions_name_the_same() -> None:
    assert set(FAILURE_METRICS) == set(FAILURE)


def test_the_curve_is_thinned_and_ends_at_full_coverage() -> None:
    confidence, is_correct = worked("perfect")
    curve = compute_risk_coverage_curve(confidence, is_correct, max_points=50)
    assert len(curve.coverage) == 50
    assert (np.diff(curve.coverage) > 0).all()
    assert (curve.coverage[-1], curve.risk[-1]) == (1.0, pytest.approx(0.2))
    assert (curve.risk[curve.coverage <= 0.8] == 0).all()
    whole = compute_risk_coverage_curve(np.array([3.0, 2.0, 2.0, 1.0]), np.array([1, 0, 1, 0]))
    np.testing.assert_allclose(whole.coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(whole.risk, [0, 1 / 3, 0.5])
