"""Names of the scores of segmentations, which planning lists without torch."""

from __future__ import annotations

from trainables.evaluation.confidence import OF_LAYERS, OF_PIXELS, list_segmentation_scores
from trainables.evaluation.segmentation_ood.detectors import DETECTORS
from trainables.evaluation.segmentation_ood.pixel_scores import PIXEL_SCORES


def test_they_are_those_that_are_computed() -> None:
    assert tuple(PIXEL_SCORES) == OF_PIXELS
    assert tuple(DETECTORS) == OF_LAYERS
    assert "spectral_signature.all" not in list_segmentation_scores([])
    assert list_segmentation_scores(["layer1"])[-2:] == ["spectral_signature.layer1", "spectral_signature.all"]
