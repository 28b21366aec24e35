from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import NETWORK, random_dataset
from trainables.config import EvaluationConfig, Execution
from trainables.errors import ConfigError
from trainables.evaluation.detection.spectral import spectral_signature
from trainables.evaluation.detection.summary import summarise_detection
from trainables.evaluation.layers import LayerRecorder, check_layers
from trainables.evaluation.ood import compute_intensity_histograms
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.robustness import evaluate_model, list_sets
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder

LAYERS = ("stage2", "stage3")
CONFIG = EvaluationConfig(shifts=("contrast_down",), severities=(3,), store_layers=LAYERS)


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=NETWORK), num_classes=3, channels=1, image_size=16)


def evaluate(model: Classifier, folder: Folder, config: EvaluationConfig, batch_size: int = 10) -> list[str]:
    data = random_dataset()
    execution = Execution(cache_dir=Path(folder.uri) / "cache", evaluation_batch_size=batch_size)
    evaluate_model(model, data, config, folder=folder, execution=execution, precision=torch.float32)
    return list_sets(data, config)


def test_means_and_signatures_are_those_of_the_layers_output(model: Classifier, tmp_path: Path) -> None:
    evaluate(model, Folder(tmp_path), CONFIG)
    images = random_dataset().splits["test"].images
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda _module, _inputs, output: outputs.update({name: output})

    handles = [model.backbone.get_submodule(name).register_forward_hook(keep(name)) for name in LAYERS]
    with torch.inference_mode():
        model(model.normalise(torch.from_numpy(images.copy())))
    for handle in handles:
        handle.remove()
    test = load_predictions(Folder(tmp_path), "test")
    assert set(test.layers) == {"histogram", *(f"{kind}/{name}" for kind in ("pooled", "spectral") for name in LAYERS)}
    for name, output in outputs.items():
        np.testing.assert_allclose(test.layers[f"pooled/{name}"][0], output.mean(dim=(2, 3)).numpy(), atol=1e-5)
        expected = spectral_signature(output).numpy()
        np.testing.assert_allclose(test.layers[f"spectral/{name}"][0], expected, atol=1e-3)
    assert np.array_equal(test.layers["histogram"][0], compute_intensity_histograms(np.asarray(images)))


def test_shifts_are_recorded_with_their_features_whatever_the_batch(model: Classifier, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"store_features": ("train", "val", "test", "external", "ood", "shifts")})
    for name, size in (("a", 7), ("b", 24)):
        evaluate(model, Folder(tmp_path / name), config, batch_size=size)
    first, second = (load_predictions(Folder(tmp_path / name), "test") for name in ("a", "b"))
    for key, values in first.layers.items():
        assert len(values) == 2  # unshifted, and under the shift
        np.testing.assert_allclose(values, second.layers[key], atol=1e-3)
    assert not np.array_equal(first.layers["histogram"][0], first.layers["histogram"][1])
    assert len(load_predictions(Folder(tmp_path / "a"), "val").layers["histogram"]) == 1


def test_scores_of_layers_and_pixels_come_from_what_is_stored(model: Classifier, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    names = evaluate(model, folder, CONFIG)
    scores = ["mahalanobis_layers", "spectral_signature", "intensity_histogram"]
    summary = summarise_detection(folder, names, scores=scores, roles={"elsewhere": "covariate"})
    assert summary.undefined == {}
    train, test = (load_predictions(folder, name) for name in ("train", "test"))
    nearest = np.linalg.norm(train.layers["histogram"][0][None] - test.layers["histogram"][0][:, None], axis=2).min(1)
    rows = [row for row in summary.failures if row["score"] == "intensity_histogram" and row["set"] == "test"]
    assert [row["shift"] for row in rows] == ["identity"]  # nothing is stored of the shifted images
    is_correct = test.logits[0].argmax(1) == test.labels
    pairs = nearest[~is_correct][None] - nearest[is_correct][:, None]
    assert rows[0]["metrics"]["failure_auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6)
    bare = CONFIG.model_copy(update={"store_layers": ()})
    names = evaluate(model, Folder(tmp_path / "bare"), bare)
    summary = summarise_detection(Folder(tmp_path / "bare"), names, scores=scores, roles={"elsewhere": "covariate"})
    assert set(summary.undefined) == {"mahalanobis_layers", "spectral_signature"}
    assert "evaluation.store_layers" in summary.undefined["spectral_signature"]


def test_layers_that_are_not_there_or_give_no_map_are_refused(model: Classifier) -> None:
    images = np.array(random_dataset().splits["test"].images[:2])
    check_layers(model, LAYERS, images)
    with pytest.raises(ConfigError, match=r"no layer 'layer9'; expected a module of it: one of conv1, .*stage2"):
        LayerRecorder(model.backbone, ["layer9"])
    with pytest.raises(ConfigError, match=r"recorded fc, whose output is \(2, 3\)"):
        check_layers(model, ["fc"], images)
