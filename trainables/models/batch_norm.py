"""Layers of batch normalisation of a network, and passes that leave their running statistics alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def find_norms(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Return the layers of batch normalisation."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def running_statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave the running statistics of batch normalisation as they are; batches are normalised by their own."""
    layers = [layer for layer in find_norms(modules) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
