"""Trained network exported to a folder and rebuilt without its study: safetensors and JSON, no pickle.

    model.safetensors       the weights, byte for byte those of the trial
    config.json             task, architecture, image size and channels, normalisation, classes, a self-test, provenance
    reference.safetensors   of a segmentation: what detectors of foreign images know of the training images

``load_exported(folder)`` returns a module that takes uint8 images and returns logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data.decoding.pixels import build_pixel_spec
from trainables.errors import CheckpointError
from trainables.exported.classifier import ImageClassifier
from trainables.exported.form import Architecture, ExportedConfig, Images, Normalisation, SelfTest
from trainables.exported.network import ExportedNetwork
from trainables.exported.segmenter import AboutPixels, ImageSegmenter
from trainables.models.networks import Classifier
from trainables.ops.stain_normalisation import StainNormaliser
from trainables.regularisers import Dropout, StainNormalisation, StochasticDepth, find_part
from trainables.storage.checkpoint import load_weights, restore_module, save_weights
from trainables.storage.folder import Folder
from trainables.task_config import SegmentationTask, TaskConfig

WEIGHTS, CONFIG, REFERENCE = "model.safetensors", "config.json", "reference.safetensors"
#: Accepted difference between logits of the self-test, relative to the largest one. Another version of a library or
#: another CPU rounds differently (1e-6); another stem or input size changes them by half, another normalisation by a
#: tenth.
SELF_TEST_TOLERANCE = 1e-3


def build_exported(
    trial: Folder,
    config: TrialConfig,
    *,
    classes: tuple[str, ...],
    provenance: Mapping[str, Any],
    pixels: AboutPixels | None = None,
) -> ExportedNetwork:
    """Return the network of a finished trial, on the CPU, in evaluation mode; ``write_exported`` writes it.

    Args:
        trial: folder of the trial.
        config: configuration of the trial.
        classes: class names in the order of the logits.
        provenance: origin of the network, as JSON values.
        pixels: result of ``segmenter.describe_pixels`` for its data.

    Raises:
        CheckpointError: the weights are damaged or do not fit this config.
        StorageError: the weights are missing.
    """
    dropout, depth = find_part(config.regulariser, Dropout), find_part(config.regulariser, StochasticDepth)
    stain = find_part(config.regulariser, StainNormalisation)
    of_images = asdict(build_pixel_spec(config.data))
    exported = ExportedConfig(
        task=config.task,
        architecture=Architecture(
            name=config.model.name,
            stages=config.model.stages,
            stem=config.model.stem,
            input_size=config.model.input_size,
            dropout=0.0 if dropout is None else dropout.probability,
            stochastic_depth=None if depth is None else depth.probability,
            stain_normalisation=None if stain is None else stain.method,
            confidence=config.training.confidence,
        ),
        images=Images(size_px=of_images.pop("image_size"), **of_images),
        normalisation=Normalisation(mean=(), std=(), network_size_px=0),  # those of the network, below
        classes=classes,
        pixels=None if pixels is None else pixels.said,
        ece_bins=config.evaluation.ece_bins,
        weights_sha256=trial.sha256(WEIGHTS),
        self_test=SelfTest(logits=()),
        provenance=dict(provenance),
    )
    network = _build(exported)
    restore_module(network, load_weights(trial, WEIGHTS)[0], origin=f"{WEIGHTS} in {trial.uri}")
    normalisation = Normalisation(
        mean=tuple(network.mean.flatten().tolist()),
        std=tuple(network.std.flatten().tolist()),
        network_size_px=network.input_size,
    )
    reference = {} if pixels is None else pixels.reference
    model = _wrap(network, exported.model_copy(update={"normalisation": normalisation}), reference).eval()
    model.config = model.config.model_copy(update={"self_test": SelfTest(logits=model.answer_self_test())})
    return model


def write_exported(trial: Folder, out: Folder, model: ExportedNetwork) -> None:
    """Write ``config.json``, ``model.safetensors``, a copy of the trial's, and the reference, if any, into ``out``.

    Raises:
        StorageError: the storage refused a write.
    """
    out.write_json(CONFIG, model.config.model_dump(mode="json"))  # first: it marks the folder as an export
    out.write(WEIGHTS, trial.read(WEIGHTS))
    if model.reference:
        save_weights(out, REFERENCE, model.reference, {"weights_sha256": model.config.weights_sha256})
    else:
        out.remove(REFERENCE)


def load_exported(folder: Folder | Path | str) -> ExportedNetwork:
    """Return the network in a folder that ``robustsweep select`` wrote, on the CPU, in evaluation mode.

    Nothing is unpickled, and only this package's networks are built. The network has to pass the self-test first.

    Raises:
        CheckpointError: a file is damaged, or was written by a version whose networks differ.
        StorageError: a file is missing.
        ConfigError: the installed torchvision or timm does not have the network.
    """
    place = folder if isinstance(folder, Folder) else Folder(folder)
    config = _read_config(place)
    found = place.sha256(WEIGHTS)
    if found != config.weights_sha256:
        raise CheckpointError(
            f"read {WEIGHTS} in {place.uri}: its checksum is {found}, {CONFIG} says {config.weights_sha256}; "
            "export it again with `robustsweep select`"
        )
    network = _build(config)
    restore_module(network, load_weights(place, WEIGHTS)[0], origin=f"{WEIGHTS} in {place.uri}")
    normalisation = config.normalisation
    # The stored values, whatever the installed libraries use for this network.
    network.mean.copy_(torch.tensor(normalisation.mean).view(1, -1, 1, 1))
    network.std.copy_(torch.tensor(normalisation.std).view(1, -1, 1, 1))
    network.input_size = normalisation.network_size_px
    model = _wrap(network, config, {} if config.pixels is None else _read_reference(place, config)).eval()
    _check_self_test(model, place)
    return model


def _read_config(folder: Folder) -> ExportedConfig:
    try:
        return ExportedConfig.model_validate(folder.read_json(CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"read {CONFIG} in {folder.uri}: {key}: {first['msg']}, and {error.error_count() - 1} further problems; "
            "expected a file that `robustsweep select` of this version wrote: export it again"
        ) from error


def _read_reference(folder: Folder, config: ExportedConfig) -> dict[str, Tensor]:
    tensors, facts = load_weights(folder, REFERENCE)
    if facts["weights_sha256"] != config.weights_sha256:
        raise CheckpointError(
            f"read {REFERENCE} in {folder.uri}: it belongs to the weights {facts['weights_sha256']}, {CONFIG} says "
            f"{config.weights_sha256}; export it again with `robustsweep select`"
        )
    return tensors


def _find_form(task: TaskConfig) -> type[ExportedNetwork]:
    return ImageSegmenter if isinstance(task, SegmentationTask) else ImageClassifier


def _wrap(network: Classifier, config: ExportedConfig, reference: Mapping[str, Tensor]) -> ExportedNetwork:
    if isinstance(config.task, SegmentationTask):
        return ImageSegmenter(network, config, reference)
    return ImageClassifier(network, config)


def _build(config: ExportedConfig) -> Classifier:
    """Return the network with random weights; the caller's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        network = _find_form(config.task).build_network(config)
    if config.architecture.stain_normalisation is not None:
        network.stain = StainNormaliser(config.architecture.stain_normalisation)
    return network


def _check_self_test(model: ExportedNetwork, folder: Folder) -> None:
    expected, found = np.array(model.config.self_test.logits), np.array(model.answer_self_test())
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= SELF_TEST_TOLERANCE * float(np.abs(expected).max()):
        raise CheckpointError(
            f"rebuilt {model.config.architecture.name} from {folder.uri} and gave it the self-test: its logits differ "
            f"by {difference:.3g} from those in {CONFIG}, expected at most {SELF_TEST_TOLERANCE:g} of the largest one; "
            f"the library builds another network today: install the versions of {CONFIG} (provenance.versions)"
        )
