from __future__ import annotations

from typing import Any

import pytest
import torch

from trainables.errors import ConfigError
from trainables.evaluation.segmentation_ood.dropout import SegmentationDropout
from trainables.model_config import ModelConfig
from trainables.models.mc_dropout import find_dropout
from trainables.models.segmenter import Segmenter, build_segmenter
from trainables.task_config import SegmentationTask


def make(dropout: float = 0.5, **task: Any) -> tuple[Segmenter, SegmentationTask]:
    settings = SegmentationTask.model_validate({"kind": "segmentation", "depth": 3, "width": 16, **task})
    torch.manual_seed(0)
    config = ModelConfig(name="timm/test_resnet")
    return build_segmenter(config, settings, num_classes=3, channels=1, image_size=32, dropout=dropout).eval(), settings


def make_images(number: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (number, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def score(model: Segmenter, task: SegmentationTask, images: torch.Tensor, **settings: Any) -> dict[str, torch.Tensor]:
    settings = {"draws": 4, "seed": 7, **settings}
    dropout = SegmentationDropout(model, task, precision=torch.float32, **settings)
    return dropout.compute_uncertainties(images, torch.zeros(len(images), dtype=torch.int64), None)


@pytest.mark.parametrize(
    "settings", [{}, {"patch_size": 24}, {"decoder": "pspnet"}], ids=["head", "windows", "decoder"]
)
def test_draws_are_the_same_for_every_batch_and_others_for_another_seed(settings: dict[str, Any]) -> None:
    model, task = make(**settings)
    images = make_images()
    found = score(model, task, images)
    assert set(found) == {f"mc_dropout_{name}" for name in ("msr", "entropy", "expected_entropy", "mutual_information")}
    one = score(model, task, images[2:3])
    other = score(model, task, images, seed=8)
    for name, maps in found.items():
        assert maps.shape == (5, 32, 32)
        assert torch.allclose(maps[2:3], one[name], atol=1e-5)
        assert not torch.allclose(maps, other[name], atol=1e-5)
    assert float(found["mc_dropout_mutual_information"].max()) > 0.0


def test_its_maps_are_those_of_channels_dropped_before_the_head() -> None:
    model, task = make(0.4)
    images = make_images(2)
    assert list(find_dropout(model)) == ["segmentation_head.0"]
    seen: list[torch.Tensor] = []
    draws = SegmentationDropout(model, task, draws=3, seed=7, precision=torch.float32)
    convolution = model.head.get_submodule("1")
    hook = convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = draws.compute_uncertainties(images[:1], torch.zeros(1, dtype=torch.int64), None)
    hook.remove()
    with torch.no_grad():
        decoded = model.decode(model.normalise(images[:1]))
        shares = torch.stack([convolution(each).softmax(1) for each in seen])
    kept = [(each / decoded).nan_to_num() for each in seen]
    assert {round(float(value), 4) for each in kept for value in each.unique()} <= {0.0, round(1 / 0.6, 4)}
    assert not all(torch.equal(kept[0], each) for each in kept[1:])
    assert torch.allclose(found["mc_dropout_msr"], 1 - shares.mean(0).amax(1), atol=1e-5)
    assert torch.allclose(found["mc_dropout_expected_entropy"], torch.special.entr(shares).sum(2).mean(0), atol=1e-5)


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match="add regulariser: dropout"):
        score(*make(0.0), make_images(1))
