"""Any classification set of torchvision.datasets, by the name of its class."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from trainables.data.assembly import suggest
from trainables.data.decoding.files import UNREADABLE
from trainables.data.decoding.pixels import PixelSpec, build_pixel_spec, fit_image
from trainables.data.identity.file_digests import FileDigests
from trainables.data.sources.arrays import build_array_table
from trainables.data.table import Source, Table, hash_json
from trainables.data_config import TorchvisionData
from trainables.errors import ConfigError, DataError
from trainables.storage.patient_lock import locked

#: Names of the splits in torchvision's classes with ``split=``; the first that the class accepts is used.
SPLIT_NAMES = {
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid"),
    "test": ("test",),
}
#: Attributes in which torchvision's classes keep one label per image; reading them decodes no image.
LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")


@dataclass(frozen=True)
class ItemPixels:
    """Images of torchvision data sets, one set after the other."""

    datasets: Sequence[Any]
    spec: PixelSpec
    has_masks: bool = False

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Decode and fit ``rows``, see ``Pixels.decode``; digests are those of the pixels before resizing."""
        starts = np.cumsum([0, *(len(dataset) for dataset in self.datasets)])
        which = np.searchsorted(starts, rows, side="right") - 1

        def decode(place: int) -> tuple[str, str | None]:
            try:
                image = self.datasets[which[place]][int(rows[place] - starts[which[place]])][0]
                if not isinstance(image, Image.Image):
                    raise DataError(f"is a {type(image).__name__}, expected a PIL image")
                images[place] = fit_image(image, self.spec)
            except (*UNREADABLE, DataError) as error:
                return "", str(error)
            return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest(), None

        found = [decode(place) for place in range(len(rows))]  # torchvision does not guarantee thread safety
        problems = {int(row): problem for row, (_, problem) in zip(rows, found, strict=True) if problem}
        return [digest for digest, _ in found], problems


def build_torchvision_source(config: TorchvisionData, digests: FileDigests) -> Source:
    """Return the source of ``torchvision.datasets.<name>``; a split that it lacks is cut from train.

    Raises:
        ConfigError: there is no such class, or it is no classification set.
        DataError: the data set is not on disk and ``download`` is off, or the download failed.
    """
    if config.download:
        marker = digests.folder / "downloads" / hash_json([config.name, str(config.path.absolute())])[:24]
        marker.parent.mkdir(parents=True, exist_ok=True)
        with locked(f"{marker}.lock"):
            if not marker.exists():
                _open_datasets(config)
                marker.touch()
    root = config.path.absolute()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = [path.relative_to(root).as_posix() for path in files]
    content = hash_json(
        ["torchvision", config.name, version("torchvision"), names, digests.read(files, of=f"torchvision {root}")]
    )
    return Source(content, lambda: _read_table(config))


def _read_table(config: TorchvisionData) -> Table:
    datasets = _open_datasets(config)
    labels: list[str] = []
    splits: list[str] = []
    names: tuple[str, ...] | None = None
    for split, dataset in datasets.items():
        targets = _read_targets(dataset, config.name)
        names = tuple(map(str, dataset.classes)) if hasattr(dataset, "classes") else None
        labels += [names[target] if names else str(target) for target in targets]
        splits += [split] * len(targets)
    pixels = ItemPixels(list(datasets.values()), build_pixel_spec(config))
    table = build_array_table(pixels, labels, splits, config.name)
    return replace(table, classes=names if config.label_map is None else None)


def _open_datasets(config: TorchvisionData) -> dict[str, Any]:
    """Return split → torchvision data set; the split is "" if the class has no splits."""
    from torchvision import datasets  # the import takes seconds, and is only needed once per node

    known = [name for name in dir(datasets) if inspect.isclass(getattr(datasets, name))]
    if config.name not in known:
        raise ConfigError(
            f"data.name is {config.name!r}{suggest(config.name, known)}; expected a class of torchvision.datasets"
        )
    kind = getattr(datasets, config.name)
    parameters = inspect.signature(kind).parameters
    settings: dict[str, Any] = {"root": str(config.path)} if "root" in parameters else {}
    if "download" in parameters or "kwargs" in parameters:  # EMNIST and QMNIST pass kwargs on to MNIST
        settings["download"] = config.download
    if "train" in parameters:
        return {
            split: _open_dataset(kind, config, settings | {"train": split == "train"}) for split in ("train", "test")
        }
    if "split" not in parameters:
        return {"": _open_dataset(kind, config, settings)}
    opened = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            try:
                opened[split] = _open_dataset(kind, config, settings | {"split": name})
            except ValueError:  # torchvision's verify_str_arg: the class has no split of this name
                continue
            break
    if "train" not in opened:
        raise ConfigError(
            f"torchvision.datasets.{config.name} has no split named {', '.join(SPLIT_NAMES['train'])}; expected a "
            "classification set with train= or split=: use kind csv or image_folder instead"
        )
    return opened


def _open_dataset(kind: Any, config: TorchvisionData, settings: dict[str, Any]) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(
            f"torchvision.datasets.{config.name} needs more than root, download and train or split ({error}): "
            "use kind csv or image_folder instead"
        ) from error
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = "check the network" if config.download else "set data.download: true, or data.path to where it is"
        raise DataError(
            f"could not open torchvision.datasets.{config.name} in {config.path} ({reason}): {advice}"
        ) from error


def _read_targets(dataset: Any, name: str) -> list[int]:
    """Return the label of every image."""
    found = next((getattr(dataset, key) for key in LABEL_ATTRIBUTES if hasattr(dataset, key)), None)
    if found is None:
        found = [dataset[index][1] for index in range(len(dataset))]
    targets = np.asarray(found)
    if targets.shape != (len(dataset),) or targets.dtype.kind not in "iu":
        raise ConfigError(
            f"torchvision.datasets.{name} gives targets of shape {targets.shape} and type {targets.dtype}; expected "
            "one class number per image: it is no classification set"
        )
    return [int(target) for target in targets]
