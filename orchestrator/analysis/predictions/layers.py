"""Statistics of layers per arm: numbers, spectra and similarity to the initial weights, as the trials store them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from orchestrator.analysis.failure_detection import MAX_TRIALS
from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from trainables.evaluation.metrics import REPRESENTATION_METRICS
from trainables.storage.completeness import REPRESENTATION

#: Start of the columns of headline numbers.
PREFIX = "representation/"
#: Eigenvalues below this share of the largest are rounding errors, and not drawn.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class LayerSpectrum:
    """Spectrum of one layer of an arm, mean over its trials."""

    rank: tuple[int, ...]
    #: Eigenvalues over the largest: their geometric mean; NaN for those that are rounding errors.
    relative: Float64[np.ndarray, " ranks"]
    num_trials: int


@dataclass(frozen=True)
class ArmLayers:
    """Layers of the trained networks of one arm, mean over its trials."""

    spectra: dict[str, LayerSpectrum]
    #: Layers that are compared with those of the initial weights; none unless the study asks for layers.
    compared: tuple[str, ...]
    #: Layer of the trained network × layer of the initial weights, mean over trials; NaN where undefined.
    cka_initial: Float64[np.ndarray, "layers layers"]
    num_trials: int
    num_images: int


def load_arm_layers(results: Results, ledger: Ledger) -> dict[str, ArmLayers]:
    """Return arm → what its complete trials store of their layers; empty if none does, or of too many trials.

    Raises:
        StorageError: a file of the ledger is damaged.
    """
    if len(results.complete) > MAX_TRIALS:
        return {}
    stored: dict[str, list[Mapping[str, Any]]] = {}
    for signature, name in results.complete[["signature", "name"]].itertuples(index=False):
        folder = ledger.folder("trial", str(signature))
        content = json.loads(folder.read(REPRESENTATION)) if folder.exists(REPRESENTATION) else {}
        if content.get("layers"):
            stored.setdefault(str(name), []).append(content)
    return {name: _average(contents) for name, contents in stored.items()}


def _average(contents: Sequence[Mapping[str, Any]]) -> ArmLayers:
    """Return the means over the trials of one arm that have the network of the first one, which tuning may change."""
    first = contents[0]
    own = [each for each in contents if _name_network(each) == _name_network(first)]
    cka = np.array([content["cka_initial"] for content in own], dtype=np.float64)
    spectra = {layer: _average_spectra([content["layers"][layer] for content in own]) for layer in first["layers"]}
    return ArmLayers(spectra, tuple(first["compared"]), cka.mean(axis=0), len(own), int(first["num_images"]))


def _name_network(content: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    return [(name, layer["channels"], len(layer["rank"])) for name, layer in content["layers"].items()]


def _average_spectra(stored: Sequence[Mapping[str, Any]]) -> LayerSpectrum:
    values = np.array([each["eigenvalue"] for each in stored], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # of 0
        relative = np.exp(np.log(values / values[:, :1]).mean(axis=0))
    return LayerSpectrum(tuple(stored[0]["rank"]), np.where(relative > _ROUNDING, relative, np.nan), len(stored))


def tabulate_statistics(results: Results) -> pd.DataFrame:
    """Return the headline numbers of every independently trained model that has some: name, and a column per metric.

    Those of an arm's replicates that share a trained step are averaged: they are one unit.
    """
    found = [name for name in REPRESENTATION_METRICS if f"{PREFIX}{name}" in results.complete]
    complete = results.complete
    parts = [pd.DataFrame(columns=["name", *found])]
    for name, rows in complete.groupby("name", sort=False) if found else ():
        units = rows["replicate"].map(results.group_replicates(results.trials[results.trials["name"] == name]))
        means = rows[[f"{PREFIX}{each}" for each in found]].groupby(units.to_numpy()).mean()
        parts.append(means.set_axis(found, axis=1).assign(name=name).dropna(how="all", subset=found))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
