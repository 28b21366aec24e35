"""Targets of a segmentation: masks as classes of stored pixels, with exactly the geometry of their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, UInt8
from PIL import Image, ImageOps

from trainables.data.dataset import UNCOUNTED
from trainables.data.decoding.files import UNREADABLE
from trainables.data.decoding.pixels import PixelSpec, fit_size
from trainables.errors import DataError
from trainables.segmentation_data_config import BACKGROUND

#: Increase it when the conversion of masks changes: fingerprints change with it.
TARGETS_VERSION = 1
#: Values that a message names.
_MAX_VALUES = 8
#: Images whose pixels are counted at once, and their pixels: a volume may have more than 64 images.
_CHUNK, _PIXELS = 64, 1 << 24


def read_mask(path: Path, *, what: str = "mask") -> Integer[np.ndarray, "height width"]:
    """Return the values of a mask in a file; white in an image of 1 bit is 255.

    Args:
        path: file of the mask.
        what: what it is, for messages.

    Raises:
        DataError: the file is no usable mask; the message completes a sentence that begins with the file's name.
    """
    try:
        with Image.open(path) as opened:
            return _read_values(opened, what)
    except FileNotFoundError:
        raise DataError(f"does not exist, expected a {what}") from None
    except UNREADABLE as error:
        raise DataError(f"cannot be read to its end as a {what} ({type(error).__name__}: {error})") from error


def _read_values(image: Image.Image, what: str) -> Integer[np.ndarray, "height width"]:
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"is a JPEG, which blurs the edges of a {what}; expected PNG, TIFF or another lossless format")
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise DataError(f"holds {num_frames} images, expected one {what}")
    values = np.asarray(ImageOps.exif_transpose(image))  # of a palette image the numbers of its colours
    if values.ndim == 3 and image.mode in ("LA", "RGBA"):
        if (values[..., -1] != 255).any():
            raise DataError(f"is partly transparent, expected a {what} with one value per pixel")
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(f"holds colours, expected a {what} with one value per pixel: convert colours to numbers")
        values = values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"holds numbers of type {values.dtype}, expected a {what} of whole numbers")
    return values


def find_foreground(paths: Sequence[Path]) -> int | None:
    """Return the one value above 0 in the first of some masks that has any, None if none has; other masks may differ.

    Raises:
        DataError: the first mask that is not all 0 has several values.
    """
    for path in paths:
        try:
            found = np.setdiff1d(_list_distinct(read_mask(path)), 0)
        except DataError:  # reported with its row when it is decoded
            continue
        if len(found) > 1:
            raise DataError(
                f"{path.name} holds the values 0, {list_values(found)}; expected 0 and one other, or data.mask_values "
                "to name the class of each, such as {0: background, 1: vessel, 2: lesion}"
            )
        if len(found):
            return int(found[0])
    return None


def list_values(values: Sequence[int] | np.ndarray) -> str:
    """Return values for a message, of many only the first."""
    more = len(values) - _MAX_VALUES
    return ", ".join(str(value) for value in values[:_MAX_VALUES]) + (f" and {more} more" if more > 0 else "")


def order_classes(names: Sequence[str], label_map: Mapping[str, str | None] | None) -> tuple[str, ...]:
    """Return the classes after ``data.label_map``, background first, then in their order.

    Raises:
        DataError: the map names a class that no mask has, or nothing or everything is background.
    """
    mapping = label_map or {}
    unknown = [name for name in mapping if name not in names]
    if unknown:
        raise DataError(f"data.label_map names the class {unknown[0]!r}; the masks have {', '.join(names)}")
    mapped = [name for each in names if (name := mapping.get(each, each)) is not None]
    classes = tuple(dict.fromkeys([BACKGROUND, *mapped]))
    if BACKGROUND not in mapped or len(classes) < 2:
        raise DataError(f"found the classes {list(dict.fromkeys(mapped))}, expected {BACKGROUND} and at least another")
    return classes


def index_values(
    values: Mapping[int, str], label_map: Mapping[str, str | None] | None, classes: Sequence[str]
) -> dict[int, int]:
    """Return value in a mask → index into ``classes``, or ``UNCOUNTED`` where ``data.label_map`` has null."""
    mapped = {value: (label_map or {}).get(name, name) for value, name in values.items()}
    return {value: UNCOUNTED if name is None else classes.index(name) for value, name in mapped.items()}


def convert_mask(
    values: Integer[np.ndarray, "*space"], index: Mapping[int, int], *, setting: str = "data.mask_values"
) -> UInt8[np.ndarray, "*space"]:
    """Return the class of every pixel.

    Raises:
        DataError: a value has no class; the message completes a sentence that begins with the file's name.
    """
    unknown = [int(value) for value in _list_distinct(values) if int(value) not in index]
    if unknown:
        raise DataError(f"holds the value(s) {list_values(unknown)}, expected {list_values([*index])} ({setting})")
    lookup = np.zeros(max(index) + 1, dtype=np.uint8)
    lookup[[*index]] = [*index.values()]
    return lookup[values]


def _list_distinct(values: np.ndarray) -> np.ndarray:
    """Return the values that occur, sorted; without a sort of all pixels where they are few."""
    if values.size and values.min() >= 0 and values.max() < 2**16:
        return np.flatnonzero(np.bincount(values.ravel()))
    return np.unique(values)


def fit_targets(targets: UInt8[np.ndarray, "height width"], spec: PixelSpec) -> UInt8[np.ndarray, "side side"]:
    """Return the classes of the stored pixels: every class keeps its area, in the pixels that it fills most.

    A class gets as many pixels as its area is in them, at least one if it has any, the smallest class first; so thin
    structures keep their area and tiny ones stay. Pixels that are at least half field of view are counted; borders of
    padding are not. "At least half of a pixel" for classes, too, would lose half of the retinal vessels at 64 px and a
    fifth at 128 px, and the nearest pixel tears them (DRIVE and CHASE_DB1, ``docs/segmentation_data.md``).

    Args:
        targets: classes of the pixels of the file, ``UNCOUNTED`` outside of the field of view.
        spec: size and geometry of the stored images.
    """
    side = spec.image_size
    if targets.shape == (side, side):
        return targets
    return assign_classes(targets, lambda inside: _fit_share(inside, spec))


def assign_classes(
    targets: UInt8[np.ndarray, "*space"], fit: Callable[[Bool[np.ndarray, "*space"]], Float32[np.ndarray, "*fitted"]]
) -> UInt8[np.ndarray, "*fitted"]:
    """Return the classes of the stored pixels or voxels, see ``fit_targets``.

    Args:
        targets: classes of the pixels of the file.
        fit: function from a mask to the share of every stored pixel that is inside, 0 to 1.
    """
    is_counted = fit(targets != UNCOUNTED) >= 0.5
    found = [int(value) for value in np.unique(targets) if value not in (0, UNCOUNTED)]
    shares = {value: fit(targets == value).ravel() for value in found}
    areas = {value: float(shares[value].sum()) for value in found}
    fitted: UInt8[np.ndarray, " pixels"] = np.zeros(is_counted.size, dtype=np.uint8)
    for value in sorted(found, key=lambda each: areas[each]):
        free = np.flatnonzero((shares[value] > 0) & (fitted == 0))
        most = np.argsort(-shares[value][free], kind="stable")[: max(1, round(areas[value]))]
        fitted[free[most]] = value
    return np.where(is_counted, fitted.reshape(is_counted.shape), np.uint8(UNCOUNTED))


def _fit_share(inside: Bool[np.ndarray, "height width"], spec: PixelSpec) -> np.ndarray:
    """Return the share of every stored pixel, float32 (side, side), that is inside."""
    return np.clip(np.asarray(fit_size(Image.fromarray(inside.astype(np.float32)), spec)), 0, 1)


def scale_spacing(
    size: tuple[int, int], spacing: tuple[float, float] | None, spec: PixelSpec
) -> tuple[float | None, float | None]:
    """Return height and width in mm of a stored pixel, None where those of the file are unknown.

    Args:
        size: height and width of the file, px.
        spacing: height and width of a pixel of the file, mm.
        spec: size and geometry of the stored images.
    """
    if spacing is None:
        return None, None
    side = spec.image_size
    if spec.resize == "crop":  # one scale for both
        return spacing[0] * min(size) / side, spacing[1] * min(size) / side
    # Pillow brings the longer side of a padded image to the stored one, and rounds the shorter one to whole pixels.
    stored = [side, side] if spec.resize == "squash" else [max(1, round(each * side / max(size))) for each in size]
    return spacing[0] * size[0] / stored[0], spacing[1] * size[1] / stored[1]


def count_pixels(targets: UInt8[np.ndarray, "n *space"], num_classes: int) -> Int64[np.ndarray, "n classes"]:
    """Return the number of counted pixels of every class in every image."""
    counts = np.zeros((len(targets), num_classes), dtype=np.int64)
    step = max(1, min(_CHUNK, _PIXELS // max(1, targets[0].size))) if len(targets) else 1
    for start in range(0, len(targets), step):
        part = targets[start : start + step].reshape(len(targets[start : start + step]), -1)
        codes = part.astype(np.int64) + 256 * np.arange(len(part))[:, None]
        found = np.bincount(codes.ravel(), minlength=256 * len(part)).reshape(len(part), 256)
        counts[start : start + step] = found[:, :num_classes]
    return counts


def check_learnt(areas: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Check that the training images have pixels of every class.

    Args:
        areas: pixels of every class in every training image.
        classes: their names.

    Raises:
        DataError: a class has none.
    """
    total = np.array(areas).sum(axis=0)
    missing = [name for name, count in zip(classes, total, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"no training image has a pixel of {', '.join(missing)}, so it could never be learnt; expected all of "
            f"{', '.join(classes)}: check the masks and data.mask_values, or map the class by data.label_map"
        )
