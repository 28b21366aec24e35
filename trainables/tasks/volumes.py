"""Settings that volumes cannot have yet, and those that they alone can have: checked before training, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainables.config import TrialConfig
from trainables.data.dataset import Dataset
from trainables.pretraining_config import ScratchPretraining
from trainables.regularisers import StainNormalisation, find_part
from trainables.segmentation_data_config import DecathlonData
from trainables.task_config import SegmentationTask


def find_problems_of_volumes(config: TrialConfig, data: Dataset) -> Iterator[str]:
    """Yield the settings that do not fit volumes, or that only volumes have."""
    holds_volumes = data.splits["train"].holds_volumes
    yield from _find_in_foreign(config, holds_volumes=holds_volumes)
    if not holds_volumes:
        yield from _find_only_of_volumes(config)
        return
    if config.augmentation.kind == "augmix":
        yield "augmentation: found augmix with volumes; expected another policy, or none"
    if not isinstance(config.pretraining, ScratchPretraining):
        yield (
            "pretraining: found other than random weights with volumes; expected scratch: nothing is published or "
            "pretrained for their networks"
        )
    if config.model.memory_format == "channels_last":
        yield "model.memory_format: found channels_last with volumes; expected auto or contiguous: it is of images"
    if find_part(config.regulariser, StainNormalisation) is not None:
        yield "regulariser: found stain_normalisation with volumes; expected none: it is of stained sections"
    task = config.task
    if not isinstance(task, SegmentationTask):
        return
    if task.inference == "whole":
        yield (
            "task.inference: found whole with volumes, which differ in size; expected windows (of task.patch_size, "
            "which may be that of the largest volume)"
        )
    sides = task.patch_sides(3)
    if sides is not None and config.augmentation.crop_scale_min is not None and sides[1] != sides[2]:
        yield (
            f"augmentation.crop_scale_min: found it with patches of {sides[1]} × {sides[2]} rows and columns; expected "
            "as many rows as columns (task.patch_size), or no crops"
        )


def _find_only_of_volumes(config: TrialConfig) -> Iterator[str]:
    if config.augmentation.slice_flip:
        yield "augmentation.slice_flip: found it on images, which have no slices; expected it left out"
    if isinstance(config.task, SegmentationTask) and config.task.foreground_share is not None:
        yield "task.foreground_share: found it on images, whose patches lie anywhere; expected it left out"


def _find_in_foreign(config: TrialConfig, *, holds_volumes: bool) -> Iterator[str]:
    for name, source in config.evaluation.foreign.items():
        is_volume = isinstance(source.data, DecathlonData) and source.data.dimensions == 3
        if is_volume != holds_volumes:
            yield (
                f"evaluation.foreign: found {'volumes' if is_volume else 'images'} in {name}, and the data are "
                f"{'volumes' if holds_volumes else 'images'}; expected the same (data.dimensions)"
            )
