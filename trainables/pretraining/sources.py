"""Images of a pretraining step: the training splits of one or several data sources, as one set.

A step's own sources are brought to the side, the channels and the resizing of the study's images, so that the network
of the trials is the network of the step, and copies of the study's test images have the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from pydantic import ValidationError

from trainables.data.dataset import Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.data_config import DataConfig, UnlabelledFolderData
from trainables.errors import ConfigError
from trainables.image_data_config import ImageData

Source = TypeVar("Source", bound=ImageData)


def fit_source(source: Source, data: DataConfig) -> Source:
    """Return ``source`` with side, channels and resizing of the study's images.

    Raises:
        ConfigError: the source has no such images.
    """
    study = {name: getattr(data, name) for name in ("image_size", "channels", "resize")}
    try:
        return type(source).model_validate(source.model_dump() | study)
    except ValidationError as error:
        first = error.errors()[0]
        field, kind = ".".join(map(str, first["loc"])), source.model_dump()["kind"]
        raise ConfigError(
            f"pretraining.data: brought {kind} to the study's {field} {first['input']!r} and failed: {first['msg']}; "
            f"change data.{field}, or choose another source"
        ) from error


def load_sources(sources: Sequence[DataConfig | UnlabelledFolderData], *, cache_dir: Path) -> list[Dataset]:
    """Return the data sets of a step. Errors are those of ``load_dataset``."""
    return [load_dataset(source, cache_dir=cache_dir) for source in sources]


def join_training(datasets: Sequence[Dataset]) -> ImageSet:
    """Return the training images of all data sets as one set, without labels (−1) if there are several.

    The ids begin with the number of the data set, because two sources may use the same ids. Images of one data set are
    mapped, of several they are copied into memory.
    """
    if len(datasets) == 1:
        return datasets[0].splits["train"]
    parts = [dataset.splits["train"] for dataset in datasets]
    images: UInt8[np.ndarray, "n channels height width"] = np.concatenate([part.images for part in parts])
    return ImageSet(
        name="train",
        images=images,
        labels=np.full(len(images), -1),
        ids=_number([part.ids for part in parts]),
        groups=_number([part.groups for part in parts]),
        sites=np.concatenate([part.sites for part in parts]),
    )


def _number(names: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.char.add(f"{number}/", each.astype(str)) for number, each in enumerate(names)])
