"""Image sets of other data sources, beside which a model is tested: no image has one of its classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from trainables.data.dataset import Dataset
from trainables.data.load import load_dataset
from trainables.data.segmentation.extents import find_sides
from trainables.data.splits import is_set_name
from trainables.data_config import DataConfig
from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig
from trainables.segmentation_data_config import DecathlonData


def fit_foreign_data(foreign: DataConfig, data: DataConfig, dataset: Dataset) -> DataConfig:
    """Return ``foreign`` with the side and the channels that the study's images have, volumes with their spacing.

    Args:
        foreign: config of the other source.
        data: config of the study's data set.
        dataset: the study's data set.
    """
    fitted = foreign.model_copy(update={"image_size": data.image_size, "channels": data.channels})
    train = dataset.splits["train"]
    if isinstance(fitted, DecathlonData) and fitted.dimensions == 3 and train.holds_volumes:
        thickness, height, width = find_sides(train)[0].tolist()
        return fitted.model_copy(update={"spacing_mm": (thickness, height, width)})
    return fitted


def load_evaluated(data: DataConfig, evaluation: EvaluationConfig, *, cache_dir: Path) -> Dataset:
    """Return the data set of ``data`` with the sets of other sources that an evaluation names.

    Arguments and errors are those of ``load_dataset`` and ``with_foreign_sets``.
    """
    return with_foreign_sets(load_dataset(data, cache_dir=cache_dir), data, evaluation, cache_dir=cache_dir)


def with_foreign_sets(
    dataset: Dataset, data: DataConfig, evaluation: EvaluationConfig, *, cache_dir: Path, verify: bool = False
) -> Dataset:
    """Return ``dataset`` with the test images of every ``evaluation.foreign`` source in ``ood``, labels −1.

    Volumes have the spacing of the data set.
    Masks of a source say nothing about the classes of the study, and are left out.

    Args:
        dataset: data set of the study.
        data: its config.
        evaluation: which sources.
        cache_dir: folder on this node's disk.
        verify: whether to read every byte of the data, see ``load_dataset``.

    Raises:
        ConfigError: the name of a source is not one of a set, or taken.
        RobustSweepError: a source cannot be loaded, see ``load_dataset``.
    """
    found = dict(dataset.ood)
    for name, source in evaluation.foreign.items():
        if not is_set_name(name) or name in dataset.external:
            raise ConfigError(
                f"evaluation.foreign: found the name {name!r}, which is not allowed or taken; expected letters, "
                f"digits, '_', '-', '.' or blanks inside, and none of train, val, test, held_out"
                + "".join(f", {each}" for each in dataset.external)
            )
        fitted = fit_foreign_data(source.data, data, dataset)
        images = load_dataset(fitted, cache_dir=cache_dir, verify=verify).splits["test"]
        found[name] = replace(images, name=name, labels=np.full(len(images), -1), targets=None)
    return replace(dataset, ood=found)
