"""Detectors on recorded layers: what they tell apart, leave-one-out, several layers, thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.errors import ConfigError, DataError
from trainables.evaluation.confidence import CONFIDENCE_SCORES
from trainables.evaluation.detection.risk_coverage import compute_ood_metrics
from trainables.evaluation.detection.spectral import spectral_signature
from trainables.evaluation.ood import fix_rejection
from trainables.evaluation.segmentation_ood.detectors import DETECTORS, Recorded, choose_neighbour, score_sets

NAMES = ["spectral_signature", "spectral_signature/all", "mahalanobis", "mahalanobis/shallow", "knn", "knn/all"]


def record(maps: np.ndarray, random: np.random.Generator) -> Recorded:
    tensor = torch.from_numpy(maps.astype(np.float32))
    found: dict[str, np.ndarray] = {"histogram": random.dirichlet(np.ones(8), len(maps)).astype(np.float32)}
    for layer, values in (("deep", tensor), ("shallow", tensor[:, :4].repeat(1, 1, 2, 2) + 1)):
        found[f"pooled/{layer}"] = values.flatten(2).mean(2).numpy()
        found[f"spectral/{layer}"] = spectral_signature(values).float().numpy()
    return found


@pytest.fixture(scope="module")
def sets() -> dict[str, Recorded]:
    random = np.random.default_rng(0)
    scale = np.exp(random.normal(size=(1, 6, 1, 1)))
    usual = {
        name: scale * random.normal(1, 1, size=(n, 6, 8, 8)) for name, n in (("train", 60), ("val", 40), ("test", 40))
    }
    low = (random.normal(size=(30, 6, 2)) @ random.normal(size=(30, 2, 64))).reshape(30, 6, 8, 8)
    return {name: record(maps, random) for name, maps in usual.items()} | {"foreign": record(low, random)}


@pytest.mark.parametrize("name", NAMES)
def test_foreign_images_are_told_from_the_test_set(name: str, sets: dict[str, Recorded]) -> None:
    found = score_sets(name, sets, bottleneck="deep")
    assert compute_ood_metrics(found["test"], found["foreign"]).values["auroc"] > 0.9
    threshold = fix_rejection(found["val"])
    assert (found["val"] < threshold).mean() == pytest.approx(0.05)
    assert threshold == pytest.approx(np.percentile(found["val"], 5))
    assert ("train" in found) == (not name.startswith("mahalanobis"))
    if "train" in found:  # left out of themselves, they are like test images
        assert compute_ood_metrics(found["test"], found["train"]).values["auroc"] == pytest.approx(0.5, abs=0.2)


def test_training_images_are_left_out_of_what_they_are_compared_with(sets: dict[str, Recorded]) -> None:
    again = {**sets, "again": sets["train"]}
    found = score_sets("spectral_signature", again, bottleneck="deep")
    np.testing.assert_array_equal(found["again"], np.zeros(60))
    signatures = sets["train"]["spectral/deep"].astype(np.float64)
    distances = np.linalg.norm(signatures[:, None] - signatures[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (found["train"] < 0).all()
    np.testing.assert_allclose(found["train"], -distances.min(axis=1), rtol=1e-6)


def test_all_layers_are_the_mean_of_their_scores_in_standard_deviations_of_validation(
    sets: dict[str, Recorded],
) -> None:
    found = score_sets("spectral_signature/all", sets, bottleneck="deep")
    single = [score_sets(f"spectral_signature/{layer}", sets, bottleneck="deep") for layer in ("deep", "shallow")]
    for name in ("train", "val", "test", "foreign"):
        expected = np.mean([(one[name] - one["val"].mean()) / one["val"].std() for one in single], axis=0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-9)
    bottleneck = score_sets("spectral_signature", sets, bottleneck="shallow")
    np.testing.assert_array_equal(bottleneck["test"], single[1]["test"])


def test_one_normal_distribution_has_the_distance_of_its_formula() -> None:
    random = np.random.default_rng(1)
    train, other = random.normal(size=(5000, 3)) @ random.normal(size=(3, 3)), random.normal(size=(20, 3))
    kept = {"train": {"pooled/a": train}, "val": {"pooled/a": other}}
    away = other - train.mean(axis=0)
    expected = -np.einsum("ij,jk,ik->i", away, np.linalg.inv(np.cov(train.T)), away)
    np.testing.assert_allclose(score_sets("mahalanobis", kept, bottleneck="a")["val"], expected, rtol=0.05)  # shrunk


def test_the_histogram_needs_no_layer(sets: dict[str, Recorded]) -> None:
    bare = {name: {"histogram": recorded["histogram"]} for name, recorded in sets.items()}
    found = score_sets("intensity_histogram", bare, bottleneck="deep")
    first, reference = sets["test"]["histogram"][0], sets["train"]["histogram"]
    assert found["test"][0] == pytest.approx(-np.linalg.norm(reference - first, axis=1).min(), rel=1e-6)
    with pytest.raises(ConfigError, match=r"layer 'deep' was not recorded; expected one of those that were \(none\)"):
        score_sets("knn", bare, bottleneck="deep")
    with pytest.raises(ConfigError, match="looked for the detector 'intensity_histogram/deep'"):
        score_sets("intensity_histogram/deep", sets, bottleneck="deep")
    constant = {
        name: {"pooled/a": each["pooled/deep"], "pooled/b": np.ones((len(each["pooled/deep"]), 2))}
        for name, each in sets.items()
    }
    with pytest.raises(DataError, match=r"knn/all of the layers pooled/a, pooled/b: .*no spread"):
        score_sets("knn/all", constant, bottleneck="a")


def test_detectors_are_in_the_table_of_scores_and_few_images_have_one_neighbour() -> None:
    assert set(DETECTORS) < set(CONFIDENCE_SCORES)
    assert [choose_neighbour(count) for count in (2, 1499, 50_000)] == [1, 1, 50]
