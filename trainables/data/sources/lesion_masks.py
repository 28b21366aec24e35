"""Lesion masks of the test images, decoded only for evaluations that ask for them; training never sees a mask."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from trainables.data.dataset import Dataset
from trainables.data.decoding.lesion_masks import decode_mask
from trainables.data.decoding.pixels import build_pixel_spec
from trainables.data.decoding.threads import map_threads
from trainables.data.identity.file_digests import FileDigests
from trainables.data.sources.manifests import MaskFile, read_mask_files
from trainables.data.table import describe_row, hash_json, list_first
from trainables.data_config import CsvData, DataConfig
from trainables.errors import ConfigError, DataError
from trainables.storage.folder import explain_failure

#: Increase it when the decoding of masks changes.
MASKS_VERSION = 1


@dataclass(frozen=True)
class TestMasks:
    """Masks of the test images, row i that of image i."""

    __test__ = False  # no test, whatever pytest takes from the name

    #: Memory-mapped; 0 background, anything else a lesion. All 0 for an image without lesions or without a mask.
    masks: UInt8[np.ndarray, "n height width"]
    #: Digest of the masks' files; None for a phantom, whose fingerprint decides them.
    sha256: str | None


def load_test_masks(dataset: Dataset, config: DataConfig, *, cache_dir: Path, verify: bool = False) -> TestMasks:
    """Return the lesion masks of the test images, decoded once per node.

    Args:
        dataset: ``load_dataset(config, …)``.
        config: data set.
        cache_dir: folder on this node's disk.
        verify: whether to read every file of a mask instead of trusting sizes and times.

    Raises:
        ConfigError: the data have no masks, or none of the test images has a lesion.
        DataError: masks are unusable; all of them are reported at once, with file and row.
        StorageError: the cache cannot be written.
    """
    test = dataset.splits["test"]
    if test.masks is not None:
        found = TestMasks(test.masks, None)
    else:
        files = read_mask_files(config) if isinstance(config, CsvData) else None
        if files is None:
            raise ConfigError(
                f"evaluation.attribution: the data ({config.kind}) have no lesion masks; expected a phantom, or a csv "
                "manifest with a column mask: its files, relative to data.root"
            )
        assert isinstance(config, CsvData)
        cache = cache_dir.expanduser().absolute() / "data"
        found = _load_files(dataset, config, [files[str(each)] for each in test.ids], cache, verify)
    if not any(part.any() for part in np.array_split(found.masks, max(1, len(found.masks) // 256))):
        raise ConfigError(
            "evaluation.attribution: no test image has a lesion in its mask; expected some, since attributions are "
            "scored there: correct the masks or take attribution away"
        )
    return found


def _load_files(dataset: Dataset, config: CsvData, files: list[MaskFile], cache: Path, verify: bool) -> TestMasks:
    present = [file for file in files if file.path is not None]
    digests = FileDigests(cache, verify).read([_path(file) for file in present], of=f"masks of {config.path}")
    missing = [
        f"{describe_row(file.name, file.line)}: does not exist or cannot be read, expected a mask"
        for file, digest in zip(present, digests, strict=True)
        if not digest
    ]
    if missing:
        raise DataError(_describe(missing))
    by_path = dict(zip(map(_path, present), digests, strict=True))
    content = [by_path[_path(file)] if file.path is not None else "" for file in files]
    sha256 = hash_json(content)
    settings = [MASKS_VERSION, dataset.fingerprint, config.image_size, config.resize, sha256]
    stored = cache / "masks" / f"{hash_json(settings)[:24]}.npy"
    shape = (len(files), config.image_size, config.image_size)
    masks = _map(stored, shape)
    if masks is None:
        _write(stored, _decode(config, files, shape))
        masks = _map(stored, shape)
    if masks is None:
        raise DataError(f"wrote the masks to {stored} and could not map them: choose another cache_dir")
    return TestMasks(masks, sha256)


def _path(file: MaskFile) -> Path:
    assert file.path is not None
    return file.path


def _map(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n height width"] | None:
    """Return the mapped array, None if it is not there or was not written to its end."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None


def _decode(config: CsvData, files: list[MaskFile], shape: tuple[int, ...]) -> UInt8[np.ndarray, "n height width"]:
    spec, masks = build_pixel_spec(config), np.zeros(shape, dtype=np.uint8)

    def decode(place: int) -> str | None:
        file = files[place]
        if file.path is None:
            return None
        try:
            masks[place] = decode_mask(file.path, file.image_path, spec)
        except DataError as error:
            return f"{describe_row(file.name, file.line)}: {error}"
        return None

    problems = [problem for problem in map_threads(decode, range(len(files))) if problem]
    if problems:
        raise DataError(_describe(problems))
    return masks


def _describe(problems: list[str]) -> str:
    return (
        f"{len(problems)} mask(s) of test images cannot be used. Correct them, or leave the cell of the column mask "
        f"empty (such images are not scored):\n  {list_first(problems)}"
    )


def _write(path: Path, masks: UInt8[np.ndarray, "n height width"]) -> None:
    """Write the masks under a temporary name and rename them, so that they are there completely or not at all."""
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, masks)
        os.replace(temporary, path)
    except OSError as error:
        raise explain_failure(f"could not write {path}", error) from error
    finally:
        temporary.unlink(missing_ok=True)
