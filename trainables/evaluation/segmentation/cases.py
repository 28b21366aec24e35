"""Metrics of segmentations: of every case and class, and over the cases of a set, with the misses beside every mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from trainables.errors import DataError
from trainables.evaluation.classification import Metrics
from trainables.evaluation.metric_tables.segmentation import OF_IMAGES_ALONE
from trainables.evaluation.segmentation.calibration import PixelCalibration
from trainables.evaluation.segmentation.centreline import measure_centreline
from trainables.evaluation.segmentation.overlap import Segmentations, Values, count_overlap, measure_overlap
from trainables.evaluation.segmentation.surface import SURFACE, measure_surfaces

#: Metrics of every case and class; those of calibration, per case, come from ``calibration``.
CASE_METRICS = ("dice", "iou", "pixel_sensitivity", "pixel_precision", "hd95", "assd", "nsd", "cl_dice", "missed")
#: Those of them that a volume has, too.
VOLUME_METRICS = tuple(name for name in CASE_METRICS if name not in OF_IMAGES_ALONE)


@dataclass(frozen=True)
class CaseMetrics:
    """Metrics of every case of a set; row i of every array belongs to one case, column j to one foreground class."""

    #: Names of the columns.
    classes: tuple[str, ...]
    #: Name in ``CASE_METRICS`` → values, NaN where target and prediction are empty.
    values: dict[str, Values]
    #: Whether the target has the class and the prediction nothing of it.
    is_missed: Bool[np.ndarray, "n classes"]
    #: Whether the prediction has the class and the target nothing of it.
    is_invented: Bool[np.ndarray, "n classes"]
    #: Whether neither has it: the case counts in no mean of the class.
    is_empty: Bool[np.ndarray, "n classes"]
    #: Sums over the pixels of each case; None where no probabilities were at hand.
    calibration: PixelCalibration | None = None

    def __len__(self) -> int:
        return len(self.is_empty)

    def take(self, cases: np.ndarray) -> CaseMetrics:
        """Return the metrics of some cases, by index or mask: one site's, or a resample."""
        return CaseMetrics(
            self.classes,
            {name: values[cases] for name, values in self.values.items()},
            self.is_missed[cases],
            self.is_invented[cases],
            self.is_empty[cases],
            None if self.calibration is None else self.calibration.take(cases),
        )

    @classmethod
    def join(cls, parts: Sequence[CaseMetrics], calibration: PixelCalibration | None) -> CaseMetrics:
        """Return the metrics of the cases of several measurements by the same classes and metrics.

        Args:
            parts: measurements, one after the other.
            calibration: sums of all cases.
        """
        return cls(
            parts[0].classes,
            {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
            np.concatenate([part.is_missed for part in parts]),
            np.concatenate([part.is_invented for part in parts]),
            np.concatenate([part.is_empty for part in parts]),
            calibration,
        )

    def take_class(self, column: int) -> CaseMetrics:
        """Return the metrics of one class; calibration, which is of all classes together, is left out."""
        chosen = slice(column, column + 1)
        return CaseMetrics(
            self.classes[chosen],
            {name: values[:, chosen] for name, values in self.values.items()},
            self.is_missed[:, chosen],
            self.is_invented[:, chosen],
            self.is_empty[:, chosen],
        )

    def per_case(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return each metric of every case, the mean over the classes that it or its prediction has; NaN without one.

        That of calibration is the case's own; paired tests over cases and tables of the worst cases use these.
        """
        found = {name: _mean(values, axis=1) for name, values in self.values.items()}
        return found if self.calibration is None else found | self.calibration.per_case()


def measure_cases(
    predicted: Segmentations,
    targets: Segmentations,
    *,
    classes: Sequence[tuple[int, str]],
    spacing: Float[np.ndarray, "n axes"],
    tolerance_mm: float,
    metrics: Collection[str] = CASE_METRICS,
    calibration: PixelCalibration | None = None,
) -> CaseMetrics:
    """Return the metrics of every case and foreground class.

    Args:
        predicted: predicted class of every pixel, an index into ``Dataset.classes``.
        targets: true classes, ``UNCOUNTED`` where no metric counts.
        classes: index and name of the foreground classes that the targets are annotated with.
        spacing: mm per pixel of each case along each axis; 1 where it is unknown, distances are in px then.
        tolerance_mm: distance that nsd forgives.
        metrics: names in ``CASE_METRICS``, of volumes in ``VOLUME_METRICS``; fewer take less time.
        calibration: sums of the same cases (``calibration.CalibrationAccumulator``).

    Raises:
        DataError: if shapes differ, a spacing is not above 0, a metric is unknown, or volumes shall have cl_dice.
    """
    unknown = sorted(set(metrics) - set(CASE_METRICS))
    if unknown:
        raise DataError(f"measured segmentations by {', '.join(unknown)}; expected some of {', '.join(CASE_METRICS)}")
    foreground = [index for index, _ in classes]
    counts = count_overlap(predicted, targets, foreground=foreground)
    values = measure_overlap(counts)
    values["missed"] = np.where(counts.is_empty, np.nan, counts.is_missed | counts.is_invented)
    if set(SURFACE) & set(metrics):
        values |= measure_surfaces(
            predicted, targets, foreground=foreground, spacing=spacing, tolerance_mm=tolerance_mm
        )
    if "cl_dice" in metrics:
        values["cl_dice"] = measure_centreline(predicted, targets, foreground=foreground)
    return CaseMetrics(
        tuple(name for _, name in classes),
        {name: values[name] for name in CASE_METRICS if name in metrics},
        counts.is_missed,
        counts.is_invented,
        counts.is_empty,
        calibration,
    )


@dataclass(frozen=True)
class CaseSummary:
    """Means over the cases of a set, and how many cases they are of."""

    #: Metrics of the table (``metrics.SEGMENTATION_METRICS``), and why some are undefined.
    metrics: Metrics
    #: num_cases, and over all classes the numbers of cases that were missed, invented, or empty: the last of these
    #: count in no mean.
    counts: dict[str, int]


def summarise_cases(cases: CaseMetrics) -> CaseSummary:
    """Return the mean of every metric over cases, then over the foreground classes; calibration over all pixels.

    A case counts for the classes that its target or its prediction has; a class counts where such a case exists. A
    missed or invented structure counts with the worst value (``overlap``, ``surface``, ``centreline``).
    """
    counts = {
        "num_cases": len(cases),
        "num_missed": int(cases.is_missed.sum()),
        "num_invented": int(cases.is_invented.sum()),
        "num_empty": int(cases.is_empty.sum()),
    }
    found = {name: average_cases(values) for name, values in cases.values.items()}
    structures = " or ".join(cases.classes)
    reasons = dict.fromkeys(found, f"none of {len(cases)} cases, and of their predictions, has {structures}")
    if cases.calibration is not None:
        pooled = cases.calibration.pooled()
        found |= pooled
        reasons |= dict.fromkeys(pooled, f"none of {len(cases)} cases has a pixel that counts")
    defined = {name: value for name, value in found.items() if not np.isnan(value)}
    undefined = {name: reasons[name] for name in found if name not in defined}
    return CaseSummary(Metrics(defined, undefined), counts)


def average_cases(values: Float[np.ndarray, "n classes"]) -> float:
    """Return the mean over the cases in which a value is defined, then over classes; NaN if none is."""
    return float(_mean(_mean(values.astype(np.float64), axis=0), axis=0))


def summarise_classes(cases: CaseMetrics) -> dict[str, CaseSummary]:
    """Return the summary of each foreground class by itself, by name."""
    return {name: summarise_cases(cases.take_class(column)) for column, name in enumerate(cases.classes)}


def _mean(values: Float64[np.ndarray, "*shape"], *, axis: int) -> Float64[np.ndarray, "*rest"]:
    """Return the mean of the values that are not NaN, NaN where there is none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
