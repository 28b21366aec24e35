"""Pixel scores against their formulas, and their sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.evaluation.confidence import CONFIDENCE_SCORES
from trainables.evaluation.segmentation_ood.pixel_scores import (
    PIXEL_SCORES,
    compute_confidences,
    compute_uncertainties,
    compute_uncertainties_of_passes,
)
from trainables.models.mc_dropout import RunningScores


def draw_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [2, 4])
def test_maps_are_their_formulas(classes: int) -> None:
    logits = draw_logits(3, classes, 5, 6)
    found = compute_uncertainties(logits)
    raw = logits.double().numpy()
    shares = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    ordered = np.sort(shares, axis=1)
    expected = {
        "msr": 1 - ordered[:, -1],
        "predictive_entropy": -(shares * np.log(shares)).sum(1),
        "energy": -np.log(np.exp(raw).sum(1)),
        "margin": 1 - (ordered[:, -1] - ordered[:, -2]),
    }
    assert set(found) == set(expected) == set(PIXEL_SCORES)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_maps_of_passes_are_the_formulas_over_all_of_them() -> None:
    logits = draw_logits(7, 2, 3, 4, 5)
    running = RunningScores(torch.float32)
    for each in logits:
        running.add(each)
    shares = logits.double().softmax(2).numpy()
    mean = shares.mean(0)
    entropy, expected = -(mean * np.log(mean)).sum(1), -(shares * np.log(shares)).sum(2).mean(0)
    found = compute_uncertainties_of_passes(running, "ensemble")
    np.testing.assert_allclose(running.mean, mean, atol=1e-6)
    for name, values in {
        "ensemble_msr": 1 - mean.max(1),
        "ensemble_entropy": entropy,
        "ensemble_expected_entropy": expected,
        "ensemble_mutual_information": entropy - expected,
    }.items():
        np.testing.assert_allclose(found[name], values, atol=2e-6, err_msg=name)
    assert len(found) == 4
    equal = RunningScores(torch.float32)
    for _ in range(3):
        equal.add(logits[0])
    assert compute_uncertainties_of_passes(equal, "mc_dropout")["mc_dropout_mutual_information"].max() < 1e-6


def test_a_surer_image_has_more_confidence_by_every_score() -> None:
    unsure = draw_logits(1, 3, 12, 12)
    logits = torch.cat([unsure, 4 * unsure])
    running = RunningScores()
    running.add(logits)
    running.add(logits.flip(1) * torch.tensor([1.0, 0.0])[:, None, None, None])  # the second image: no class is liked
    passes = compute_uncertainties_of_passes(running, "mc_dropout")
    found = compute_confidences(compute_uncertainties(logits), logits.argmax(1))
    assert len(found) == 4 * 4
    for name, values in found.items():
        assert values[1] > values[0], name
    for name in {*compute_uncertainties(logits), *passes}:
        assert name in CONFIDENCE_SCORES
    image = compute_confidences(passes, logits.argmax(1))["mc_dropout_entropy/image"]
    np.testing.assert_allclose(image, -passes["mc_dropout_entropy"].mean(dim=(1, 2)))


def test_half_precision_is_widened() -> None:
    logits = draw_logits(2, 3, 4, 4).bfloat16()
    for name, values in compute_uncertainties(logits).items():
        assert torch.equal(values, compute_uncertainties(logits.float())[name])
