from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import random_dataset
from trainables.config import Execution
from trainables.errors import ConfigError
from trainables.evaluation.metrics import REPRESENTATION_METRICS, find_metric, is_higher_better
from trainables.evaluation.representation.alignment_uniformity import compute_alignment, compute_uniformity
from trainables.evaluation.representation.layers import PENULTIMATE, check_layers, choose_layers
from trainables.evaluation.representation.same_class import compute_class_alignment
from trainables.evaluation.representation.similarity import compare_features
from trainables.evaluation.representation.spectrum import CovarianceSum
from trainables.evaluation.representation.summary import RepresentationSummary, choose_rows, describe_representation
from trainables.evaluation.robustness import evaluate_model
from trainables.evaluation_config import EvaluationConfig, RepresentationConfig
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder

#: 96 features.
NETWORK = "timm/test_resnet"
DATA = random_dataset()


def build(seed: int, name: str = NETWORK) -> Classifier:
    torch.manual_seed(seed)
    return build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=16)


@pytest.fixture(scope="module")
def networks() -> tuple[Classifier, Classifier]:
    return build(0), build(1)


def describe(
    networks: tuple[Classifier, Classifier],
    path: Path,
    batch_size: int = 7,
    sets: tuple[str, ...] = ("test",),
    **settings: object,
) -> RepresentationSummary:
    """Evaluate the first network, and compare it with the second one if there are layers."""
    representation = RepresentationConfig.model_validate({"layers": "auto"} | settings)
    config = EvaluationConfig(shifts=(), store_features=sets, representation=representation)
    folder, execution = Folder(path), Execution(cache_dir=path / "cache", evaluation_batch_size=batch_size)
    evaluate_model(networks[0], DATA, config, folder=folder, execution=execution, precision=torch.float32)
    initial = networks[1] if representation.layers else None
    return describe_representation(networks[0], initial, DATA, config, folder, execution, torch.float32)


def test_numbers_are_those_of_the_features(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    summary = describe(networks, tmp_path)
    test = DATA.splits["test"]
    images = torch.from_numpy(test.images.copy())
    with torch.inference_mode():
        found = (each.eval().forward_features(each.normalise(images))[1] for each in networks)
        trained, initial = (each.half() for each in found)  # as stored
    found = {name.removeprefix("representation/"): value for name, value in summary.metrics.items()}
    assert found["uniformity"] == pytest.approx(compute_uniformity(trained), rel=1e-3)
    pairs = [(i, j) for i in range(24) for j in range(i) if test.labels[i] == test.labels[j]]
    one, other = (trained[list(each)] for each in zip(*pairs, strict=True))
    assert found["alignment"] == pytest.approx(compute_alignment(one, other), rel=1e-3)
    similarity = found["cka_initial"], found["procrustes_initial"]
    assert similarity == pytest.approx(compare_features(trained, initial), abs=1e-3)
    covariance = CovarianceSum()
    covariance.update(trained)
    spectrum = covariance.compute_spectrum()
    assert found["effective_rank"] == pytest.approx(spectrum.compute_effective_rank(), rel=1e-3)
    assert found["condition_number"] == pytest.approx(spectrum.compute_condition_number(), rel=1e-2)
    assert found["alpha"] == pytest.approx(spectrum.compute_alpha(), rel=1e-2)
    assert set(found) == set(REPRESENTATION_METRICS)
    for name, value in found.items():
        metric = find_metric(f"representation/{name}")
        assert metric.low <= value <= metric.high


def test_the_file_describes_every_layer(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    summary = describe(networks, tmp_path, num_images=20)
    stored = json.loads(Folder(tmp_path).read("representation.json"))
    assert stored == summary.as_json()
    assert stored["num_images"] == 20
    assert list(stored["layers"]) == ["conv1.0", "layer1", "layer2", "layer3", "layer4", PENULTIMATE]
    assert stored["compared"] == ["layer1", "layer2", "layer3", "layer4", PENULTIMATE]
    assert np.shape(stored["cka_initial"]) == (5, 5)
    assert len(stored["procrustes_initial"]) == 5
    images = torch.from_numpy(DATA.splits["test"].images[choose_rows(24, 20)])
    outputs: list[torch.Tensor] = []
    with torch.inference_mode():
        hook = networks[0].backbone.layer3.register_forward_hook(lambda *found: outputs.append(found[2]))
        networks[0](networks[0].normalise(images))
    hook.remove()
    samples = outputs[0].permute(0, 2, 3, 1).flatten(0, 2).numpy()  # 4 × 4 positions: all of them
    expected = np.linalg.eigvalsh(np.cov(samples.T))[::-1]
    layer = stored["layers"]["layer3"]
    assert layer["channels"] == samples.shape[1] == 192
    np.testing.assert_allclose(layer["eigenvalue"], expected[np.array(layer["rank"]) - 1], rtol=1e-3, atol=1e-9)


def test_a_network_is_as_its_initial_weights_if_nothing_was_learned(
    networks: tuple[Classifier, Classifier], tmp_path: Path
) -> None:
    same = describe((networks[0], deepcopy(networks[0])), tmp_path, batch_size=24)
    assert np.diag(np.array(same.cka_initial)) == pytest.approx(1.0, abs=1e-9)
    assert same.procrustes_initial == pytest.approx([0.0] * 5, abs=1e-9)
    assert np.abs(same.cka_initial).max() <= 1.0


def test_batches_do_not_matter(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    first, second = (describe(networks, tmp_path, batch_size=size).metrics for size in (5, 24))
    assert first == pytest.approx(second, rel=1e-2)


def test_what_is_undefined_is_said(networks: tuple[Classifier, Classifier], tmp_path: Path) -> None:
    none = describe(networks, tmp_path, layers=())
    assert len(none.metrics) == 5
    assert set(none.layers) == {PENULTIMATE}
    why = "evaluation.representation.layers names no layers"
    assert none.undefined == {
        f"representation/{name}": why for name in ("first_kurtosis", "cka_initial", "procrustes_initial")
    }
    some = describe(networks, tmp_path, num_images=12, layers=("layer2",))
    assert some.undefined == {
        "representation/alpha": "it needs 24 images and 23 features, or more",
        "representation/first_kurtosis": "it needs a first convolution, among the layers",
    }
    bare = describe(networks, tmp_path, sets=(), layers=("conv1.0",))
    assert set(bare.metrics) == {
        f"representation/{name}" for name in ("first_kurtosis", "cka_initial", "procrustes_initial")
    }
    assert (
        bare.undefined["representation/alpha"] == "no features of test are stored: add it to evaluation.store_features"
    )
    with pytest.raises(ConfigError, match=r"evaluation\.representation\.layers: the network has no layer 'layer9'"):
        describe(networks, tmp_path, layers=("layer9",))
    with pytest.raises(ConfigError, match="found layer2, layer2; expected every layer once"):
        describe(networks, tmp_path, layers=("layer2", "layer2"))


def test_what_only_describes_has_no_better_direction() -> None:
    assert is_higher_better("representation/effective_rank")
    assert not is_higher_better("representation/uniformity")
    with pytest.raises(ConfigError, match="'representation/alpha', which only describes"):
        is_higher_better("representation/alpha")


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
