"""Dice and cross-entropy on the validation images of a segmentation, after every epoch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from trainables.data.dataset import UNCOUNTED
from trainables.data.feed import ImageFeed
from trainables.evaluation.segmentation.annotated import restrict
from trainables.evaluation.segmentation.cases import average_cases
from trainables.evaluation.segmentation.overlap import count_overlap, measure_overlap
from trainables.evaluation.segmentation.predict import predict_batches, read_targets
from trainables.models.segmenter import Segmenter
from trainables.task_config import SegmentationTask


def measure_validation(
    model: Segmenter,
    feed: ImageFeed,
    task: SegmentationTask,
    *,
    annotated: Bool[Tensor, "sources classes"] | None,
    batch_size: int,
    precision: torch.dtype,
) -> dict[str, float]:
    """Return ``dice`` (mean over classes of the mean over cases) and ``loss``, the mean cross-entropy of the pixels.

    Other arguments and errors are those of ``predict_batches``. Without ``dice`` if no image has a foreground.

    Args:
        annotated: source × class (``tabulate_annotated``); None if all data sets annotate all classes.
    """
    images = feed.images
    assert images.targets is not None
    sources = torch.from_numpy(np.array(images.labels)).to(feed.device)
    table = None if annotated is None else annotated.to(feed.device)
    dice: list[np.ndarray] = []
    losses, counted = 0.0, 0
    for batch in predict_batches(model, feed, task, batch_size=batch_size, precision=precision):
        logits = restrict(batch.logits.float(), sources[batch.rows], table)
        targets = read_targets(images, batch.rows, feed.device)
        losses += float(F.cross_entropy(logits, targets.long(), ignore_index=UNCOUNTED, reduction="sum"))
        counted += int((targets != UNCOUNTED).sum())
        counts = count_overlap(
            logits.argmax(1).byte().cpu().numpy(), targets.cpu().numpy(), foreground=range(1, logits.shape[1])
        )
        dice.append(measure_overlap(counts)["dice"])
    mean = average_cases(np.concatenate(dice))
    return {"loss": losses / max(1, counted), **({} if np.isnan(mean) else {"dice": mean})}
