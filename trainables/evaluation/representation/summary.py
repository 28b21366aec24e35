"""Statistics of what the layers of a trained network hold, and how far they have moved from the initial weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from trainables.config import Execution
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.evaluation.metric_tables.representation import REPRESENTATION_METRICS
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.representation.alignment_uniformity import compute_uniformity
from trainables.evaluation.representation.layers import (
    PENULTIMATE,
    SETTING,
    check_layers,
    choose_layers,
    list_convolutions,
    listening,
    sample_positions,
)
from trainables.evaluation.representation.same_class import compute_class_alignment
from trainables.evaluation.representation.similarity import MIN_IMAGES, CrossMoments, compute_cka
from trainables.evaluation.representation.spectrum import CovarianceSum, Spectrum, compute_spectrum
from trainables.evaluation_config import EvaluationConfig, RepresentationConfig
from trainables.models.networks import Classifier
from trainables.storage.completeness import REPRESENTATION
from trainables.storage.folder import Folder

#: Start of the names of headline numbers.
PREFIX = "representation"
#: Most eigenvalues stored of a layer, evenly spaced on a logarithmic axis of ranks.
_STORED = 100


#: Numbers that need the layers of a trial.
_OF_LAYERS = ("first_kurtosis", "cka_initial", "procrustes_initial")
#: Numbers of the stored features.
_OF_FEATURES = tuple(name for name in REPRESENTATION_METRICS if name not in _OF_LAYERS)


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
    #: Layers that are compared with those of the initial weights.
    compared: list[str] = field(default_factory=list)
    #: Of the trained network × of the initial weights.
    cka_initial: list[list[float | None]] = field(default_factory=list)
    #: Of every one.
    procrustes_initial: list[float | None] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return everything but the headline numbers, which belong to ``result.json``."""
        names = ("num_images", "layers", "compared", "cka_initial", "procrustes_initial")
        return {name: getattr(self, name) for name in names}


def choose_rows(number: int, most: int) -> Int64[np.ndarray, " m"]:
    """Return ``most`` evenly spaced row numbers below ``number``, or all of them: a set may be sorted by class."""
    return np.arange(number) if number <= most else np.arange(most) * number // most


def describe_representation(
    model: Classifier,
    initial: Classifier | None,
    data: Dataset,
    config: EvaluationConfig,
    folder: Folder,
    execution: Execution,
    precision: torch.dtype,
) -> RepresentationSummary:
    """Write ``representation.json`` of a trained network on unshifted test images; return all of it.

    What is about penultimate features comes from the stored ones; layers take a pass over the images.

    Args:
        model: trained network, on its device.
        initial: the network with the weights from which the training started; None if no layers are described.
        data: data set; its test images are read.
        config: layers, and number of images.
        folder: folder of the trial, with predictions on ``test``.
        execution: images per forward pass.
        precision: dtype of the forward pass; bfloat16 runs under autocast.

    Raises:
        ConfigError: if a layer does not exist or gives no map.
    """
    test = load_predictions(folder, "test")
    rows = choose_rows(len(test.labels), config.representation.num_images)
    values: dict[str, float | None] = dict.fromkeys(REPRESENTATION_METRICS)
    summary = RepresentationSummary(num_images=len(rows))
    whys: dict[str, str] = {}
    if len(rows) < MIN_IMAGES:
        whys = dict.fromkeys(values, f"there are {len(rows)} images, expected {MIN_IMAGES} or more")
    else:
        if initial is None:
            whys |= dict.fromkeys(_OF_LAYERS, f"{SETTING} names no layers")
        else:
            values |= _compare(
                summary, model, initial, _Pass(data.splits["test"], rows, config.representation, execution, precision)
            )
        if test.features is None:
            whys |= dict.fromkeys(_OF_FEATURES, "no features of test are stored: add it to evaluation.store_features")
        else:
            features = torch.from_numpy(test.features[rows])
            values |= _describe_features(summary, features, test.labels[rows])
    for name, value in values.items():
        if value is None:
            summary.undefined[f"{PREFIX}/{name}"] = whys.get(name, f"it needs {REPRESENTATION_METRICS[name].needs}")
        else:
            summary.metrics[f"{PREFIX}/{name}"] = value
    folder.write(REPRESENTATION, json.dumps(summary.as_json(), allow_nan=False, separators=(",", ":")).encode())
    return summary


def _describe_features(
    summary: RepresentationSummary, features: Shaped[Tensor, "n d"], labels: Int64[np.ndarray, " n"]
) -> dict[str, float | None]:
    """Return the headline numbers of penultimate features; add their spectrum to the layers."""
    spectrum = compute_spectrum(features)
    layer = _describe_layer(spectrum, features.shape[1])
    summary.layers[PENULTIMATE] = layer
    return {name: layer[name] for name in ("effective_rank", "alpha", "condition_number")} | {
        "alignment": compute_class_alignment(features, labels),
        "uniformity": compute_uniformity(features),
    }


@dataclass(frozen=True)
class _Pass:
    """A pass over some images."""

    images: ImageSet
    rows: Int64[np.ndarray, " m"]
    config: RepresentationConfig
    execution: Execution
    precision: torch.dtype


def _compare(
    summary: RepresentationSummary, model: Classifier, initial: Classifier, todo: _Pass
) -> dict[str, float | None]:
    """Return the headline numbers that need layers; add their spectra and similarities."""
    feed = ImageFeed(todo.images, model.mean.device)
    some = next(feed.batches(todo.rows[:2], [2]))
    names = choose_layers(model, some) if todo.config.layers == "auto" else todo.config.layers
    check_layers(model, names, some)
    sums = _Sums(model.eval(), initial.to(feed.device).eval(), names)
    is_reduced = todo.precision != torch.float32
    with torch.inference_mode(), torch.autocast(feed.device.type, todo.precision, enabled=is_reduced):
        for batch in feed.batches(todo.rows, split_sizes(len(todo.rows), todo.execution.evaluation_batch_size)):
            sums.add(batch)
    spectra = {name: covariance.compute_spectrum() for name, covariance in sums.spectra.items()}
    summary.layers |= {name: _describe_layer(each, sums.spectra[name].num_channels) for name, each in spectra.items()}
    trained, start = sums.own
    summary.compared = list(sums.layers)
    summary.cka_initial = [
        [compute_cka(sums.cross[a, b], trained[a], start[b]) for b in sums.layers] for a in sums.layers
    ]
    summary.procrustes_initial = [sums.cross[name, name].compute_procrustes() for name in sums.layers]
    return {
        "first_kurtosis": spectra[sums.convolutions[0]].compute_kurtosis() if sums.convolutions else None,
        "cka_initial": summary.cka_initial[-1][-1],
        "procrustes_initial": summary.procrustes_initial[-1],
    }


class _Sums:
    """Sums over images: covariance of every layer, and its moments with every layer of the initial weights.

    Layers are compared by their means over positions, and have the penultimate features as last one. Convolutions are
    not compared: the mean of a linear map is that of the mean image, its brightness, whatever the kernel.
    """

    def __init__(self, model: Classifier, initial: Classifier, names: tuple[str, ...]) -> None:
        self._networks = (model, initial)
        self._names = names
        self.convolutions = list_convolutions(model, names)
        self.layers = (*(name for name in names if name not in self.convolutions), PENULTIMATE)
        self.spectra = {name: CovarianceSum() for name in names}
        self.cross = {(one, other): CrossMoments() for one in self.layers for other in self.layers}
        self.own = tuple({name: CrossMoments() for name in self.layers} for _ in self._networks)

    def add(self, batch: UInt8[Tensor, "n c h w"]) -> None:
        trained, initial = (self._run(number, batch) for number in range(2))
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


def _describe_layer(spectrum: Spectrum, num_channels: int) -> dict[str, Any]:
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
