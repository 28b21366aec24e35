"""A segmentation network: an encoder that torchvision or timm classifies with, and a decoder, with one interface.

The encoder's weights bear the names of the classification network, so that ImageNet weights and those of a pretraining
stage fit. Decoders are those of segmentation-models-pytorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.model_config import ModelConfig
from trainables.models.adaptation import make_grey
from trainables.models.networks import Classifier, create_backbone
from trainables.ops.geometry import index_first
from trainables.task_config import SegmentationTask

#: Name of the last block inside the network, a convolution to one map per class.
HEAD = "segmentation_head"
#: Module whose output is the bottleneck: the encoder's last map.
BOTTLENECK = "bottleneck"


#: Side in px of the largest image on which a new network is tried, which takes some 10 ms: small ones are refused.
_LARGEST_TRIED = 128


class Segmenter(Classifier):
    """A segmentation network with its normalisation; logits are one map per class at the size of the images.

    Args:
        backbone: network of segmentation-models-pytorch (``encoder``, ``decoder``, ``segmentation_head``).
        mean: mean per channel of images in [0, 1].
        std: standard deviation per channel of images in [0, 1].
        depth: halvings of the resolution in the encoder; images are padded to a multiple of 2^depth.
    """

    def __init__(self, backbone: nn.Module, *, mean: Tensor, std: Tensor, depth: int) -> None:
        super().__init__(backbone, head=HEAD, mean=mean, std=std, input_size=0)
        self.depth = depth
        #: Passes the encoder's last map on, so that it can be recorded like any layer.
        backbone.add_module(BOTTLENECK, nn.Identity())

    def forward(self, images: Float[Tensor, "n c *space"]) -> Float[Tensor, "n classes *space"]:
        """Return the logits of normalised images, in float32 under autocast too."""
        return self.classify(self.decode(images), *images.shape[2:])

    def decode(self, images: Float[Tensor, "n c *space"]) -> Tensor:
        """Return the decoder's last map, the input of ``classify``, for normalised images."""
        height, width = images.shape[-2:]
        side = 2**self.depth
        bottom, right = -height % side, -width % side
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        maps = list(self.backbone.get_submodule("encoder")(images))
        maps[-1] = self.backbone.get_submodule(BOTTLENECK)(maps[-1])
        decoded: Tensor = self.backbone.get_submodule("decoder")(maps)
        return decoded

    def classify(self, decoded: Tensor, *sides: int) -> Float[Tensor, "n classes *space"]:
        """Return the logits of images with these sides from the decoder's last map."""
        logits: Tensor = self.head(decoded)
        return logits[index_first(sides)]

    def load_encoder(self, state: Mapping[str, Tensor], *, origin: str) -> None:
        """Load the weights of everything but the head, or of a classification network with this encoder.

        Raises:
            ConfigError: a weight is missing or has another shape.
        """
        if any(name.startswith("decoder.") for name in state):
            super().load_encoder(state, origin=origin)
            return
        mine = {_name_in_classifier(name): value for name, value in self._encoder.state_dict().items()}
        misfits = [
            name if name not in state else f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in mine.items()
            if not name.endswith("num_batches_tracked") and (name not in state or state[name].shape != value.shape)
        ]
        if misfits:
            raise ConfigError(
                f"loaded {origin} into the encoder of this network: {len(misfits)} of {len(mine)} weights are missing "
                f"or have another shape, the first {', '.join(misfits[:3])}; expected the weights of the same "
                "architecture"
            )
        for name, tensor in mine.items():
            if name in state:
                tensor.copy_(state[name])

    @property
    def _encoder(self) -> nn.Module:
        return self.backbone.get_submodule("encoder")


def _name_in_classifier(name: str) -> str:
    """Return the name that a weight of an encoder has in its classification network.

    timm's networks lie in ``model``, and some of them with their stages as children: stages_0 is stages.0.
    """
    return re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", name.removeprefix("model."))


def build_segmenter(
    config: ModelConfig,
    task: SegmentationTask,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    dropout: float = 0.0,
    imagenet: Mapping[str, Tensor] | None = None,
) -> Segmenter:
    """Return the segmentation network for these images; random weights are drawn from torch's global generator.

    Args:
        config: name of the encoder; stem and number of stages keep their defaults.
        task: decoder, depth and width.
        num_classes: number of maps, the background included.
        channels: 1 or 3.
        image_size: side of the images in px, on which the network is tried, or on patches.
        dropout: probability that a channel of the decoder's last map is dropped; 0 adds no layer.
        imagenet: RGB state dict of the classification network but for its head; None keeps random weights.

    Raises:
        ConfigError: encoder or decoder do not exist or do not fit each other, or the weights do not fit.
    """
    if config.stages is not None or config.stem == "small" or config.input_size is not None:
        raise ConfigError(
            "model: found stages, stem: small or input_size with task: segmentation, whose encoder is used as it is; "
            "expected them left out (task.depth sets how deep the encoder is)"
        )
    origin = create_backbone(config.name, num_classes=2)
    network = _create(config, task, num_classes)
    model = Segmenter(network, mean=torch.tensor(origin.mean), std=torch.tensor(origin.std), depth=task.depth)
    if imagenet is not None:
        model.load_encoder(imagenet, origin="ImageNet weights")
    if channels == 1:
        make_grey(model.backbone)
        model.mean, model.std = model.mean.mean(1, keepdim=True), model.std.mean(1, keepdim=True)
    if dropout > 0.0:
        head = model.backbone.get_submodule(HEAD)
        setattr(model.backbone, HEAD, nn.Sequential(nn.Dropout2d(dropout), *head.children()))
    _check_output(model, config, task, num_classes=num_classes, image_size=image_size)
    return model


@torch.no_grad()
def _check_output(
    model: Segmenter, config: ModelConfig, task: SegmentationTask, *, num_classes: int, image_size: int
) -> None:
    """Check that a network gives a map per class at the size of its images; it is left in training mode.

    Raises:
        ConfigError: it does not, or refuses them: some decoders take some encoders, depths and sizes only.
    """
    side = 2**task.depth
    (patch, *_) = task.patch_sides(2) or (image_size,)
    size = -(-min(patch, _LARGEST_TRIED) // side) * side
    images = torch.zeros(1, model.mean.shape[1], size, size)
    model.eval()
    try:
        found: object = tuple(model.head(model.decode(images)).shape[1:])
    except (RuntimeError, ValueError) as error:
        found = error
    model.train()
    if found != (num_classes, size, size):
        raise ConfigError(
            f"task: tried {task.decoder} on the encoder {config.name} with a depth of {task.depth} on an image of "
            f"{tuple(images.shape[1:])} and found {found}; expected {(num_classes, size, size)}: choose another "
            "task.decoder, task.depth, model.name, or larger images or patches"
        )


def _create(config: ModelConfig, task: SegmentationTask, num_classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    names = {name.lower() for name in smp.MODEL_ARCHITECTURES_MAPPING}
    if task.decoder not in names:
        raise ConfigError(f"task.decoder: found {task.decoder!r}, expected one of {', '.join(sorted(names))}")
    encoder = f"tu-{config.name.removeprefix('timm/')}" if config.name.startswith("timm/") else config.name
    widths = tuple(max(16, task.width >> level) for level in range(task.depth))
    # Other decoders have widths of their own.
    options = {"decoder_channels": widths} if task.decoder in ("unet", "unetplusplus", "manet") else {}
    try:
        network: nn.Module = smp.create_model(
            task.decoder,
            encoder_name=encoder,
            encoder_weights=None,
            in_channels=3,
            classes=num_classes,
            encoder_depth=task.depth,
            **options,
        )
    except (KeyError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"task: segmentation-models-pytorch could not build {task.decoder} on the encoder {config.name} with a "
            f"depth of {task.depth} ({error}); choose another model.name, task.decoder or task.depth"
        ) from error
    return network
