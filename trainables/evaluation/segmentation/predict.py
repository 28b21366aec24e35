"""Predictions of a segmentation network on the images of a set, batch by batch; nothing of their size is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from trainables.data.dataset import ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.data.segmentation.extents import find_extents
from trainables.errors import DivergedError
from trainables.evaluation.predictions import Transform, keep
from trainables.evaluation.segmentation.windows import predict_windows
from trainables.models.segmenter import Segmenter
from trainables.task_config import SegmentationTask

#: Pixels of a batch at most, 64 images of 256 px: a decoder's maps at full size take 64 MiB and more per million.
_PIXELS = 1 << 22


class PredictedBatch(NamedTuple):
    """Predictions on consecutive images of a set."""

    rows: slice
    #: The images as the network saw them, before normalisation; a volume without its padding.
    images: UInt8[Tensor, "n c *space"]
    logits: Float[Tensor, "n classes *space"]


def predict_batches(
    model: Segmenter,
    feed: ImageFeed,
    task: SegmentationTask,
    *,
    batch_size: int,
    precision: torch.dtype,
    transform: Transform = keep,
) -> Iterator[PredictedBatch]:
    """Yield the predictions on all images in order, on volumes one by one. The model is set to evaluation mode.

    Args:
        model: model on the device of the predictions.
        feed: source of the images.
        task: windows and their overlap.
        batch_size: images per batch, fewer where they are large.
        precision: dtype of the forward pass; bfloat16 runs under autocast.
        transform: shift of the images.

    Raises:
        DivergedError: if an output is not finite.
    """
    model.eval()
    start, together = 0, count_windows(feed.images, task, batch_size)
    for images in feed.batches(np.arange(len(feed)), split_batches(feed.images, batch_size)):
        rows = slice(start, start := start + len(images))
        shifted = transform(crop_padding(images, feed.images, rows), rows)
        casts = torch.autocast(feed.device.type, precision, enabled=precision != torch.float32)
        with torch.inference_mode(), casts:
            normalised = model.normalise(shifted)
            logits = predict_windows(
                model, normalised, size=task.window_size, overlap=task.overlap, batch_size=together
            )
        _check_finite(logits, rows, feed)
        yield PredictedBatch(rows, shifted, logits)


def count_windows(images: ImageSet, task: SegmentationTask, batch_size: int) -> int:
    """Return how many windows pass the network at once: as many pixels at most as a batch of images; of volumes one."""
    if images.holds_volumes or not isinstance(task.window_size, int):
        return 1
    return max(1, min(batch_size, _PIXELS // task.window_size**2))


def split_batches(images: ImageSet, batch_size: int) -> list[int]:
    """Return the sizes of the batches in which the images of a set are predicted: those of volumes differ in size."""
    pixels = math.prod(images.images.shape[2:])
    size = 1 if images.holds_volumes else max(1, min(batch_size, _PIXELS // pixels))
    return split_sizes(len(images), size)


def crop_padding(arrays: Tensor, images: ImageSet, rows: slice) -> Tensor:
    """Return what belongs to the pixels of ``rows``, of a volume without what the stored array has around it.

    Args:
        arrays: a batch of ``split_batches``, spatial axes last.
        images: the set.
        rows: rows of the batch.
    """
    if not images.holds_volumes:
        return arrays
    depth, height, width = find_extents(images)[rows.start].tolist()
    return arrays[..., :depth, :height, :width]


def read_targets(images: ImageSet, rows: slice, device: torch.device) -> UInt8[Tensor, "m *space"]:
    """Return the targets of the images of a batch of ``predict_batches``."""
    assert images.targets is not None
    return crop_padding(torch.from_numpy(np.array(images.targets[rows])).to(device), images, rows)


def _check_finite(logits: Tensor, rows: slice, feed: ImageFeed) -> None:
    finite = logits.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        first = rows.start + int(finite.logical_not().nonzero()[0])
        raise DivergedError(
            f"predicted the {len(feed)} images of {feed.images.name} and found outputs that are not finite, the first "
            f"for {feed.images.ids[first]}; lower training.learning_rate or set training.gradient_clip_norm"
        )
