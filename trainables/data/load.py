"""Entry point to all data: ``load_dataset`` returns the memory-mapped data set of a config."""

from __future__ import annotations

import importlib
from pathlib import Path

from trainables.data.assembly import check_order
from trainables.data.cache import CACHE_VERSION, find_dataset, read_dataset
from trainables.data.dataset import Dataset
from trainables.data.identity.file_digests import FileDigests
from trainables.data.table import Source, hash_json
from trainables.data_config import (
    CsvData,
    DataConfig,
    ImageFolderData,
    MedmnistData,
    PhantomData,
    TorchvisionData,
    UnlabelledFolderData,
)
from trainables.errors import StorageError
from trainables.segmentation_data_config import (
    DatasetsData,
    DecathlonData,
    ImageMaskCsvData,
    ImageMaskFolderData,
    OrgansData,
)
from trainables.storage.patient_lock import locked

#: Fields for the location of data, its download, its report or the plan; they change no stored byte.
NOT_STORED = {"path", "root", "group_file", "download", "ordinal", "split", "weights", "datasets"}

#: Kind of data → module whose function ``build_<kind>_source`` returns its source; ``datasets`` is made of others.
SOURCES = {
    "digits": "sources.arrays",
    "coloured_digits": "sources.coloured",
    "medmnist": "sources.arrays",
    "image_folder": "sources.manifests",
    "unlabelled_folder": "sources.manifests",
    "csv": "sources.manifests",
    "torchvision": "sources.torchvision_sets",
    "phantom": "sources.phantom",
    "image_mask_folder": "segmentation.image_masks",
    "image_mask_csv": "segmentation.image_masks",
    "decathlon": "segmentation.decathlon",
    "organs": "segmentation.organs",
}


def load_dataset(config: DataConfig | UnlabelledFolderData, *, cache_dir: Path, verify: bool = False) -> Dataset:
    """Return the data set of ``config``, its images memory-mapped from ``cache_dir/data/<key>/``.

    Images are decoded once, even if several processes of a node call at the same time; later calls only map them. The
    key is a hash of content and settings, so moved data are found again and changed data are not. A damaged folder is
    built again.

    Args:
        config: data set.
        cache_dir: folder on this node's disk.
        verify: whether to read every byte of the data and of the cache instead of trusting sizes and times.

    Raises:
        ConfigError: the config does not fit the data.
        DataError: images, labels, a manifest or the splits are unusable; all unusable images are reported at once.
        StorageError: the cache cannot be written.
    """
    cache = cache_dir.expanduser().absolute() / "data"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"could not make the cache {cache} ({error}): choose a cache_dir that can be written"
        ) from error
    source = _build_source(config, FileDigests(cache, verify))
    settings = config.model_dump(mode="json", exclude=NOT_STORED)
    folder = cache / hash_json([CACHE_VERSION, source.content, settings])[:24]
    name, modality = _name(config), _modality(config)
    dataset = find_dataset(folder, name, modality, every_byte=verify)
    if dataset is None:
        with locked(f"{folder}.lock"):
            dataset = find_dataset(folder, name, modality, every_byte=verify)  # another process may have been faster
            if dataset is None:
                from trainables.data.assembly import assign_sets
                from trainables.data.cache_writer import write_dataset  # needed once per node

                table = source.read_table()
                write_dataset(folder, table, assign_sets(table, config), config)
                dataset = read_dataset(folder, name, modality)
    check_order(config, dataset.classes)
    return dataset


def _build_source(config: DataConfig | UnlabelledFolderData, digests: FileDigests) -> Source:
    """Return the source of the images; only its own module is imported."""
    if isinstance(config, DatasetsData):
        from trainables.data.segmentation.union import build_datasets_source

        return build_datasets_source(config, lambda part: _build_source(part, digests), NOT_STORED)
    module = importlib.import_module(f"trainables.data.{SOURCES[config.kind]}")
    source: Source = getattr(module, f"build_{config.kind}_source")(config, digests)
    return source


def _name(config: DataConfig | UnlabelledFolderData) -> str:
    if isinstance(config, MedmnistData):
        return config.flag
    if isinstance(config, TorchvisionData):
        return config.name
    if isinstance(config, CsvData | ImageMaskCsvData):
        return config.path.stem
    if isinstance(config, ImageFolderData | UnlabelledFolderData | ImageMaskFolderData | DecathlonData):
        return config.path.absolute().name
    return config.organ if isinstance(config, OrgansData) else config.kind


def _modality(config: DataConfig | UnlabelledFolderData) -> str:
    """Return the modality, which selects severity tables: known for MedMNIST and the phantom, otherwise general."""
    if isinstance(config, PhantomData):
        return "fundus"
    if isinstance(config, OrgansData):
        return config.organ
    if isinstance(config, DatasetsData):
        found = {_modality(part) for part in config.parts.values()}
        return found.pop() if len(found) == 1 else "general"
    if not isinstance(config, MedmnistData):
        return "general"
    from trainables.data.sources.arrays import MEDMNIST_MODALITY

    return MEDMNIST_MODALITY.get(config.flag, "general")
