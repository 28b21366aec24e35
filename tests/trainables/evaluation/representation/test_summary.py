from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import NETWORK, random_dataset
from trainables.config import Execution
from trainables.data.dataset import Dataset
from trainables.errors import ConfigError
from trainables.evaluation.metrics import REPRESENTATION_METRICS, find_metric
from trainables.evaluation.representation.alignment_uniformity import compute_alignment, compute_uniformity
from trainables.evaluation.representation.layers import PENULTIMATE, check_layers, choose_layers
from trainables.evaluation.representation.same_class import compute_class_alignment
from trainables.evaluation.representation.similarity import compare_features
from trainables.evaluation.representation.spectrum import CovarianceSum
from trainables.evaluation.representation.summary import RepresentationSummary, choose_rows, describe_layers
from trainables.evaluation_config import EvaluationConfig, RepresentationConfig
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder

DATA = random_dataset()


def build(seed: int, name: str = NETWORK) -> Classifier:
    torch.manual_seed(seed)
    return build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=16)


@pytest.fixture(scope="module")
def networks() -> tuple[Classifier, Classifier]:
    return build(0), build(1)


def describe(
    networks: tuple[Classifier, Classifier], path: Path, batch_size: int = 7, data: Dataset = DATA, **settings: object
) -> RepresentationSummary:
    config = EvaluationConfig(shifts=(), representation=RepresentationConfig.model_validate(settings))
    execution = Execution(cache_dir=path, evaluation_batch_size=batch_size)
    return describe_layers(*networks, data, config, Folder(path), execution, torch.float32)


def test_numbers_are_those_of_the_features(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    summary = describe(networks, tmp_path)
    test = DATA.splits["test"]
    images = torch.from_numpy(test.images.copy())
    with torch.inference_mode():
        trained, initial = (each.eval().forward_features(each.normalise(images))[1] for each in networks)
    found = {name.removeprefix("representation/"): value for name, value in summary.metrics.items()}
    assert found["uniformity"] == pytest.approx(compute_uniformity(trained), rel=1e-5)
    pairs = [(i, j) for i in range(24) for j in range(i) if test.labels[i] == test.labels[j]]
    one, other = (trained[list(each)] for each in zip(*pairs, strict=True))
    assert found["alignment"] == pytest.approx(compute_alignment(one, other), rel=1e-5)
    similarity = found["cka_initial"], found["procrustes_initial"]
    assert similarity == pytest.approx(compare_features(trained, initial), rel=1e-4)
    covariance = CovarianceSum()
    covariance.update(trained)
    spectrum = covariance.compute_spectrum()
    assert found["effective_rank"] == pytest.approx(spectrum.compute_effective_rank(), rel=1e-4)
    assert found["condition_number"] == pytest.approx(spectrum.compute_condition_number(), rel=1e-3)
    assert found["alpha"] == pytest.approx(spectrum.compute_alpha(), rel=1e-3)
    assert set(found) == set(REPRESENTATION_METRICS)
    for name, value in found.items():
        metric = find_metric(f"representation/{name}")
        assert metric.low <= value <= metric.high


def test_the_file_describes_every_layer(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    summary = describe(networks, tmp_path, num_images=20)
    stored = json.loads(Folder(tmp_path).read("representation.json"))
    assert stored == summary.as_json()
    assert stored["num_images"] == 20
    assert list(stored["layers"]) == ["conv1.0", "stage2", "stage3", "conv5", PENULTIMATE]
    assert np.shape(stored["cka_initial"]) == (5, 5)
    assert len(stored["procrustes_initial"]) == 5
    images = torch.from_numpy(DATA.splits["test"].images[choose_rows(24, 20)])
    outputs: list[torch.Tensor] = []
    with torch.inference_mode():
        hook = networks[0].backbone.stage3.register_forward_hook(lambda *found: outputs.append(found[2]))
        networks[0](networks[0].normalise(images))
    hook.remove()
    samples = outputs[0].permute(0, 2, 3, 1).flatten(0, 2).numpy()  # 4 × 4 positions: all of them
    expected = np.linalg.eigvalsh(np.cov(samples.T))[::-1]
    layer = stored["layers"]["stage3"]
    assert layer["channels"] == samples.shape[1] == 96
    np.testing.assert_allclose(layer["eigenvalue"], expected[np.array(layer["rank"]) - 1], rtol=1e-3, atol=1e-9)


def test_a_network_is_as_its_initial_weights_if_nothing_was_learned(
    networks: tuple[Classifier, Classifier], tmp_path: Path
) -> None:
    same = describe((networks[0], networks[0]), tmp_path, batch_size=24)
    assert np.diag(np.array(same.cka_initial)) == pytest.approx(1.0, abs=1e-9)
    assert same.procrustes_initial == pytest.approx([0.0] * 5, abs=1e-9)
    assert np.abs(same.cka_initial).max() <= 1.0


def test_batches_do_not_matter(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    first, second = (describe(networks, tmp_path, batch_size=size).metrics for size in (5, 24))
    assert first == pytest.approx(second, rel=1e-4)


def test_what_is_undefined_is_said(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    assert describe(networks, tmp_path, num_images=0) == RepresentationSummary()
    few = describe(networks, tmp_path, num_images=3)
    assert few.metrics == {}
    assert few.undefined["representation/alpha"] == "there are 3 images, expected 4 or more"
    some = describe(networks, tmp_path, num_images=12, layers=("stage2",))
    assert some.undefined == {
        "representation/alpha": "it needs 24 images and 23 features, or more",
        "representation/first_kurtosis": "it needs a first convolution, among the layers",
    }
    with pytest.raises(ConfigError, match=r"evaluation\.representation\.layers: the network has no layer 'layer9'"):
        describe(networks, tmp_path, layers=("layer9",))


def test_images_are_taken_from_the_whole_set() -> None:
    assert choose_rows(10, 4).tolist() == [0, 2, 5, 7]
    assert choose_rows(3, 4).tolist() == [0, 1, 2]


def test_alignment_of_classes_leaves_out_images_without_one() -> None:
    features = torch.eye(4)
    assert compute_class_alignment(features, np.array([0, 0, 1, -1])) == pytest.approx(2.0)
    assert compute_class_alignment(features, np.array([0, 1, 2, -1])) is None


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ("conv1", "layer1", "layer2", "layer3", "layer4")),
        ("mobilenet_v3_small", ("features.0.0", "features.1", "features.3", "features.8", "features.12")),
        ("timm/test_vit", ()),
    ],
)
def test_layers_are_the_ends_of_the_stages(name: str, layers: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(name=name, stem="original" if layers else "auto"), num_classes=2, channels=1, image_size=64
    )
    images = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    found = choose_layers(model, images)
    if layers:
        assert found == layers
    else:
        assert found[0] == "patch_embed.proj"
        assert found[-1].startswith("blocks.")
    check_layers(model, found, images)
    with pytest.raises(ConfigError, match="gives maps of positions or tokens"):
        check_layers(model, [model.head_name], images)
