"""The summary of a segmentation model: numbers by hand, names that the table of metrics knows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from trainables.errors import DataError
from trainables.evaluation.confidence import find_title
from trainables.evaluation.detection.risk_coverage import compute_ood_metrics, compute_risk_metrics
from trainables.evaluation.metrics import find_metric
from trainables.evaluation.segmentation_ood.summary import (
    JudgedCases,
    summarise_segmentation_detection,
)

SCORES = ("msr/foreground", "spectral_signature/encoder.layer4", "pairwise_dice")


def draw(name: str, count: int, *, seed: int, dice: bool = True, shift: str = "identity/0") -> JudgedCases:
    random = np.random.default_rng(seed)
    quality = random.random(count)
    confidences = {score: quality + random.normal(0, 0.3, count) - (not dice) for score in SCORES}
    return JudgedCases(name, confidences, quality if dice else None, shift)


def test_every_number_is_that_of_its_cases() -> None:
    test = draw("test", 50, seed=1)
    test.dice[:5] = np.nan  # type: ignore[index]
    cases = [
        draw("val", 40, seed=0), test, draw("test", 50, seed=2, shift="gaussian_noise/3"),
        draw("other_camera", 30, seed=3), draw("digits", 20, seed=4, dice=False),
    ]  # fmt: skip
    found = summarise_segmentation_detection(cases, roles={"other_camera": "covariate", "digits": "far"})
    assert found.undefined == {}
    rows = {(row["score"], row["set"], row["shift"]): row for row in found.failures}
    assert len(rows) == 3 * 4
    row = rows["msr.foreground", "test", "identity"]
    confidence, dice = test.confidences["msr/foreground"][5:], test.dice[5:]  # type: ignore[index]
    assert (row["num_images"], row["mean_dice"]) == (45, pytest.approx(dice.mean()))
    assert row["metrics"]["spearman"] == pytest.approx(spearmanr(confidence, dice).statistic)
    assert row["metrics"]["augrc"] == compute_risk_metrics(confidence, 1 - dice).values["augrc"]
    assert found.metrics["failure/msr.foreground/augrc"] == row["metrics"]["augrc"]
    judged = {(row["score"], row["set"], row["shift"]): row for row in found.ood}
    assert len(judged) == 3 * 3
    far = judged["pairwise_dice", "digits", "identity"]
    inside, outside = (cases[at].confidences["pairwise_dice"] for at in (1, 4))
    assert far["role"] == "far"
    threshold = np.quantile(cases[0].confidences["pairwise_dice"], 0.05)
    assert far["metrics"] == compute_ood_metrics(inside, outside).values | {
        "sensitivity": (outside < threshold).mean(),
        "specificity": (inside >= threshold).mean(),
    }
    assert found.metrics["ood/pairwise_dice/digits/auroc"] == far["metrics"]["auroc"]
    json.dumps(found.as_json(), allow_nan=False)
    for name in found.metrics:
        assert find_metric(name).name in ("augrc", "auroc")
    assert "ood/spectral_signature.encoder.layer4/other_camera/auroc" in found.metrics
    assert "validation/failure/spectral_signature.encoder.layer4/augrc" in found.metrics
    assert find_title("spectral_signature.encoder.layer4") == "spectral signature, encoder.layer4"
    assert find_title("msr.foreground") == "maximum softmax response, predicted foreground"


def test_what_is_missing_is_said() -> None:
    val, test = draw("val", 5, seed=0), draw("test", 5, seed=1)
    with pytest.raises(DataError, match="without the set test"):
        summarise_segmentation_detection([val], roles={})
    del test.confidences["pairwise_dice"]  # type: ignore[attr-defined]
    test.dice[:] = np.nan  # type: ignore[index]
    found = summarise_segmentation_detection(
        [val, test, draw("digits", 5, seed=2, dice=False)], roles={"digits": "far"}
    )
    assert found.undefined["pairwise_dice"] == "test have no such score"
    assert found.undefined["msr.foreground"] == "failures: no case of val, or none of test, has a Dice"
    assert "ood/msr.foreground/digits/auroc" in found.metrics
    assert not any(name.startswith("failure/") for name in found.metrics)


def test_metrics_at_the_threshold_and_the_correlation_are_in_the_table() -> None:
    assert find_metric("failure/msr.foreground/spearman").title == "Spearman of score and Dice"
    assert find_metric("ood/knn.all/digits/sensitivity").title == "OOD sensitivity"
