"""Any torchvision or timm classification network, fitted to small and to grey images.

- Grey images: the first convolution gets one input channel whose kernel is the sum over RGB, and images are
  normalised by the mean over RGB: outputs are those of the original for the RGB copy (exactly so if the channels
  share one normalisation).
- ``stages: k`` keeps the first stages and pools after them (``models.stages``).
- Small images (``stem: small``): the first convolution keeps its kernel and gets stride 1, a max-pool right after it
  is removed. Pretrained weights still fit.
- Networks with a smallest or fixed input (Inception, ViT): images are upscaled on the device.
- Built-in dropout and stochastic depth (MobileNet, ConvNeXt, …) stay as the library sets them, unless the regulariser
  sets the stochastic depth.
- Stain normalisation, if the regulariser has it, is part of the model: ``normalise`` applies it first.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.model_config import SMALL_STEM_BELOW_PX, ModelConfig
from trainables.models.adaptation import make_grey, make_stem_small, replace_module
from trainables.models.stages import keep_stages
from trainables.models.stochastic_depth import describe_lack, scale_drop_paths, set_stochastic_depth

#: Sides tried, smallest first, until a network accepts its input (299: Inception).
_INPUT_SIZES = (32, 64, 96, 128, 160, 192, 224, 299, 384)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Networks ported from TensorFlow, trained on images in [−1, 1] (torchvision has ``transform_input`` for this).
_TENSORFLOW_NAMES = ("inception_v3", "googlenet")


class Classifier(nn.Module):
    """A network together with its normalisation and input size.

    Args:
        backbone: maps normalised images to logits.
        head: name of the last linear (or 1×1 convolution) layer inside ``backbone``; its inputs are the features.
        mean: mean per channel of images in [0, 1].
        std: standard deviation per channel of images in [0, 1].
        input_size: side in px at which the backbone works.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, *, head: str, mean: Tensor, std: Tensor, input_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = input_size
        self.head_name = head
        self.stain: nn.Module | None = None
        #: Learned confidence (``models.confidence``).
        self.confidence: nn.Module | None = None
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1), persistent=False)
        _last_layer(self.head).register_forward_hook(_compute_in_float32)

    @property
    def head(self) -> nn.Module:
        """The last layer, or dropout followed by it."""
        return self.backbone.get_submodule(self.head_name)

    def normalise(self, images: UInt8[Tensor, "n c *space"]) -> Float[Tensor, "n c *space"]:
        """Return normalised float images at the size of the data, after stain normalisation if the model has it."""
        if self.stain is not None:
            images = self.stain(images)
        # In place: a batch of 256 at 224 px is 147 MiB, and would otherwise be held three times.
        return images.float().div_(255.0).sub_(self.mean).div_(self.std)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits of normalised images, in float32 under autocast too."""
        if images.shape[-1] != self.input_size:
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        logits: Tensor = self.backbone(images)
        return logits.flatten(1)

    def forward_features(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n features"]]:
        """Return logits and penultimate features (the input of the head; spatially averaged if it is a map)."""
        logits, features = self.forward_recording(images, self.head)
        return logits, flatten_map(features)

    def forward_outputs(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n outputs"]:
        """Return the logits and, as last column, the output that ``confidence`` gives for the last layer's input."""
        assert self.confidence is not None
        logits, inputs = self.forward_recording(images, _last_layer(self.head))
        return torch.cat([logits, self.confidence(flatten_map(inputs))], dim=1)

    def forward_recording(self, images: Float[Tensor, "n c *space"], *layers: nn.Module) -> tuple[Tensor, ...]:
        """Return the logits and the input of each of ``layers``, in this order."""
        seen: dict[nn.Module, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0]})) for layer in layers
        ]
        try:
            logits = self.forward(images)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, *(seen[layer] for layer in layers)

    @property
    def has_depthwise_convolutions(self) -> bool:
        """Whether a convolution has one group per input channel: MobileNet, EfficientNet, ConvNeXt, …."""
        convolutions = (layer for layer in self.modules() if isinstance(layer, nn.Conv2d))
        return any(layer.groups == layer.in_channels > 1 for layer in convolutions)

    @property
    def num_features(self) -> int:
        """Length of the penultimate feature vector."""
        layer = _last_layer(self.head)
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the weights and buffers of everything but the head."""
        prefix = f"{self.head_name}."
        return {name: value for name, value in self.backbone.state_dict().items() if not name.startswith(prefix)}

    def load_encoder(self, state: Mapping[str, Tensor], *, origin: str) -> None:
        """Load the weights of everything but the head; the head keeps its own.

        Raises:
            ConfigError: a weight is missing or has another shape.
        """
        mine = self.encoder_state()
        # num_batches_tracked is absent in files older than 2018, and has no effect.
        misfits = [name for name in mine if name not in state and not name.endswith("num_batches_tracked")]
        misfits += [
            f"{name} {tuple(state[name].shape)} instead of {tuple(mine[name].shape)}"
            for name in mine
            if name in state and state[name].shape != mine[name].shape
        ]
        if misfits:
            raise ConfigError(
                f"loaded {origin} into this network: {len(misfits)} of {len(mine)} weights are missing or have another "
                f"shape, the first {', '.join(misfits[:3])}; expected the weights of the same architecture"
            )
        for name, tensor in mine.items():
            if name in state:
                tensor.copy_(state[name])


def flatten_map(features: Tensor) -> Float[Tensor, "n features"]:
    """Return features per image: spatially averaged if they are a map."""
    return features.mean((2, 3)) if features.ndim == 4 else features


def _compute_in_float32(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
    """Return the output of the last layer in float32 where autocast reduced it: 8 bits would make logits tie."""
    if output.dtype not in (torch.float16, torch.bfloat16):
        return None  # the output stays as it is
    with torch.autocast(output.device.type, enabled=False):
        found: Tensor = layer.forward(inputs[0].float())
    return found


@dataclass(frozen=True)
class _Origin:
    """A network as its library builds it, with the library's normalisation."""

    backbone: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_size: int | None


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    dropout: float = 0.0,
    stochastic_depth: float | None = None,
    imagenet: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """Return the network for these images; random weights are drawn from torch's global generator.

    Args:
        config: name, stem and input size.
        num_classes: number of logits.
        channels: 1 or 3.
        image_size: side of the stored images in px.
        dropout: dropout probability before the head; 0 adds no layer.
        stochastic_depth: probability of skipping the last residual branch; None keeps the library's setting.
        imagenet: RGB state dict for everything but the head (``pretraining.imagenet``); None keeps random weights.

    Raises:
        ConfigError: the network does not exist, accepts no input size or has no stochastic depth, or the weights do
            not fit.
    """
    origin = create_backbone(
        config.name, num_classes=num_classes, stages=config.stages, stochastic_depth=stochastic_depth
    )
    head = find_head(origin.backbone, num_classes, name=config.name)
    mean, std = torch.tensor(origin.mean), torch.tensor(origin.std)
    model = Classifier(origin.backbone, head=head, mean=mean, std=std, input_size=image_size)
    if imagenet is not None:
        model.load_encoder(imagenet, origin="ImageNet weights")
    if config.stem == "small" and origin.fixed_size:
        raise ConfigError(
            f"model.stem: {config.name} cuts images of {origin.fixed_size} px into patches and has no stem to be made "
            "small; set it to auto"
        )
    small = config.stem == "small" or (
        config.stem == "auto" and image_size < SMALL_STEM_BELOW_PX and not origin.fixed_size and not config.input_size
    )
    if small:
        make_stem_small(model.backbone)
    if channels == 1:
        make_grey(model.backbone)
        model.mean, model.std = model.mean.mean(1, keepdim=True), model.std.mean(1, keepdim=True)
    if origin.fixed_size and not (small or config.input_size):
        model.input_size = origin.fixed_size
    else:
        model.input_size = _find_input_size(model, channels, image_size, wanted=config.input_size or origin.fixed_size)
    if dropout > 0.0:
        layer = model.backbone.get_submodule(head)
        replace_module(model.backbone, head, nn.Sequential(nn.Dropout(dropout), layer))
    return model


def create_backbone(
    name: str, *, num_classes: int, stages: int | None = None, stochastic_depth: float | None = None
) -> _Origin:
    """Return the RGB network ``name`` with random weights; stochastic depth as for ``build_model``.

    Args:
        name: name of the network.
        num_classes: number of logits.
        stages: number of its first stages that are kept; None keeps the whole network.
        stochastic_depth: probability of skipping the last residual branch that is kept.

    Raises:
        ConfigError: the library has no such network (the nearest names are given), or it has no stochastic depth or
            fewer stages.
    """
    is_timm = name.startswith("timm/")
    if is_timm:
        origin = _create_timm(name.removeprefix("timm/"), num_classes, stochastic_depth)
    else:
        origin = _create_torchvision(name, num_classes)
    if stages is not None:
        head = find_head(origin.backbone, num_classes, name=name)
        kept = keep_stages(origin.backbone, stages, head=head, num_classes=num_classes, name=name)
        origin = replace(origin, backbone=kept)
    if stochastic_depth is not None:
        scale = scale_drop_paths if is_timm else set_stochastic_depth
        scale(origin.backbone, stochastic_depth, name=name)
    return origin


def _create_torchvision(name: str, num_classes: int) -> _Origin:
    check_model_name(name)
    from torchvision import models

    if name in _TENSORFLOW_NAMES:  # with aux_logits, training has several outputs
        backbone = models.get_model(name, weights=None, num_classes=num_classes, aux_logits=False, init_weights=True)
        return _Origin(backbone, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)
    backbone = models.get_model(name, weights=None, num_classes=num_classes)
    return _Origin(backbone, _IMAGENET_MEAN, _IMAGENET_STD, getattr(backbone, "image_size", None))


def check_model_name(name: str) -> None:
    """Check that torchvision, or timm for ``timm/<name>``, has the network.

    Raises:
        ConfigError: the library has no such network; the nearest names are given.
    """
    if name.startswith("timm/"):
        import timm

        if not timm.is_model(name.removeprefix("timm/")):
            raise ConfigError(_unknown(name.removeprefix("timm/"), timm.list_models(), "timm"))
        return
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(_unknown(name, known, "torchvision"))


def _create_timm(name: str, num_classes: int, stochastic_depth: float | None) -> _Origin:
    check_model_name(f"timm/{name}")
    import timm

    # Passed only if set: many of timm's networks refuse the argument.
    options = {} if stochastic_depth is None else {"drop_path_rate": stochastic_depth}
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except TypeError as error:  # the network has no such option
        if "drop_path_rate" not in str(error):
            raise
        raise ConfigError(describe_lack(f"timm/{name}")) from error
    except RuntimeError as error:  # timm does not know the tag after the dot
        raise ConfigError(f"model.name: timm could not build {name!r}: {error}") from error
    cfg = backbone.pretrained_cfg
    if not isinstance(cfg["classifier"], str):
        raise ConfigError(
            f"model.name: {name} has several heads ({', '.join(cfg['classifier'] or ())}), expected one; "
            "choose another network"
        )
    fixed = cfg["input_size"][-1] if cfg.get("fixed_input_size") else None
    return _Origin(backbone, tuple(cfg["mean"]), tuple(cfg["std"]), fixed)


def _unknown(name: str, known: list[str], library: str) -> str:
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    return (
        f"model.name: looked for {name!r} among the {len(known)} classification networks of {library} and found none; "
        f"did you mean {', '.join(near)}? (timm networks are written timm/<name>)"
    )


def find_head(backbone: nn.Module, num_classes: int, *, name: str) -> str:
    """Return the name of the layer that produces the logits.

    Raises:
        ConfigError: the network has no such layer.
    """
    heads = [
        key
        for key, module in backbone.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    ]
    if not heads:
        raise ConfigError(f"model.name: {name} has no linear layer with {num_classes} outputs; choose another network")
    return heads[-1]


def _last_layer(module: nn.Module) -> nn.Linear | nn.Conv2d | nn.Conv3d:
    layer = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)][-1]
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
    return layer


@torch.no_grad()
def _find_input_size(model: Classifier, channels: int, image_size: int, *, wanted: int | None) -> int:
    """Return the smallest side, from ``image_size`` up, that the network accepts; only ``wanted`` is tried if given."""
    was_training = model.training
    model.eval()
    problem: Exception | None = None
    sizes = [wanted] if wanted else [image_size, *(size for size in _INPUT_SIZES if size > image_size)]
    for size in sizes:
        try:
            model.backbone(torch.zeros(1, channels, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:  # raised for images that are too small
            problem = error
            continue
        model.train(was_training)
        return size
    raise ConfigError(
        f"tried images of {', '.join(map(str, sizes))} px and the network took none of them; set model.input_size to "
        f"one that fits, or model.stem to original. The last answer was: {problem}"
    )
