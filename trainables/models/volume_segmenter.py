"""A segmentation network for volumes: the U-Net of nnU-Net, through MONAI, with the interface of ``Segmenter``.

Which axes are halved, and where kernels reach across slices, follows from spacing and patch, as in nnU-Net: thick
slices are neither mixed nor halved before the voxels within them are as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.model_config import ModelConfig
from trainables.models.segmenter import BOTTLENECK, HEAD, Segmenter
from trainables.task_config import SegmentationTask

#: Value of ``model.name`` → whether its blocks are residual.
VOLUME_NETWORKS = {"monai/unet": False, "monai/residual_unet": True}
#: Least side of a map that is halved no further, and how much thicker a voxel may be along an axis that is halved, or
#: over which kernels reach (nnU-Net).
_LEAST_SIDE, _MOST_THICK = 4, 2.0
#: Halvings that MONAI's network needs, and channels of its first maps at least.
_LEAST_DEPTH, _LEAST_WIDTH = 2, 8
#: Of images in [0, 1]. No weights are published for another normalisation, and every block normalises its maps.
_MEAN, _STD = 0.5, 0.25


class Topology(NamedTuple):
    """Kernels and strides of every level of a U-Net, the full resolution first; axes are depth, height, width."""

    kernels: list[tuple[int, ...]]
    strides: list[tuple[int, ...]]

    @property
    def reduction(self) -> tuple[int, ...]:
        """By how much the deepest map is smaller than the volume along every axis."""
        total = torch.tensor(self.strides).prod(0).tolist()
        return tuple(total)


def plan_topology(patch: Sequence[int], spacing: Sequence[float], *, depth: int) -> Topology:
    """Return the levels of a U-Net for patches of some voxels.

    In each step every axis is halved that is long enough and whose voxels are less than twice as thick as the thinnest
    of those; a kernel reaches over an axis once its voxels are less than twice as thick as the thinnest of all.

    Args:
        patch: sides of the patches in voxels.
        spacing: sides of a voxel in mm.
        depth: most halvings.

    Source: Isensee et al. 2021, ``get_pool_and_conv_props`` of nnU-Net 2.
    """
    sides, sizes = list(patch), list(spacing)
    kernels: list[tuple[int, ...]] = []
    strides: list[tuple[int, ...]] = [(1, 1, 1)]
    reaches = [False] * 3
    for _ in range(depth):
        long = [axis for axis in range(3) if sides[axis] >= 2 * _LEAST_SIDE]
        halved = [axis for axis in long if sizes[axis] / min(sizes[each] for each in long) < _MOST_THICK]
        if not halved or (len(halved) == 1 and sides[halved[0]] < 3 * _LEAST_SIDE):
            break
        reaches = [was or sizes[axis] / min(sizes) < _MOST_THICK for axis, was in enumerate(reaches)]
        kernels.append(tuple(3 if each else 1 for each in reaches))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(3)))
        for axis in halved:
            sizes[axis], sides[axis] = 2 * sizes[axis], -(-sides[axis] // 2)
    return Topology([*kernels, (3, 3, 3)], strides)


class _UNet(nn.Module):
    """Blocks of MONAI's network under the names of segmentation-models-pytorch's; ``VolumeSegmenter`` connects them."""

    def __init__(self, topology: Topology, widths: Sequence[int], *, channels: int, num_classes: int, residual: bool):
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet

        network = DynUNet(
            spatial_dims=3,
            in_channels=channels,
            out_channels=num_classes,
            kernel_size=topology.kernels,
            strides=topology.strides,
            upsample_kernel_size=topology.strides[1:],
            filters=widths,
            res_block=residual,
        )
        self.encoder = nn.ModuleList([network.input_block, *network.downsamples, network.bottleneck])
        self.decoder = network.upsamples
        self.segmentation_head = network.output_block


class VolumeSegmenter(Segmenter):
    """A U-Net for volumes with its normalisation; logits are one map per class at the size of the volumes.

    Args:
        backbone: ``encoder`` and ``decoder``, lists of blocks, and ``segmentation_head``.
        mean: mean per channel of volumes in [0, 1].
        std: standard deviation per channel of volumes in [0, 1].
        topology: kernels and strides; volumes are padded to multiples of its reduction.
    """

    def __init__(self, backbone: nn.Module, *, mean: Tensor, std: Tensor, topology: Topology) -> None:
        super().__init__(backbone, mean=mean, std=std, depth=len(topology.strides) - 1)
        self.mean, self.std = self.mean[..., None], self.std[..., None]
        self.reduction = topology.reduction

    def decode(self, images: Float[Tensor, "n c *space"]) -> Tensor:
        """Return the decoder's last map, the input of ``classify``, for normalised volumes."""
        missing = [-side % by for side, by in zip(images.shape[2:], self.reduction, strict=True)]
        if any(missing):
            images = F.pad(images, [each for side in reversed(missing) for each in (0, side)], mode="replicate")
        maps: list[Tensor] = []
        for block in self.backbone.get_submodule("encoder").children():
            images = block(images)
            maps.append(images)
        decoded: Tensor = self.backbone.get_submodule(BOTTLENECK)(maps.pop())
        for block in self.backbone.get_submodule("decoder").children():
            decoded = block(decoded, maps.pop())
        return decoded


def build_volume_segmenter(
    config: ModelConfig,
    task: SegmentationTask,
    *,
    num_classes: int,
    channels: int,
    spacing: Sequence[float],
    dropout: float = 0.0,
) -> VolumeSegmenter:
    """Return the network for volumes; random weights are drawn from torch's global generator.

    Args:
        config: name of the network, one of ``VOLUME_NETWORKS``.
        task: patch, most halvings, and width.
        num_classes: number of maps, the background included.
        channels: 1 or 3.
        spacing: thickness, height and width of a stored voxel in mm.
        dropout: probability that a channel of the decoder's last map is dropped; 0 adds no layer.

    Raises:
        ConfigError: there is no such network, MONAI is not installed, or the patches do not fit.
    """
    if config.name not in VOLUME_NETWORKS:
        raise ConfigError(
            f"model.name: found {config.name} with volumes (data.dimensions: 3); expected one of "
            f"{', '.join(VOLUME_NETWORKS)}: the networks of torchvision and timm are for images"
        )
    if config.stages is not None or config.stem == "small" or config.input_size is not None:
        raise ConfigError("model: found stages, stem: small or input_size with volumes; expected them left out")
    if task.decoder != "unet":
        raise ConfigError(f"task.decoder: found {task.decoder} with volumes; expected unet")
    patch = task.patch_sides(3)
    assert patch is not None
    topology = plan_topology(patch, spacing, depth=task.depth)
    sides = " × ".join(map(str, patch))
    if len(topology.strides) <= _LEAST_DEPTH:
        raise ConfigError(
            f"task.patch_size: found {sides} voxels, which can be halved {len(topology.strides) - 1} times at a "
            f"spacing of {' × '.join(f'{each:g}' for each in spacing)} mm; expected {_LEAST_DEPTH} times or more: "
            "larger patches"
        )
    if any(side % by for side, by in zip(patch, topology.reduction, strict=True)):
        raise ConfigError(
            f"task.patch_size: found {sides} voxels; expected multiples of "
            f"{' × '.join(map(str, topology.reduction))}, by which the network reduces them at this spacing"
        )
    try:
        import monai  # noqa: F401 - asked for here, so that the message is one of ours
    except ImportError as error:
        raise ConfigError(
            "model: networks for volumes are MONAI's, which is not installed: pip install 'robustsweep[medical]'"
        ) from error
    deepest = len(topology.strides) - 1
    network = _UNet(
        topology,
        [max(_LEAST_WIDTH, task.width >> (deepest - level)) for level in range(deepest + 1)],
        channels=channels,
        num_classes=num_classes,
        residual=VOLUME_NETWORKS[config.name],
    )
    if dropout > 0.0:
        network.add_module(HEAD, nn.Sequential(nn.Dropout3d(dropout), network.segmentation_head))
    mean, std = torch.full((channels,), _MEAN), torch.full((channels,), _STD)
    return VolumeSegmenter(network, mean=mean, std=std, topology=topology)
