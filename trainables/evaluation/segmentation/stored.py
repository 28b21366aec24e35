"""Files of a segmentation's evaluation: metrics, scores and layers per case; predicted classes of unshifted images."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from trainables.errors import StorageError
from trainables.evaluation.predictions import check_sums
from trainables.storage.folder import Folder

#: Start of the names of metrics per case and class, per case, of scores, and of what is kept of layers, in a file.
_METRICS, _CALIBRATION, _SCORES, _LAYERS = "metrics/", "calibration/", "scores/", "layers/"


@dataclass(frozen=True)
class SegmentedSet:
    """Evaluation of a segmentation on one image set, unshifted (row "identity/0") and under every shift."""

    name: str
    ids: np.ndarray
    #: Index of each image's group (patient) among those of this set.
    groups: Int64[np.ndarray, " n"]
    #: Index of the data set that each image comes from.
    sources: Int64[np.ndarray, " n"]
    #: "<shift>/<severity>" of each row.
    shifts: tuple[str, ...]
    #: Names of the foreground classes, in the order of the columns.
    classes: tuple[str, ...]
    #: Metric (``cases.CASE_METRICS``) → values, NaN where undefined; empty without targets.
    metrics: Mapping[str, Float32[np.ndarray, "shifts n classes"]] = field(default_factory=dict)
    #: pixel_ece, …, band_brier → values; empty without targets.
    calibration: Mapping[str, Float32[np.ndarray, "shifts n"]] = field(default_factory=dict)
    #: Name → per-image confidence; higher is more confident.
    scores: Mapping[str, Float32[np.ndarray, "shifts n"]] = field(default_factory=dict)
    #: "histogram", "pooled/<layer>", "spectral/<layer>" → values per image, unshifted.
    layers: Mapping[str, Float32[np.ndarray, "n _"]] = field(default_factory=dict)
    #: Predicted class of every pixel, unshifted.
    predicted: UInt8[np.ndarray, "n *space"] | None = None
    #: Predicted and true area per case and class, unshifted, in mm² (px² without a spacing), of volumes in mm³; None
    #: without targets.
    areas: Float32[np.ndarray, "n classes 2"] | None = None
    #: Entropy of the predicted probabilities over log(classes), 0 to 255, unshifted.
    entropy: UInt8[np.ndarray, "n *space"] | None = None

    @property
    def measure(self) -> str:
        """Name of what ``areas`` are: area, of volumes volume."""
        return "volume" if self.predicted is not None and self.predicted.ndim == 4 else "area"


def save_segmented(folder: Folder, found: SegmentedSet) -> None:
    """Write ``cases/<name>.npz``."""
    arrays: dict[str, np.ndarray] = {
        "ids": found.ids.astype(np.str_),
        "groups": found.groups,
        "sources": found.sources,
        "shifts": np.array(found.shifts, dtype=np.str_),
        "classes": np.array(found.classes, dtype=np.str_),
    }
    for prefix, values in (
        (_METRICS, found.metrics),
        (_CALIBRATION, found.calibration),
        (_SCORES, found.scores),
        (_LAYERS, found.layers),
    ):
        arrays |= {f"{prefix}{name}": each for name, each in values.items()}
    for name in ("predicted", "areas", "entropy"):
        pixels = getattr(found, name)
        if pixels is not None:
            arrays[name] = pixels
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type] # of vessels: masks to a 24th, entropies to a half
    folder.write(locate_segmented(found.name), buffer.getvalue())


def locate_segmented(name: str) -> str:
    """Return the path of the file of a set, below the trial's folder."""
    return f"cases/{name}.npz"


def load_segmented(folder: Folder, name: str) -> SegmentedSet:
    """Return the evaluation on the set ``name``, after a check of every byte.

    Raises:
        StorageError: if it is missing or damaged.
    """
    path = locate_segmented(name)
    file = io.BytesIO(folder.read(path))
    try:
        check_sums(file)
        with np.load(file, allow_pickle=False) as arrays:

            def read(prefix: str) -> dict[str, np.ndarray]:
                return {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}

            return SegmentedSet(
                name=name,
                ids=arrays["ids"],
                groups=arrays["groups"],
                sources=arrays["sources"],
                shifts=tuple(map(str, arrays["shifts"])),
                classes=tuple(map(str, arrays["classes"])),
                metrics=read(_METRICS),
                calibration=read(_CALIBRATION),
                scores=read(_SCORES),
                layers=read(_LAYERS),
                predicted=arrays.get("predicted"),
                areas=arrays.get("areas"),
                entropy=arrays.get("entropy"),
            )
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise StorageError(f"{folder.uri}/{path} is damaged: {error}") from error
