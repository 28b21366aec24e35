"""Entry point to all data: ``load_dataset`` returns the memory-mapped data set of a config."""

from __future__ import annotations

from pathlib import Path

from trainables.data.assembly import check_order
from trainables.data.cache import CACHE_VERSION, find_dataset, read_dataset
from trainables.data.dataset import Dataset
from trainables.data.identity.file_digests import FileDigests
from trainables.data.table import Source, hash_json
from trainables.data_config import (
    ColouredDigitsData,
    CsvData,
    DataConfig,
    DigitsData,
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
    SegmentationData,
)
from trainables.storage.patient_lock import locked

#: Fields for the location of data, its download, its report or the plan; they change no stored byte.
NOT_STORED = {"path", "root", "group_file", "download", "ordinal", "split", "weights", "datasets"}


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


def _build_source(  # noqa: PLR0911 - one per kind
    config: DataConfig | UnlabelledFolderData, digests: FileDigests
) -> Source:
    """Return the source of the images; only its own module is imported."""
    if isinstance(config, DigitsData):
        from trainables.data.sources.arrays import build_digits_source

        return build_digits_source(config, digests)
    if isinstance(config, ColouredDigitsData):
        from trainables.data.sources.coloured import build_coloured_digits_source

        return build_coloured_digits_source(config, digests)
    if isinstance(config, MedmnistData):
        from trainables.data.sources.arrays import build_medmnist_source

        return build_medmnist_source(config, digests)
    if isinstance(config, ImageFolderData):
        from trainables.data.sources.manifests import build_image_folder_source

        return build_image_folder_source(config, digests)
    if isinstance(config, UnlabelledFolderData):
        from trainables.data.sources.manifests import build_unlabelled_folder_source

        return build_unlabelled_folder_source(config, digests)
    if isinstance(config, CsvData):
        from trainables.data.sources.manifests import build_csv_source

        return build_csv_source(config, digests)
    if isinstance(config, TorchvisionData):
        from trainables.data.sources.torchvision_sets import build_torchvision_source

        return build_torchvision_source(config, digests)
    if isinstance(config, SegmentationData):
        return _build_segmentation_source(config, digests)
    from trainables.data.sources.phantom import build_phantom_source

    return build_phantom_source(config, digests)


def _build_segmentation_source(config: SegmentationData, digests: FileDigests) -> Source:
    """Return the source of images with masks; only its own module is imported."""
    if isinstance(config, ImageMaskFolderData):
        from trainables.data.segmentation.image_masks import build_image_mask_folder_source

        return build_image_mask_folder_source(config, digests)
    if isinstance(config, ImageMaskCsvData):
        from trainables.data.segmentation.image_masks import build_image_mask_csv_source

        return build_image_mask_csv_source(config, digests)
    if isinstance(config, DecathlonData):
        from trainables.data.segmentation.decathlon import build_decathlon_source

        return build_decathlon_source(config, digests)
    if isinstance(config, OrgansData):
        from trainables.data.segmentation.organs import build_organs_source

        return build_organs_source(config, digests)
    from trainables.data.segmentation.union import build_datasets_source

    assert isinstance(config, DatasetsData)
    return build_datasets_source(config, lambda part: _build_segmentation_source(part, digests), NOT_STORED)


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
