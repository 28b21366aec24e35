"""Predictions of a segmentation network on the images of a set, batch by batch; nothing of their size is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from trainables.data.feed import ImageFeed, split_sizes
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
    #: The images as the network saw them, before normalisation.
    images: UInt8[Tensor, "n c h w"]
    logits: Float[Tensor, "n classes h w"]


def predict_batches(
    model: Segmenter,
    feed: ImageFeed,
    task: SegmentationTask,
    *,
    batch_size: int,
    precision: torch.dtype,
    transform: Transform = keep,
) -> Iterator[PredictedBatch]:
    """Yield the predictions on all images in order. The model is set to evaluation mode.

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
    start, pixels = 0, feed.images.images.shape[-2] * feed.images.images.shape[-1]
    sizes = split_sizes(len(feed), max(1, min(batch_size, _PIXELS // pixels)))
    for images in feed.batches(np.arange(len(feed)), sizes):
        rows = slice(start, start := start + len(images))
        shifted = transform(images, rows)
        casts = torch.autocast(feed.device.type, precision, enabled=precision != torch.float32)
        with torch.inference_mode(), casts:
            normalised = model.normalise(shifted)
            logits = predict_windows(
                model, normalised, size=task.window_size, overlap=task.overlap, batch_size=batch_size
            )
        _check_finite(logits, rows, feed)
        yield PredictedBatch(rows, shifted, logits)


def _check_finite(logits: Tensor, rows: slice, feed: ImageFeed) -> None:
    finite = logits.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        first = rows.start + int(finite.logical_not().nonzero()[0])
        raise DivergedError(
            f"predicted the {len(feed)} images of {feed.images.name} and found outputs that are not finite, the first "
            f"for {feed.images.ids[first]}; lower training.learning_rate or set training.gradient_clip_norm"
        )
