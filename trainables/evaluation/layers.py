"""Recording of layers inside a network, and of the pixels: small arrays per image that detectors compare.

Activations themselves are never stored: of 2,048 channels of 7 × 7 a set of 10,000 images would take 2 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.evaluation.detection.spectral import spectral_signature
from trainables.evaluation.ood import compute_intensity_histograms
from trainables.models.networks import Classifier

#: Kinds of arrays: mean over positions and spectral signature of a layer, histogram of the image.
POOLED, SPECTRAL, HISTOGRAM = "pooled", "spectral", "histogram"


class LayerRecorder:
    """Recorder of layers during forward passes.

    Args:
        network: network whose layers are recorded, such as the backbone of a classifier.
        layers: names of its modules, such as ``layer3`` or ``blocks.4``; may be empty.

    Raises:
        ConfigError: if there is no such module.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self._modules = {name: find_layer(network, name, setting="evaluation.store_layers") for name in layers}
        self._outputs: dict[str, Tensor] = {}
        self._kept: dict[str, list[Float32[np.ndarray, "m values"]]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Record the first forward pass after every ``record``, until the context ends."""

        def keep(name: str, output: Tensor) -> None:
            self._outputs.setdefault(name, output)  # later passes over the same batch are those of MC dropout

        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def record(self, images: UInt8[Tensor, "n c *space"], number: int) -> None:
        """Keep the arrays of the first ``number`` images of the batch that the model has just seen.

        Raises:
            ConfigError: if a layer's output is no map of positions, n × channels × height × width (× depth).
        """
        self._keep(HISTOGRAM, compute_intensity_histograms(images[:number].cpu().numpy()))
        for name, output in self._outputs.items():
            if not isinstance(output, Tensor) or output.ndim not in (4, 5):
                found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ConfigError(
                    f"evaluation.store_layers: recorded {name}, whose output is {found}; expected a layer that gives "
                    "n × channels × height × width"
                )
            maps = output[:number]
            self._keep(f"{POOLED}/{name}", maps.float().flatten(2).mean(dim=2).cpu().numpy())
            self._keep(f"{SPECTRAL}/{name}", spectral_signature(maps).float().cpu().numpy())
        self._outputs.clear()

    def forget(self) -> None:
        """Drop the outputs of a batch that is not recorded."""
        self._outputs.clear()

    def _keep(self, name: str, values: Float32[np.ndarray, "m values"]) -> None:
        self._kept.setdefault(name, []).append(values)

    def collect(self, num_passes: int) -> dict[str, Float32[np.ndarray, "passes n values"]]:
        """Return what was recorded since the last call: "histogram", "pooled/<layer>" and "spectral/<layer>"."""
        found = {
            name: (whole := np.concatenate(parts)).reshape(num_passes, len(whole) // num_passes, -1)
            for name, parts in self._kept.items()
        }
        self._kept = {}
        return found


def find_layer(backbone: nn.Module, name: str, *, setting: str) -> nn.Module:
    """Return the module ``name`` of a network, which a study's ``setting`` asks for.

    Raises:
        ConfigError: if there is none.
    """
    try:
        return backbone.get_submodule(name)
    except AttributeError:
        known = [child for child, _ in backbone.named_children()]
        raise ConfigError(
            f"{setting}: the network has no layer {name!r}; expected a module of it: one of "
            f"{', '.join(known)}, or one inside, such as {known[-2] if len(known) > 1 else known[0]}.0"
        ) from None


def check_layers(model: Classifier, layers: Sequence[str], images: UInt8[np.ndarray, "n c *space"]) -> None:
    """Check on some images that layers exist and give maps of positions.

    Raises:
        ConfigError: if one does not.
    """
    recorder, batch = LayerRecorder(model.backbone, layers), torch.from_numpy(images)
    model.eval()
    with torch.inference_mode(), recorder.attached():
        model(model.normalise(batch))
        recorder.record(batch, len(batch))
    found = recorder.collect(1)
    missing = [name for name in layers if f"{POOLED}/{name}" not in found]
    if missing:
        raise ConfigError(f"evaluation.store_layers: {missing[0]} takes no part in a forward pass; name another layer")
