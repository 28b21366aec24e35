"""Sources whose images come as arrays: scikit-learn's digits, MedMNIST's npz."""

from __future__ import annotations

import gzip
import importlib
import os
import shlex
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from trainables.data.assembly import suggest
from trainables.data.decoding.files import UNREADABLE
from trainables.data.decoding.pixels import PixelSpec, build_pixel_spec, fit_arrays
from trainables.data.identity.file_digests import FileDigests
from trainables.data.splits import SPLITS
from trainables.data.table import Pixels, Source, Table, hash_json
from trainables.data_config import DigitsData, MedmnistData
from trainables.errors import ConfigError, DataError, StorageError
from trainables.storage.patient_lock import locked

#: 2-D flag of MedMNIST v2 → modality, which selects the severity tables.
MEDMNIST_MODALITY = {
    "pathmnist": "pathology", "chestmnist": "chest_xray", "dermamnist": "dermoscopy", "octmnist": "oct",
    "pneumoniamnist": "chest_xray", "retinamnist": "fundus", "breastmnist": "ultrasound", "bloodmnist": "blood",
    "tissuemnist": "microscopy", "organamnist": "ct", "organcmnist": "ct", "organsmnist": "ct",
}  # fmt: skip
#: Where the files of MedMNIST+ lie, named like those that the medmnist package (3.0) downloads.
DOWNLOADS = "https://zenodo.org/records/10519652/files"
#: Compression ratio above which a large member is refused as a bomb: images compress 1- to 10-fold, zeros 1000-fold.
MAX_COMPRESSION = 100
#: Size up to which a strongly compressed member (labels, tiny tests) does no harm.
HARMLESS_BYTES = 64 * 2**20
#: Exceptions that zipfile and NumPy raise on a damaged npz.
DAMAGED = (*UNREADABLE, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class ArrayPixels:
    """Images in arrays, loaded part by part; ``parts`` holds (number of rows, loader) of each."""

    parts: Sequence[tuple[int, Callable[[], UInt8[np.ndarray, "n ..."]]]]
    spec: PixelSpec
    has_masks: bool = False

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Load the parts that hold ``rows`` and fit their images, see ``Pixels.decode``."""
        digests = np.empty(len(rows), dtype=object)
        first = 0
        for count, load in self.parts:
            places = np.flatnonzero((rows >= first) & (rows < first + count))
            if len(places):
                array = load()
                fitted = np.empty((len(places), *images.shape[1:]), dtype=np.uint8)
                digests[places] = fit_arrays(array[rows[places] - first], self.spec, fitted)
                images[places] = fitted
            first += count
        return list(digests), {}


def build_array_table(pixels: Pixels, labels: Sequence[str], splits: Sequence[str], file_name: str) -> Table:
    """Return a table of numbered images, each its own group: ids like ``train-000012``, ``image-000012``."""
    counters: dict[str, int] = {}
    rows: list[int | None] = []
    ids = []
    for split in splits:
        index = counters[split] = counters.get(split, -1) + 1
        rows.append(index)
        ids.append(f"{split or 'image'}-{index:06d}")
    return Table(
        pixels=pixels,
        ids=ids,
        labels=list(labels),
        splits=list(splits),
        groups=ids,
        sites=[""] * len(ids),
        file_names=[f"{file_name} {split}".strip() for split in splits],
        rows=rows,
    )


def build_digits_source(config: DigitsData, digests: FileDigests) -> Source:
    """Return the source of scikit-learn's 1,797 digits: grey 8×8, values 0–16 scaled to 0–255."""
    spec = build_pixel_spec(config)

    def read_table() -> Table:
        arrays, digits = read_digits()
        pixels = ArrayPixels([(len(arrays), lambda: arrays)], spec)
        return build_array_table(pixels, [str(digit) for digit in digits], [""] * len(arrays), "digits")

    return Source(hash_json(["digits", version("scikit-learn")]), read_table)


def read_digits() -> tuple[UInt8[np.ndarray, "n 8 8"], Int64[np.ndarray, " n"]]:
    """Return the images of scikit-learn's digits, grey 0–255, and the digit of each.

    Raises:
        DataError: scikit-learn is not installed, or its file is damaged.
    """
    values = _read_digits()
    arrays = np.round(values[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return arrays, values[:, -1].astype(np.int64)


def _read_digits() -> Float64[np.ndarray, "n 65"]:
    """Return 64 values and the label of every digit, from the file that ``sklearn.datasets.load_digits`` reads.

    scikit-learn is located but not imported, because the import takes one to two seconds.
    """
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data.kind: digits come with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            return np.loadtxt(file, delimiter=",")
    except DAMAGED as error:
        raise DataError(
            f"data.kind: could not read the digits of scikit-learn in {path} ({error}): install scikit-learn again"
        ) from error


# --------------------------------------------------------------------------- MedMNIST


def build_medmnist_source(config: MedmnistData, digests: FileDigests) -> Source:
    """Return the source of a MedMNIST npz: ``data.path``, otherwise the file in ``~/.medmnist``, downloaded if missing.

    Raises:
        ConfigError: no path is set, and the flag is unknown or the medmnist package is missing.
        DataError: the file is missing, cannot be read or downloaded, or is not laid out like MedMNIST.
    """
    path = _find_medmnist(config) if config.path is None else config.path
    if not os.path.isfile(path):
        raise DataError(
            f"data.path: there is no file {path}; expected a MedMNIST npz ({config.flag}). "
            f"{_word_download(config, path)}"
        )
    digest = digests.read([path.absolute()], of="medmnist")[0]
    spec = build_pixel_spec(config)
    if config.path is not None and not {"image_size", "source_size"} & config.model_fields_set:
        _check_default_size(path, spec)
    return Source(hash_json(["medmnist", digest]), lambda: replace(_read_medmnist(path, spec), classes=config.classes))


def _word_download(config: MedmnistData, path: Path) -> str:
    """Return the sentence with the command that fetches the file of a flag."""
    if config.flag not in MEDMNIST_MODALITY:
        return "Set data.path to where it lies"
    url = f"{DOWNLOADS}/{_name_file(config)}"
    return f"Fetch it with: curl --fail --location --output {shlex.quote(str(path))} {url}"


def _name_file(config: MedmnistData) -> str:
    return f"{config.flag}{'' if config.source_size == 28 else f'_{config.source_size}'}.npz"


def _check_default_size(path: Path, spec: PixelSpec) -> None:
    """Check that a file whose size nobody has stated holds images of the default size.

    Raises:
        ConfigError: it holds images of another size.
        DataError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shape, _ = _check_member(archive, "train_images", path)
    except DAMAGED as error:
        raise DataError(f"could not read {path} ({type(error).__name__}: {error}); expected a MedMNIST npz") from error
    size = max(shape[1:3], default=spec.image_size)
    if size != spec.image_size:
        raise ConfigError(
            f"data.image_size is not set, and {path.name} holds images of {size} px; expected a size, since the "
            f"default of {spec.image_size} px would shrink them: set data.image_size to {size} or to another size"
        )


def _find_medmnist(config: MedmnistData) -> Path:
    """Return the path of the npz in medmnist's own folder; it is downloaded if it is missing."""
    if config.flag not in MEDMNIST_MODALITY:
        raise ConfigError(
            f"data.flag is {config.flag!r}{suggest(config.flag, list(MEDMNIST_MODALITY))}; expected one of "
            f"{', '.join(MEDMNIST_MODALITY)}, or data.path with an npz of your own"
        )
    try:
        root = Path.home() / ".medmnist"
    except RuntimeError as error:  # neither HOME nor an entry for this user, as in some containers
        raise ConfigError(
            f"data.path is not set, and the folder for downloads lies in the home folder: {error} Set data.path to the "
            "npz, or HOME to a folder that can be written"
        ) from error
    path = root / _name_file(config)
    if path.is_file():
        return path
    try:
        root.mkdir(exist_ok=True)  # importing medmnist does it, too, and only warns if that fails
        medmnist = importlib.import_module("medmnist")
        with locked(f"{path}.lock"):
            if not path.is_file():
                _download_medmnist(medmnist, config, path)
    except ImportError:
        raise ConfigError(
            f"data.path is not set, {path} does not exist, and the package that downloads it is missing: "
            "set data.path to the npz, or pip install 'robustsweep[data]'"
        ) from None
    except OSError as error:
        raise StorageError(
            f"could not write into {root} ({error}): get {path.name}, and set data.path to it"
        ) from error
    return path


def _download_medmnist(medmnist: Any, config: MedmnistData, path: Path) -> None:
    try:
        getattr(medmnist, medmnist.INFO[config.flag]["python_class"])(
            split="train", download=True, root=str(path.parent), size=config.source_size
        )
    except (RuntimeError, OSError) as error:
        path.unlink(missing_ok=True)  # a partial download, or one with a wrong checksum
        raise DataError(
            f"could not download {path.name} ({str(error).strip().splitlines()[0]}): check the network, or get it "
            f"from medmnist.com and set data.path"
        ) from error


def _read_medmnist(path: Path, spec: PixelSpec) -> Table:
    labels: list[str] = []
    splits: list[str] = []
    parts: list[tuple[int, Callable[[], UInt8[np.ndarray, "n ..."]]]] = []
    try:
        with zipfile.ZipFile(path) as archive:
            for split in SPLITS:
                shape, dtype = _check_member(archive, f"{split}_images", path)
                _check_images(shape, dtype, f"{split}_images in {path.name}", spec)
                _check_member(archive, f"{split}_labels", path)
                values = _read_labels(path, split, shape[0])
                labels += [str(value) for value in values]
                splits += [split] * shape[0]
                parts.append((shape[0], lambda key=f"{split}_images": _load_member(path, key)))  # type: ignore[misc]
    except DAMAGED as error:
        raise DataError(f"could not read {path} ({type(error).__name__}: {error}); expected a MedMNIST npz") from error
    return build_array_table(ArrayPixels(parts, spec), labels, splits, path.name)


def _load_member(path: Path, key: str) -> np.ndarray:
    """Return one array of an npz; objects (pickles) are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except DAMAGED as error:
        raise DataError(f"could not read {key} in {path} ({error}): the file is damaged, get it again") from error


def _check_member(archive: zipfile.ZipFile, key: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of an array from its header, before anything large is decompressed."""
    names = archive.namelist()
    if f"{key}.npy" not in names:
        raise DataError(
            f"{path} has no array {key!r}; found {', '.join(sorted(name.removesuffix('.npy') for name in names))}; "
            "expected {train,val,test}_images and {train,val,test}_labels"
        )
    info = archive.getinfo(f"{key}.npy")
    if info.file_size > max(HARMLESS_BYTES, MAX_COMPRESSION * info.compress_size):
        raise DataError(
            f"{key} in {path} would grow from {info.compress_size} to {info.file_size} bytes, more than "
            f"{MAX_COMPRESSION}-fold: this is no image data and was not decompressed"
        )
    with archive.open(info) as file:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(f"{key} in {path} holds Python objects, which could run code when read; expected numbers")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > info.file_size:
        raise DataError(f"{key} in {path} claims the shape {shape}, more than its {info.file_size} bytes can hold")
    return shape, dtype


def _check_images(shape: tuple[int, ...], dtype: np.dtype, what: str, spec: PixelSpec) -> None:
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
        raise DataError(f"{what} are {dtype} of shape {shape}; expected uint8 (N, H, W) grey or (N, H, W, 3) RGB")
    if shape[1] * shape[2] > spec.max_megapixels * 1e6:
        raise DataError(f"{what} are {shape[2]}×{shape[1]} px, more than data.max_megapixels={spec.max_megapixels:g}")


def _read_labels(path: Path, split: str, count: int) -> Int64[np.ndarray, " n"]:
    """Return the labels of a split, squeezed from MedMNIST's (N, 1)."""
    labels = _load_member(path, f"{split}_labels")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{split}_labels in {path} have shape {labels.shape}: several labels per image are not supported, "
            "expected (N, 1) or (N,)"
        )
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{split}_labels in {path} are {labels.dtype} of shape {labels.shape}; expected whole numbers, one for "
            f"each of the {count} images"
        )
    return labels.reshape(-1).astype(np.int64)
