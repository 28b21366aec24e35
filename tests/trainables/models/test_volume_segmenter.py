"""Networks of volumes: which axes are halved, sizes, names of layers, what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainables.errors import ConfigError
from trainables.model_config import ModelConfig
from trainables.models.mc_dropout import find_dropout
from trainables.models.volume_segmenter import VolumeSegmenter, build_volume_segmenter, plan_topology
from trainables.task_config import SegmentationTask
from trainables.training.acceleration import default_choice

SPACING = (5.0, 1.0, 1.0)


def make(name: str = "monai/unet", *, dropout: float = 0.0, **task: Any) -> VolumeSegmenter:
    settings = {"kind": "segmentation", "width": 32, "patch_size": [8, 24, 24], **task}
    config = SegmentationTask.model_validate(settings)
    return build_volume_segmenter(
        ModelConfig(name=name), config, num_classes=3, channels=1, spacing=SPACING, dropout=dropout
    )


def test_levels_are_those_of_nnunet() -> None:
    """Worked out by hand from its rules, for thick slices of a heart and for isotropic voxels."""
    heart = plan_topology((14, 256, 224), (10.0, 1.25, 1.25), depth=5)
    assert heart.strides == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert heart.kernels == [(1, 3, 3)] * 3 + [(3, 3, 3)] * 3
    cube = plan_topology((128, 128, 128), (1.0, 1.0, 1.0), depth=4)
    assert cube.strides == [(1, 1, 1)] + [(2, 2, 2)] * 4
    assert cube.reduction == (16, 16, 16)


@pytest.mark.parametrize("name", ["monai/unet", "monai/residual_unet"])
def test_logits_have_the_size_of_the_volumes(name: str) -> None:
    model = make(name).eval()
    volumes = torch.randint(0, 256, (2, 1, 9, 23, 25), dtype=torch.uint8)
    with torch.no_grad():
        logits, bottleneck = model.forward_recording(
            model.normalise(volumes), model.backbone.get_submodule("bottleneck")
        )
    assert logits.shape == (2, 3, 9, 23, 25)
    assert bottleneck.shape == (2, 32, 9, 6, 7)  # filled up to 24 and 28 rows and columns


def test_thick_slices_are_not_mixed_before_the_voxels_are_as_large() -> None:
    """A convolution of the first level sees one slice, that of the deepest three."""
    model = make().eval()
    for layer, seen in (("encoder.0.conv1", [3]), ("encoder.2.conv1", [2, 3, 4])):
        convolution = model.backbone.get_submodule(layer)
        channels = next(convolution.parameters()).shape[1]
        volumes = torch.rand(1, channels, 8, 24, 24, requires_grad=True)
        convolution(volumes)[0, :, 3].sum().backward()
        assert volumes.grad is not None
        assert volumes.grad[0].abs().amax((0, 2, 3)).nonzero().flatten().tolist() == seen


def test_weights_are_contiguous_on_every_device() -> None:
    choice = default_choice(ModelConfig(name="monai/unet"), make(), torch.float32, torch.device("cuda"))
    assert choice.memory_format == "contiguous"


def test_dropout_lies_in_the_head() -> None:
    assert all(name.startswith("segmentation_head.") for name in find_dropout(make(dropout=0.3)))
    with pytest.raises(ConfigError):
        find_dropout(make())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "resnet18"}, "expected one of monai/unet, monai/residual_unet"),
        ({"decoder": "fpn"}, "task.decoder: found fpn with volumes"),
        ({"patch_size": [8, 24, 22]}, r"expected multiples of 1 × 4 × 4"),
        ({"patch_size": [4, 8, 8]}, "can be halved 1 times"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**fields)
