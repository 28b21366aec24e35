"""Detectors, spectral signatures, near and far sets."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from trainables.errors import ConfigError, DataError
from trainables.evaluation import ood
from trainables.evaluation.confidence import CONFIDENCE_SCORES
from trainables.evaluation.detection.risk_coverage import compute_ood_metrics
from trainables.evaluation.detection.spectral import spectral_signature
from trainables.evaluation.metrics import REJECTION_METRICS
from trainables.evaluation.ood import (
    DETECTORS,
    JudgedSet,
    NearestReference,
    TrainingSplit,
    compute_intensity_histograms,
    compute_near_far,
    fit_combination,
    fit_detector,
    fit_layer_ensemble,
    fix_rejection,
    measure_rejection,
)


def sign(maps: np.ndarray) -> np.ndarray:
    return spectral_signature(torch.from_numpy(maps)).numpy()


def test_an_image_is_at_no_distance_of_itself_unless_it_is_left_out() -> None:
    reference = NearestReference(sign(np.random.default_rng(0).normal(size=(20, 5, 6, 6))))
    np.testing.assert_array_equal(reference.score(reference.signatures), np.zeros(20))
    own = reference.score_reference()
    assert (own < 0).all()
    distances = np.linalg.norm(reference.signatures[:, None] - reference.signatures[None], axis=2)
    distances[np.diag_indices(20)] = np.inf
    np.testing.assert_allclose(own, -distances.min(axis=1))


def test_the_spectral_signature_tells_maps_of_another_rank() -> None:
    random = np.random.default_rng(0)
    usual = random.normal(size=(90, 6, 8, 8))
    flat = random.normal(size=(30, 6, 2)) @ random.normal(size=(30, 2, 64)) + 0.1 * random.normal(size=(30, 6, 64))
    signatures = sign(usual)
    reference = NearestReference(signatures[:30])
    threshold = fix_rejection(reference.score(signatures[30:60]))
    inside, outside = reference.score(signatures[60:]), reference.score(sign(flat.reshape(30, 6, 8, 8)))
    assert (inside >= threshold).mean() > 0.8
    assert (outside < threshold).all()


def test_the_threshold_is_the_95th_percentile_of_the_distances() -> None:
    distances = np.random.default_rng(0).random(200)
    assert -fix_rejection(-distances) == pytest.approx(np.percentile(distances, 95))
    with pytest.raises(DataError, match="no held-out images"):
        fix_rejection(np.array([]))


def test_sensitivity_and_specificity_are_those_at_the_threshold() -> None:
    found = measure_rejection(0.5, np.array([0.4, 0.5, 0.6, 0.7]), np.array([0.1, 0.5, 0.2]))
    assert found == {"sensitivity": pytest.approx(2 / 3), "specificity": 0.75}
    assert set(found) == set(REJECTION_METRICS)


def test_intensity_histograms_count_every_channel_apart() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, size=(5, 3, 7, 6), dtype=np.uint8)
    found = compute_intensity_histograms(images, bins=16)
    assert found.shape == (5, 48)
    for image, row in zip(images, found.reshape(5, 3, 16), strict=True):
        for channel, shares in zip(image, row, strict=True):
            np.testing.assert_allclose(shares, np.histogram(channel, bins=16, range=(0, 256))[0] / 42, rtol=1e-6)


def test_the_histogram_baseline_notices_another_brightness() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 128, size=(60, 1, 8, 8), dtype=np.uint8)
    histograms = compute_intensity_histograms(images)
    reference = NearestReference(histograms[:40])
    brighter = compute_intensity_histograms(images[40:] + np.uint8(60))
    assert compute_ood_metrics(reference.score(histograms[40:]), reference.score(brighter)).values["auroc"] > 0.95


def split(seed: int = 0, *, count: int = 400, classes: int = 4, size: int = 12) -> TrainingSplit:
    """Features of classes in a space of ``size``/2 dimensions with little noise around it, and an affine last layer."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres, basis = 4 * np.random.default_rng(9).normal(size=(classes, size // 2)), np.eye(size)[: size // 2]
    features = (centres[labels] + random.normal(size=(count, size // 2))) @ basis
    features = (features + 0.1 * random.normal(size=features.shape) + 1).astype(np.float16)
    weights = centres @ basis
    bias = -np.square(centres).sum(axis=1) / 2 - weights.sum(axis=1)
    logits = (features.astype(np.float64) @ weights.T + bias).astype(np.float32)
    return TrainingSplit(features, labels, logits)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_tells_images_from_elsewhere(name: str) -> None:
    training, test = split(0), split(1, count=100)
    score = fit_detector(name, training)
    elsewhere = (test.features + 3 * np.random.default_rng(2).normal(size=test.features.shape)).astype(np.float16)
    inside, outside = score(test.features, test.logits), score(elsewhere, test.logits)
    assert inside.shape == (100,)
    assert compute_ood_metrics(inside, outside).values["auroc"] > 0.9


def test_detectors_are_in_the_table_of_scores() -> None:
    assert set(DETECTORS) == {name for name, score in CONFIDENCE_SCORES.items() if score.needs == "features"}


def test_mahalanobis_is_fitted_once_for_both_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fit = ood.fit_mahalanobis
    monkeypatch.setattr(ood, "fit_mahalanobis", lambda *args, **kwargs: calls.append(1) or fit(*args, **kwargs))
    training = split()
    fit_detector("mahalanobis", training)
    fit_detector("relative_mahalanobis", training)
    assert len(calls) == 1


def test_an_unknown_detector_is_an_error_that_names_the_known() -> None:
    with pytest.raises(ConfigError, match="looked for the detector 'mahalanobs'; expected one of mahalanobis, "):
        fit_detector("mahalanobs", split())


def test_without_pytorch_ood_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    with pytest.raises(ConfigError, match=r"pip install 'robustsweep\[ood\]'"):
        fit_detector("pytorch_ood/SHE", split())


@pytest.mark.parametrize("name", ["Mahalanobis", "RMD", "KNN", "ViM", "SHE", "NNGuide", "KLMatching", "EnergyBased"])
def test_detectors_of_pytorch_ood_work_by_name(name: str) -> None:
    pytest.importorskip("pytorch_ood")
    training, test = split(0), split(1, count=100)
    score = fit_detector(f"pytorch_ood/{name}", training)
    values = score(test.features, test.logits)
    assert values.shape == (100,)
    assert np.isfinite(values).all()
    if name in ("Mahalanobis", "RMD", "KNN", "ViM"):
        elsewhere = (test.features + 3 * np.random.default_rng(2).normal(size=test.features.shape)).astype(np.float16)
        assert compute_ood_metrics(values, score(elsewhere, test.logits)).values["auroc"] > 0.8
    if name in ("ViM", "KNN"):
        own = fit_detector(name.lower(), training)(test.features, test.logits)
        assert np.corrcoef(np.argsort(np.argsort(own)), np.argsort(np.argsort(values)))[0, 1] > 0.99


def test_what_pytorch_ood_lacks_or_cannot_have_is_an_error() -> None:
    pytest.importorskip("pytorch_ood")
    with pytest.raises(ConfigError, match=r"expected one that works on features or logits: .*ViM"):
        fit_detector("pytorch_ood/ODIN", split())
    with pytest.raises(ConfigError, match="which needs p; expected"):
        fit_detector("pytorch_ood/DICE", split())
    training = split()
    with pytest.raises(DataError, match="refused them"):
        fit_detector("pytorch_ood/SHE", TrainingSplit(training.features, (training.labels + 1) % 4, training.logits))


def test_layers_count_the_same_whatever_their_scale() -> None:
    random = np.random.default_rng(0)
    scores = np.stack([random.normal(size=500), 1e6 + 1e4 * random.normal(size=500)])
    combined = fit_combination(scores).apply(scores)
    standardised = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
    np.testing.assert_allclose(combined, standardised.mean(axis=0), rtol=1e-9)
    with pytest.raises(DataError, match="number 1"):
        fit_combination(np.stack([random.normal(size=5), np.ones(5)]))


def test_the_layer_ensemble_sees_what_one_layer_does_not() -> None:
    training, validation, test = split(0), split(1), split(2)
    shallow = [each.features[:, :3] for each in (training, validation, test)]
    fitted = fit_layer_ensemble(
        [[(shallow[0], training.labels)], [(training.features, training.labels)]],
        [shallow[1], validation.features],
        num_classes=4,
    )
    moved = test.features.copy()
    moved[:, 3:] += np.float16(3)
    inside, outside = fitted.score([shallow[2], test.features]), fitted.score([shallow[2], moved])
    assert compute_ood_metrics(inside, outside).values["auroc"] > 0.95
    alone = fitted.layers[0]
    assert compute_ood_metrics(alone.score(shallow[2]), alone.score(shallow[2])).values["auroc"] == 0.5


def sets() -> Iterator[tuple[str, JudgedSet]]:
    random = np.random.default_rng(0)
    yield "scanner", JudgedSet("covariate", random.normal(-1, 1, 80))
    yield "hospital", JudgedSet("covariate", random.normal(-0.5, 1, 40))
    yield "class", JudgedSet("near", random.normal(-1, 1, 60))
    yield "variant", JudgedSet("near", random.normal(0, 1, 10))
    yield "digits", JudgedSet("far", random.normal(-4, 1, 50))


def test_near_and_far_are_means_over_sets_once_with_covariate_sets_inside() -> None:
    inside, others = np.random.default_rng(1).normal(size=100), dict(sets())
    found = compute_near_far(inside, others)
    assert found.undefined == {}
    spectrum = np.concatenate([inside, others["scanner"].scores, others["hospital"].scores])
    for prefix, images in (("", inside), ("_full_spectrum", spectrum)):
        for role, names in (("near", ("class", "variant")), ("far", ("digits",))):
            expected = []
            for name in names:
                scores = np.concatenate([images, others[name].scores])
                expected.append(roc_auc_score(np.arange(len(scores)) < len(images), scores))
            assert found.values[f"{role}{prefix}/auroc"] == pytest.approx(np.mean(expected))
    assert found.values["near/auroc"] > found.values["near_full_spectrum/auroc"]


def test_a_role_that_no_set_has_is_a_reason() -> None:
    found = compute_near_far(np.arange(5.0), {"digits": JudgedSet("far", np.arange(3.0))})
    assert found.undefined["near/auroc"] == "no set has the role near"
    assert found.undefined["far_full_spectrum/auroc"] == "no set has the role covariate"
    assert set(found.values) == {f"far/{name}" for name in ood.OOD}
    empty = compute_near_far(np.arange(5.0), {"digits": JudgedSet("far", np.array([]))})
    assert empty.undefined["far/auroc"] == "digits: there are no other images"
