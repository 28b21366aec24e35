"""Features of a linear probe's images, computed once: a step is then one of the last layer alone.

They are exact as long as nothing changes an image or the frozen network between epochs: no augmentation, no mixing of
images, the network in evaluation mode. Otherwise every epoch computes them anew, which gives the same kind of result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from trainables.augmentation.pipeline import changes_images
from trainables.confidence_config import ConfidNet, NoConfidence
from trainables.config import TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.feed import GPU_COPY_SHARE, ImageFeed, split_sizes
from trainables.models.networks import Classifier
from trainables.regularisers import CutMix, Mixup, find_part

#: Features of the training and validation images of a trial that are kept in memory at most. An assumption: as much as
#: 500,000 images with 2,048 features.
MAX_CACHE_BYTES = 4 * 2**30
CACHED = "cached"


class FeatureFeed:
    """Batches of cached features by row number of the images, in place of an ``ImageFeed``.

    Args:
        features: features of the images of ``rows``.
        rows: row numbers in ascending order.
        device: device of the batches.
    """

    def __init__(self, features: Float32[Tensor, "n f"], rows: Int64[np.ndarray, " n"], device: torch.device) -> None:
        self.features, self._rows, self._device = features, rows, device

    def batches(self, rows: Int64[np.ndarray, " n"], sizes: Sequence[int]) -> Iterator[Tensor]:
        """Yield the features of ``rows`` in batches of ``sizes``, which sum to the number of rows."""
        places = torch.from_numpy(np.searchsorted(self._rows, rows)).to(self.features.device)
        for part in torch.split(places, list(sizes)):
            yield self.features[part].to(self._device, non_blocking=True)


def find_cache_obstacle(model: Classifier, config: TrialConfig, data: Dataset) -> str | None:
    """Return why a linear probe's features cannot be computed once, None if they can.

    The answer depends on config, network and data alone, and so does the last digit of the weights.
    """
    training, regulariser = config.training, config.regulariser
    if not training.is_linear_probe:
        return "the network is not frozen"
    if changes_images(config.augmentation):
        return "the augmentation changes the images in every epoch"
    if find_part(regulariser, Mixup) is not None or find_part(regulariser, CutMix) is not None:
        return "the regulariser mixes images"
    if not isinstance(training.confidence, NoConfidence | ConfidNet):
        return f"{training.confidence.kind} is trained beside the last layer"
    num_images = len(data.splits["train"]) + len(data.splits["val"])
    if 4 * num_images * model.num_features > MAX_CACHE_BYTES:
        return f"{num_images} × {model.num_features} features take more than {MAX_CACHE_BYTES // 2**30} GiB"
    return None if _ends_with_head(model, data) else "the last layer takes maps, or is followed by another"


@torch.no_grad()
def _ends_with_head(model: Classifier, data: Dataset) -> bool:
    """Return whether the logits are the output of the head on one vector per image. Evaluation mode is left set."""
    model.eval()
    images = torch.zeros(2, *data.splits["train"].images.shape[1:], dtype=torch.uint8, device=model.mean.device)
    logits, features = model.forward_recording(model.normalise(images), model.head)
    return features.ndim == 2 and torch.equal(model.head(features), logits)


@torch.no_grad()
def compute_features(
    model: Classifier, feed: ImageFeed, rows: Int64[np.ndarray, " n"], *, precision: torch.dtype
) -> FeatureFeed:
    """Return the inputs of the head for the images of ``rows``, in float32, of the network in evaluation mode.

    Args:
        model: model on the device of the training; evaluation mode is left set.
        feed: source of the images.
        rows: row numbers in ascending order.
        precision: dtype of the forward pass; bfloat16 runs under autocast.
    """
    model.eval()
    device = feed.device
    place = torch.device("cpu")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        place = device if 4 * len(rows) * model.num_features <= GPU_COPY_SHARE * free else place
    found = torch.empty(len(rows), model.num_features, device=place)
    start = 0
    for images in feed.batches(rows, split_sizes(len(rows), 256)):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            _, features = model.forward_recording(model.normalise(images), model.head)
        found[start : start + len(images)] = features.float()
        start += len(images)
    return FeatureFeed(found, rows, device)
