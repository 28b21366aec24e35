"""Batch statistics of sub-batches on one device, as of several GPUs, in one pass of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BatchNorm = nn.modules.batchnorm._BatchNorm


def can_group(layers: Iterable[_BatchNorm]) -> bool:
    """Return whether ``statistics_in_groups`` applies: to torch’s own layers with moving averages."""
    return all(
        type(layer).forward is _BatchNorm.forward and layer.track_running_stats and layer.momentum is not None
        for layer in layers
    )


@contextmanager
def statistics_in_groups(layers: Iterable[_BatchNorm], num_groups: int) -> Iterator[None]:
    """Normalise image i of a batch by the statistics of the images j with j ≡ i modulo ``num_groups``.

    Running statistics are updated once, by the mean over the groups.

    Args:
        layers: layers in training mode, for which ``can_group`` holds.
        num_groups: divides the number of images of all batches.
    """
    layers = list(layers)
    for layer in layers:
        layer.forward = partial(_normalise, layer, num_groups)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _normalise(layer: _BatchNorm, num_groups: int, images: Tensor) -> Tensor:
    """Return the normalised images: groups are taken for channels, which a view of the batch is enough for."""
    count, channels = images.shape[:2]
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.momentum is not None
    mean, variance = (value.repeat(num_groups) for value in (layer.running_mean, layer.running_var))
    weight, bias = (None if value is None else value.repeat(num_groups) for value in (layer.weight, layer.bias))
    grouped = images.reshape(count // num_groups, num_groups * channels, *images.shape[2:])
    result = F.batch_norm(grouped, mean, variance, weight, bias, True, layer.momentum, layer.eps)
    with torch.no_grad():
        for own, found in zip((layer.running_mean, layer.running_var), (mean, variance), strict=True):
            own.copy_(found.view(num_groups, channels).mean(0))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)
    return result.reshape(images.shape)
