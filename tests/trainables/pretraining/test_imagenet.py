from __future__ import annotations

import hashlib
import os
import pickle
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from trainables.errors import ConfigError, WeightsUnavailableError
from trainables.model_config import ModelConfig
from trainables.models.networks import build_model
from trainables.pretraining.imagenet import (
    compute_file_sha256,
    describe_weights,
    find_missing_weights,
    load_imagenet,
)
from trainables.pretraining_config import ImageNetPretraining, ScratchPretraining

NETWORK, HUB_FILE = "shufflenet_v2_x0_5", "shufflenetv2_x0.5-f707e7126e.pth"
TIMM_NETWORK, TIMM_REPOSITORY = "timm/test_resnet", "models--timm--test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Every cache is empty, and every request fails at once; the list has the addresses asked for."""
    asked: list[str] = []

    def refuse(request: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(request.full_url if isinstance(request, urllib.request.Request) else request)
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # huggingface_hub reads its cache's place when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return models.get_model(NETWORK, weights=None).state_dict()


def assert_fits(loaded: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """The weights arrive in the network, the head does not."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=NETWORK), num_classes=3, channels=3, image_size=28, imagenet=loaded)
    torch.manual_seed(0)
    scratch = build_model(ModelConfig(name=NETWORK), num_classes=3, channels=3, image_size=28)
    assert all(torch.equal(value, state[name]) for name, value in model.encoder_state().items())
    assert torch.equal(model.head.weight, scratch.head.weight)


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped pth"])
def test_weights_from_a_file(tmp_path: Path, state: dict[str, torch.Tensor], form: str, no_network: list[str]) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": dict(state), "epoch": 3} if form == "wrapped pth" else state, path)
    config = ImageNetPretraining(file=path)
    assert find_missing_weights(NETWORK, config) is None
    assert_fits(load_imagenet(NETWORK, config), state)
    assert no_network == []


def test_a_changed_file_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    digest = compute_file_sha256(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_imagenet(NETWORK, ImageNetPretraining(file=path, file_sha256=digest))
    with pytest.raises(ConfigError, match="has changed since the study was planned"):
        load_imagenet(NETWORK, ImageNetPretraining(file=path, file_sha256="0" * 64))


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, protocol: str) -> None:
    path, target = tmp_path / "bomb.pth", tmp_path / "exploded"
    content = {"conv1.weight": Bomb(target)}
    torch.save(content, path) if protocol == "torch" else path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ConfigError, match=r"bomb.pth and found no plain state dict"):
        load_imagenet(NETWORK, ImageNetPretraining(file=path))
    assert not target.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + b"\0" * 200])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="found no plain state dict"):
        load_imagenet(NETWORK, ImageNetPretraining(file=tmp_path / name))


def test_a_file_with_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds list, expected a state dict of tensors"):
        load_imagenet(NETWORK, ImageNetPretraining(file=tmp_path / "w.pth"))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    config = ImageNetPretraining(file=tmp_path / "none.pth")
    assert "there is no file" in (find_missing_weights(NETWORK, config) or "")
    with pytest.raises(WeightsUnavailableError, match="there is no file"):
        load_imagenet(NETWORK, config)


def test_weights_of_another_network_name_the_misfits(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({**state, "conv1.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "w.safetensors")
    loaded = load_imagenet(NETWORK, ImageNetPretraining(file=tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match=r"conv1.0.weight \(8, 3, 3, 3\) instead of \(24, 3, 3, 3\)"):
        build_model(ModelConfig(name=NETWORK), num_classes=3, channels=1, image_size=28, imagenet=loaded)


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    name = "features.denseblock1.denselayer1.norm1.weight"
    save_file({name.replace("norm1", "norm.1"): torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(load_imagenet("densenet121", ImageNetPretraining(file=tmp_path / "w.safetensors"))) == [name]


def test_weights_from_the_hub_cache(tmp_path: Path, state: dict[str, torch.Tensor], no_network: list[str]) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / HUB_FILE)
    assert find_missing_weights(NETWORK, ImageNetPretraining()) is None
    assert_fits(load_imagenet(NETWORK, ImageNetPretraining()), state)
    assert no_network == []


def test_weights_of_a_hub_have_a_digest_of_their_values(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / HUB_FILE)
    found = describe_weights(NETWORK, ImageNetPretraining())
    save_file(dict(reversed(state.items())), tmp_path / "w.safetensors")
    assert describe_weights(NETWORK, ImageNetPretraining(file=tmp_path / "w.safetensors")) == found
    name = next(iter(state))
    torch.save(state | {name: state[name] + 1e-3}, folder / HUB_FILE)
    other = describe_weights(NETWORK, ImageNetPretraining())
    assert len(other["published_weights_sha256"]) == 64
    assert other != found
    assert describe_weights(NETWORK, ScratchPretraining()) == {}


def test_a_damaged_cache_says_which_file(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / HUB_FILE).write_bytes(b"cut short")
    with pytest.raises(WeightsUnavailableError, match=rf"{HUB_FILE} and failed.*remove a damaged file"):
        load_imagenet(NETWORK, ImageNetPretraining())


def test_without_network_the_reason_is_given_at_once(no_network: list[str]) -> None:
    reason = find_missing_weights(NETWORK, ImageNetPretraining())
    assert reason is not None
    assert HUB_FILE in reason
    assert "cannot be reached (no network in tests)" in reason
    with pytest.raises(WeightsUnavailableError, match="on_unavailable: skip"):
        load_imagenet(NETWORK, ImageNetPretraining())
    assert len(no_network) == 2


def test_timm_without_network_asks_once_and_never_retries(
    no_network: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the hub's own client retries for a minute")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", never)
    with pytest.raises(
        WeightsUnavailableError, match=r"test_resnet.r160_in1k/resolve/main/model.safetensors cannot be"
    ):
        load_imagenet(TIMM_NETWORK, ImageNetPretraining())
    assert len(no_network) == 1
    assert capsys.readouterr() == ("", "")


def test_the_hubs_offline_mode_is_respected(no_network: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in (find_missing_weights(TIMM_NETWORK, ImageNetPretraining()) or "")
    assert no_network == []


def test_timm_weights_from_the_hub_cache(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    monkeypatch.setattr("timm.models._hub.hf_hub_download", None)
    torch.manual_seed(5)
    state = timm.create_model("test_resnet").state_dict()
    repository, commit = tmp_path / "hub" / TIMM_REPOSITORY, "0" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save_file(state, repository / "snapshots" / commit / "model.safetensors")
    assert find_missing_weights(TIMM_NETWORK, ImageNetPretraining()) is None
    loaded = load_imagenet(TIMM_NETWORK, ImageNetPretraining())
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert no_network == []


@pytest.mark.parametrize(
    ("network", "weights", "message"),
    [
        (NETWORK, "IMAGENET1K_V9", r"no weights 'IMAGENET1K_V9' in torchvision; known are default, IMAGENET1K_V1"),
        ("timm/resnet18", "nobody_in1k", r"timm has no weights 'resnet18.nobody_in1k'; known .*resnet18.a1_in1k"),
        ("resnet81", "default", "did you mean resnet18"),
        ("timm/resnet81", "default", "did you mean resnet18"),
        ("timm/vit_base_patch16_224", "mae", "another normalisation .* model.name: timm/vit_base_patch16_224.mae"),
    ],
)
def test_unknown_weights_are_refused(network: str, weights: str, message: str, no_network: list[str]) -> None:
    with pytest.raises(ConfigError, match=message):
        find_missing_weights(network, ImageNetPretraining(weights=weights))
    assert no_network == []
