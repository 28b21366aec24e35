"""An exported network that puts an image into one class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from trainables.data.dataset import ImageSet
from trainables.errors import ConfigError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import load_predictions
from trainables.exported.check import TOLERANCES, Check, compare
from trainables.exported.form import ExportedConfig
from trainables.exported.network import (
    ExportedNetwork,
    NewEvaluation,
    check_classes,
    check_ids,
    list_images,
    spread_rows,
)
from trainables.model_config import ModelConfig
from trainables.models.confidence import add_confidence
from trainables.models.model_scores import build_model_scores
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder

#: Test images on which networks are compared.
MAX_CHECKED = 64
#: Images per pass over new ones.
_BATCH = 64


class ImageClassifier(ExportedNetwork):
    """Module from uint8 images to one logit per class."""

    pipeline_tag = "image-classification"
    purpose = "puts {colour} images, brought to {size} px ({resize}), each into one of"
    usage = """\
from robustsweep import load_exported

model = load_exported("FOLDER")              # nothing is unpickled
images = model.decode_image("image.png")     # uint8, 1 x {channels} x {size} x {size}
confidence = model(images).softmax(1)        # in the order of model.config.classes"""

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n classes"]:
        """Return the logits; softmax gives the confidences, ``config.classes`` their names."""
        logits: Tensor = self.network(self.network.normalise(images))
        return logits

    @torch.inference_mode()
    def rate_confidence(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, " n"]:
        """Return the learned confidence, in [0, 1], of a network that was trained with one (``training.confidence``).

        Raises:
            ConfigError: the network has none; use softmax of the logits.
        """
        scores = build_model_scores(self.network, mc_dropout=0, seed=0)
        if scores is None:
            raise ConfigError(
                "rate_confidence: this network was trained without training.confidence and has no confidence of its "
                "own; expected the largest softmax of its logits to be used instead"
            )
        return scores.forward(self.network.normalise(images))[2].squeeze(1).sigmoid()

    @staticmethod
    def build_network(config: ExportedConfig) -> Classifier:
        """Return the network with random weights, see ``ExportedNetwork.build_network``."""
        architecture = config.architecture
        model = ModelConfig(
            name=architecture.name,
            stages=architecture.stages,
            stem=architecture.stem,
            input_size=architecture.input_size,
        )
        network = build_model(
            model,
            num_classes=len(config.classes),
            channels=config.images.channels,
            image_size=config.images.size_px,
            dropout=architecture.dropout,
            stochastic_depth=architecture.stochastic_depth,
        )
        add_confidence(network, architecture.confidence, seed=0)
        return network

    def choose_checked(self, test: ImageSet) -> np.ndarray:
        """Return rows of test images, see ``ExportedNetwork.choose_checked``."""
        return spread_rows(len(test), MAX_CHECKED)

    @torch.inference_mode()
    def compare_stored(self, trial: Folder, test: ImageSet, rows: np.ndarray, *, precision: str) -> Check:
        """Return a check of the logits, see ``ExportedNetwork.compare_stored``."""
        predictions = load_predictions(trial, "test")
        check_ids(predictions.ids, test, f"{trial.uri}/predictions/test.npz")
        logits = self(torch.from_numpy(np.array(test.images[rows]))).float().numpy()
        what = "model.safetensors against the predictions that the trial stored"
        return compare(logits, predictions.of("identity/0")[rows], what=what, tolerance=TOLERANCES[precision])

    @torch.inference_mode()
    def evaluate(self, sets: Sequence[ImageSet], classes: Sequence[str], *, data_set: str | None) -> NewEvaluation:
        """Return metrics of the logits, and class and confidence of every image, see ``ExportedNetwork.evaluate``."""
        own = self.config.classes
        check_classes(classes, own)
        if data_set is not None:
            raise ConfigError(f"found the data set {data_set!r} for a network that classifies images; leave it out")
        device, parts = self.network.mean.device, []
        for images in sets:
            for start in range(0, len(images), _BATCH):
                batch = torch.from_numpy(np.array(images.images[start : start + _BATCH]))
                parts.append(self(batch.to(device)).float().cpu().numpy())
        logits = np.concatenate(parts)
        index = np.array([own.index(name) for name in classes])
        labels = index[np.concatenate([images.labels for images in sets])]
        confidence = torch.from_numpy(logits).softmax(1).amax(1)
        predicted = logits.argmax(1)
        cases = {"class": [own[k] for k in labels], "predicted": [own[k] for k in predicted]}
        return NewEvaluation(
            compute_metrics(logits, labels, ece_bins=self.config.ece_bins),
            {"num_cases": len(labels), "num_errors": int((predicted != labels).sum())},
            {},
            list_images(sets) | cases | {"confidence": confidence.tolist()},
        )

    def sample_logits(self, logits: Tensor) -> Float32[Tensor, "n values"]:
        """Return all logits, see ``ExportedNetwork.sample_logits``."""
        return logits
