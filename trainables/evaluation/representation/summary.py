"""Statistics of what the layers of a trained network hold, and how far they have moved from the initial weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.config import Execution
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.evaluation.metric_tables.representation import REPRESENTATION_METRICS
from trainables.evaluation.representation.alignment_uniformity import compute_uniformity
from trainables.evaluation.representation.layers import (
    PENULTIMATE,
    choose_layers,
    find_first_convolution,
    listening,
    sample_positions,
)
from trainables.evaluation.representation.same_class import compute_class_alignment
from trainables.evaluation.representation.similarity import MIN_IMAGES, CrossMoments, compute_cka
from trainables.evaluation.representation.spectrum import CovarianceSum, Spectrum
from trainables.evaluation_config import EvaluationConfig, RepresentationConfig
from trainables.models.networks import Classifier
from trainables.storage.completeness import REPRESENTATION
from trainables.storage.folder import Folder

#: Start of the names of headline numbers.
PREFIX = "representation"
#: Most eigenvalues stored of a layer, evenly spaced on a logarithmic axis of ranks.
_STORED = 100


@dataclass
class RepresentationSummary:
    """Statistics of one trial."""

    #: Name → headline number.
    metrics: dict[str, float] = field(default_factory=dict)
    #: Name of a headline number → why it is undefined.
    undefined: dict[str, str] = field(default_factory=dict)
    num_images: int = 0
    #: Layer → ``channels``, ``rank`` and ``eigenvalue`` (lists), ``condition_number``, ``effective_rank``, ``alpha``.
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Layers of the trained network × those of the initial weights.
    cka_initial: list[list[float | None]] = field(default_factory=list)
    #: Of every layer.
    procrustes_initial: list[float | None] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return everything but the headline numbers, which belong to ``result.json``."""
        names = ("num_images", "layers", "cka_initial", "procrustes_initial")
        return {name: getattr(self, name) for name in names}


def choose_rows(number: int, most: int) -> Int64[np.ndarray, " m"]:
    """Return ``most`` evenly spaced row numbers below ``number``, or all of them: a set may be sorted by class."""
    return np.arange(number) if number <= most else np.arange(most) * number // most


def describe_layers(
    model: Classifier,
    initial: Classifier,
    data: Dataset,
    config: EvaluationConfig,
    folder: Folder,
    execution: Execution,
    precision: torch.dtype,
) -> RepresentationSummary:
    """Write ``representation.json``, from one pass of a trained network over unshifted test images; return all of it.

    Args:
        model: trained network, on its device.
        initial: the network with the weights from which the training started, on the same device.
        data: data set; its test images are read.
        config: layers, and number of images; with 0 nothing is computed.
        folder: folder of the trial.
        execution: images per forward pass.
        precision: dtype of the forward pass; bfloat16 runs under autocast.

    Raises:
        ConfigError: if a layer does not exist or gives no map.
    """
    summary = _measure(model.eval(), initial.eval(), data.splits["test"], config.representation, execution, precision)
    folder.write(REPRESENTATION, json.dumps(summary.as_json(), allow_nan=False, separators=(",", ":")).encode())
    return summary


def _measure(
    model: Classifier,
    initial: Classifier,
    images: ImageSet,
    config: RepresentationConfig,
    execution: Execution,
    precision: torch.dtype,
) -> RepresentationSummary:
    if config.num_images == 0:
        return RepresentationSummary()
    rows = choose_rows(len(images), config.num_images)
    if len(rows) < MIN_IMAGES:
        why = f"there are {len(rows)} images, expected {MIN_IMAGES} or more"
        return RepresentationSummary(undefined={f"{PREFIX}/{name}": why for name in REPRESENTATION_METRICS})
    feed = ImageFeed(images, model.mean.device)
    first = next(feed.batches(rows[:2], [2]))
    names = choose_layers(model, first) if config.layers == "auto" else config.layers
    sums = _Sums(model, initial, names)
    with torch.inference_mode(), torch.autocast(feed.device.type, precision, enabled=precision != torch.float32):
        for batch in feed.batches(rows, split_sizes(len(rows), execution.evaluation_batch_size)):
            sums.add(batch)
    return _summarise(sums, images.labels[rows], find_first_convolution(model, names))


class _Sums:
    """Sums over images: covariance of every layer, and its moments with every layer of the initial weights.

    Layers are compared by their means over positions, and have the penultimate features as last one.
    """

    def __init__(self, model: Classifier, initial: Classifier, names: tuple[str, ...]) -> None:
        self._networks = (model, initial)
        self._names = names
        self.layers = (*names, PENULTIMATE)
        self.spectra = {name: CovarianceSum() for name in self.layers}
        self.cross = {(one, other): CrossMoments() for one in self.layers for other in self.layers}
        self.own = tuple({name: CrossMoments() for name in self.layers} for _ in self._networks)
        self.features: list[Tensor] = []

    def add(self, batch: UInt8[Tensor, "n c h w"]) -> None:
        trained, initial = (self._run(number, batch) for number in range(2))
        self.spectra[PENULTIMATE].update(trained[PENULTIMATE])
        self.features.append(trained[PENULTIMATE].cpu())
        for (one, other), moments in self.cross.items():
            moments.update(trained[one], initial[other])
        for found, own in zip((trained, initial), self.own, strict=True):
            for name, moments in own.items():
                moments.update(found[name], found[name])

    def _run(self, number: int, batch: UInt8[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Return layer → mean over positions of a batch; add samples of positions to the trained network's spectra."""
        means: dict[str, Tensor] = {}

        def listen(name: str, maps: Tensor) -> None:
            means[name] = maps.float().mean((2, 3))
            if number == 0:
                self.spectra[name].update(sample_positions(maps))

        model = self._networks[number]
        with listening(model, self._names, listen):
            _, features = model.forward_features(model.normalise(batch))
        return means | {PENULTIMATE: features.float()}


def _summarise(sums: _Sums, labels: Int64[np.ndarray, " n"], first: str | None) -> RepresentationSummary:
    spectra = {name: covariance.compute_spectrum() for name, covariance in sums.spectra.items()}
    trained, initial = sums.own
    cka = [[compute_cka(sums.cross[a, b], trained[a], initial[b]) for b in sums.layers] for a in sums.layers]
    procrustes = [sums.cross[name, name].compute_procrustes() for name in sums.layers]
    features, spectrum = torch.cat(sums.features), spectra[PENULTIMATE]
    values = {
        "effective_rank": spectrum.compute_effective_rank(),
        "alignment": compute_class_alignment(features, labels),
        "uniformity": compute_uniformity(features),
        "alpha": spectrum.compute_alpha(),
        "condition_number": spectrum.compute_condition_number(),
        "first_kurtosis": None if first is None else spectra[first].compute_kurtosis(),
        "cka_initial": cka[-1][-1],
        "procrustes_initial": procrustes[-1],
    }
    channels = {name: covariance.num_channels for name, covariance in sums.spectra.items()}
    return RepresentationSummary(
        metrics={f"{PREFIX}/{name}": value for name, value in values.items() if value is not None},
        undefined=_explain(values),
        num_images=len(labels),
        layers={name: _describe(each, channels[name]) for name, each in spectra.items()},
        cka_initial=cka,
        procrustes_initial=procrustes,
    )


def _explain(values: Mapping[str, float | None]) -> dict[str, str]:
    missing = [name for name, value in values.items() if value is None]
    return {f"{PREFIX}/{name}": f"it needs {REPRESENTATION_METRICS[name].needs}" for name in missing}


def _describe(spectrum: Spectrum, num_channels: int) -> dict[str, Any]:
    """Return the numbers of a layer, and its spectrum thinned out to what a figure can show."""
    number = len(spectrum.eigenvalues)
    ranks = np.unique(np.geomspace(1, number, _STORED).round().astype(np.int64))
    return {
        "channels": num_channels,
        "rank": ranks.tolist(),
        "eigenvalue": [float(f"{value:.5g}") for value in spectrum.eigenvalues[ranks - 1]],
        "condition_number": spectrum.compute_condition_number(),
        "effective_rank": spectrum.compute_effective_rank(),
        "alpha": spectrum.compute_alpha(),
    }
